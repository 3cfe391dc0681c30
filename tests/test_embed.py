"`embed` and `embeddings-baselines` as people run them: the seed's lines verbatim, interrupted, repeated, and on real films."
import json
import os
import shlex
import signal
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from forked import Forked, command

BASIC = 'embed -- --csv classificacao.csv --dicom-root archive --outdir outputs/embeddings_resnet50'
FULL = BASIC + ' --save-csv --pca --tsne --umap --cluster --batch-size 32 --seed 42'
BASELINES = 'embeddings-baselines --embeddings-dir outputs/embeddings_resnet50 --outdir outputs/embeddings_baselines'
SMALL = ['--csv', 'classificacao.csv', '--dicom-root', 'archive', '--arch', 'resnet18', '--weights', 'none', '--img-size', '64', '--device', 'cpu']
CLUSTERING = ['silhouette_score', 'davies_bouldin_index', 'calinski_harabasz_score', 'num_samples', 'num_features', 'timestamp']


@pytest.fixture(scope='module')
def sixty(tmp_path_factory):
    "60 exams, as the issue asks: five folds need five patients of each class."
    from mammo.phantom import write_study
    folder = tmp_path_factory.mktemp('sixty')
    write_study(folder, n_exams=60, rows=160, columns=128, workers=0, progress=False)
    return folder


@pytest.fixture(scope='module')
def place(study, tmp_path_factory):
    "A folder with the small study in it, whose outputs/ is its own."
    folder = tmp_path_factory.mktemp('embed')
    for name in ('classificacao.csv', 'archive'): (folder / name).symlink_to(study / name)
    return folder


@pytest.fixture
def here(monkeypatch, capsys, torch_home):
    "The command line in this process, which has torch already: `here(folder, …)` gives exit status, output and errors."
    from mammo.cli import main
    monkeypatch.setenv('TORCH_HOME', str(torch_home))
    def run(folder, *words):
        monkeypatch.chdir(folder)
        code = main([str(w) for w in words])
        return code, *capsys.readouterr()
    return run


@pytest.fixture(scope='module')
def embedded(sixty, mammography):
    "The two lines of the seed, one after the other, as it shows them."
    first = mammography(*shlex.split(BASIC), cwd=sixty)
    stamp = (sixty / 'outputs/embeddings_resnet50/features.npy').stat().st_mtime_ns
    return sixty / 'outputs/embeddings_resnet50', first, mammography(*shlex.split(FULL), cwd=sixty), stamp


def test_the_seed_lines_verbatim(embedded):
    out, first, second, stamp = embedded
    assert (out / 'features.npy').stat().st_mtime_ns == stamp and 'nothing to extract' in second.stderr  # maps are added, features are not made again
    x, table = np.load(out / 'features.npy'), pd.read_csv(out / 'joined.csv', dtype={'AccessionNumber': str})
    assert x.dtype == np.float32 and x.shape == (len(table), 2048) and np.isfinite(x).all()
    assert list(table.columns[:5]) == ['AccessionNumber', 'BI-RADS', 'ImagePath', 'EmbeddingIndex', 'Split']
    assert table.EmbeddingIndex.tolist() == list(range(len(x))) and table['BI-RADS'].isin([1, 2, 3, 4]).all() and set(table.Split) == {'train', 'val'}
    assert (table.ImagePath.str.split('/').str[0] == table.AccessionNumber).all()
    clustering, summary = (json.loads((out / f'{n}.json').read_text()) for n in ('clustering_metrics', 'summary'))
    assert [k for k in CLUSTERING if clustering.get(k) is None] == []
    assert {m: set(c) >= {'ari', 'nmi', 'ari_interval', 'nmi_interval'} for m, c in clustering['clusters'].items()} == {'kmeans': True, 'agglomerative': True}
    assert (summary['precision'], summary['img_size'], summary['seed'], summary['num_features']) == ('fp32', 224, 42, 2048)
    assert len(summary['weights_record']['sha256']) == 64
    assert {p.name for p in (out / 'preview').iterdir()} == {'pca_2d.png', 'tsne_2d.png', 'umap_2d.png', 'embeddings_pca_tsne.png'}
    assert (out / 'run.log').exists() and '2048 features' in first.stdout and 'preview/umap_2d.png' in second.stdout


def test_roles_are_those_of_training(embedded, sixty):
    "A patient that chooses the epoch in train-density has Split val here, with the same defaults."
    from mammo.datasets import load_dataset
    from mammo.splits import assign_roles
    table = pd.read_csv(embedded[0] / 'joined.csv')
    m = assign_roles(load_dataset(csv=sixty / 'classificacao.csv', dicom_root=sixty / 'archive').manifest, .2, 0, 0, 42)
    assert table.set_index('sample_id').Split.to_dict() == m.set_index('sample_id').role.to_dict()


def check_baselines(out, repeats: int):
    d, text = json.loads((out / 'report.json').read_text()), (out / 'report.md').read_text()
    names = Counter(l['method'].split(' → ')[0] for l in d['methods'])
    assert names == {'majority class': 1, 'metadata': 1, 'percent density': 1, 'descriptors': 4, 'embeddings': 3, 'embeddings + descriptors': 2}
    assert (d['folds'], d['repeats'], len(d['comparisons'])) == (5, repeats, 5)
    t = d['comparisons'][0]['figures']['balanced_accuracy']['corrected_t']
    assert (t['J'], t['df']) == (5 * repeats, 5 * repeats - 1) and t['n_train'] == pytest.approx(4 * t['n_test'], rel=.2)
    assert all(f'{l["balanced_accuracy"]["mean"]:.3f}' in text for l in d['methods']) and 'corrected resampled t-test' in text
    assert (out / 'figures/baselines.png').stat().st_size > 10_000
    folds = pd.read_csv(out / 'folds.csv')
    assert folds.groupby('method').balanced_accuracy.mean().round(6).to_dict() == {l['method']: round(l['balanced_accuracy']['mean'], 6) for l in d['methods']}


def test_baselines(embedded, sixty, here):
    line = [*shlex.split(BASELINES), '--repeats', '1', '--n-boot', '200']
    code, said, _ = here(sixty, *line)
    check_baselines(sixty / 'outputs/embeddings_baselines', 1)
    assert code == 0 and 'Classical baselines' in said
    assert 'nothing to do' in here(sixty, *line)[2]


@pytest.mark.slow
def test_baselines_verbatim(embedded, sixty, mammography, tmp_path):
    (tmp_path / 'outputs').mkdir()
    (tmp_path / 'outputs/embeddings_resnet50').symlink_to(embedded[0])
    mammography(*shlex.split(BASELINES), cwd=tmp_path)
    check_baselines(tmp_path / 'outputs/embeddings_baselines', 3)


def test_no_patient_leaves_a_trace(embedded, sixty):
    texts = [p.read_text() for p in (sixty / 'outputs').rglob('*') if p.suffix in ('.json', '.csv', '.md', '.log')] + [d.stdout + d.stderr for d in embedded[1:3]]
    assert len(texts) > 8 and not [t for t in texts if 'PHANTOM-' in t.upper()]


def test_two_runs_are_the_same_bytes_and_batches_hardly_matter(place, here, mammography):
    mammography('embed', *SMALL, '--outdir', 'same/a', cwd=place)
    for name, batch in (('b', 32), ('c', 5)): assert here(place, 'embed', *SMALL, '--outdir', f'same/{name}', '--batch-size', batch)[0] == 0
    a, b, c = (place / f'same/{n}/features.npy' for n in 'abc')
    assert a.read_bytes() == b.read_bytes()
    assert np.abs(np.load(a) - np.load(c)).max() < 1e-4


def test_killed_and_taken_up_again(place, here, torch_home):
    line = [*shlex.split(BASIC.replace('embeddings_resnet50', 'killed')), '--batch-size', '4', '--device', 'cpu', '--weights', 'none']
    assert here(place, *[a.replace('killed', 'whole') for a in line])[0] == 0
    process = Forked(command, line, cwd=place, env=os.environ | {'TORCH_HOME': str(torch_home)})
    part, end = place / 'outputs/killed/features.npy.part', time.time() + 120
    while time.time() < end and not (part.exists() and part.stat().st_size > 4 * 2048 * 8): time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part.exists() and not (place / 'outputs/killed/features.npy').exists()
    assert 'images were done before' in here(place, *line)[2] and not part.exists()
    assert (place / 'outputs/killed/features.npy').read_bytes() == (place / 'outputs/whole/features.npy').read_bytes()


@pytest.mark.parametrize('line, said', [
    ('embed --perplexity 0', '--perplexity: is 0.0'), ('embed --csv absent.csv', '--csv'), (BASIC + ' --img-size 96', '--img-size was 224, now 96'),
    ('embed --mean .5', '--mean: has 1 numbers'), ('embed --dataset unlabelled', '--dicom-root'), ('embeddings-baselines --embeddings-dir nowhere', '--embeddings-dir nowhere: holds no embeddings'),
    (BASELINES.replace('embeddings_baselines', 'many') + ' --folds 40', '--folds: class'), ('train-density --dataset unlabelled --dicom-root archive --weights none --arch resnet18', 'no labels to learn from')])
def test_mistakes_are_one_line(embedded, sixty, here, line, said):
    code, _, errors = here(sixty, *shlex.split(line))
    assert code == 2 and said in errors and errors.strip().count('\n') == 0, errors


def test_overwrite_and_one_channel(place, here):
    assert here(place, 'embed', *SMALL, '--outdir', 'over', '--pca')[0] == 0
    assert here(place, 'embed', *SMALL, '--outdir', 'over', '--channels', '1', '--overwrite')[0] == 0
    summary = json.loads((place / 'over/summary.json').read_text())
    assert (summary['channels'], summary['weights_record']['input_spec']['channels'], summary['maps']) == (1, 1, {})
    assert not list((place / 'over/preview').iterdir())


def test_files_that_cannot_be_read_are_in_the_audit_and_in_no_matrix(study, tmp_path, here):
    import shutil
    shutil.copytree(study, tmp_path / 's')
    exam = sorted((tmp_path / 's/archive').iterdir())[0]
    good = sorted(exam.glob('*.dcm'))[0]
    (exam / 'cut.dcm').write_bytes(good.read_bytes()[:-9000])
    (exam / 'text.dcm').write_text('no image')
    assert here(tmp_path / 's', 'embed', *SMALL, '--outdir', 'o')[0] == 0
    table, record = pd.read_csv(tmp_path / 's/o/joined.csv'), json.loads((tmp_path / 's/o/data_manifest.json').read_text())
    assert len(np.load(tmp_path / 's/o/features.npy')) == len(table) == len(list((study / 'archive').rglob('*.dcm')))
    assert {r['path'].split('/')[-1] for r in record['audit']['rows'] if r['path']} == {'cut.dcm', 'text.dcm'}


@pytest.mark.slow
def test_mini_mias(shared, here, tmp_path):
    "Real films and real weights: embeddings know more than chance, metadata know nothing."
    line = ['--dataset', 'mini-mias', '--csv', shared / 'data/mini-mias/density.csv', '--arch', 'mobilenet_v2', '--weights', shared / 'weights/mobilenet_v2_imagenet.pth']
    here(tmp_path, 'embed', *line, '--mean', '.5', '.5', '.5', '--std', '.5', '.5', '.5', '--outdir', tmp_path / 'e', '--cluster')
    here(tmp_path, 'embeddings-baselines', '--embeddings-dir', tmp_path / 'e', '--outdir', tmp_path / 'b', '--repeats', '1', '--n-boot', '200')
    d = json.loads((tmp_path / 'b/report.json').read_text())
    kappa = {l['method']: l['kappa_quadratic']['mean'] for l in d['methods']}
    assert (d['n_images'], d['n_patients']) == (162, 81)
    assert kappa['embeddings → logistic regression'] > .5 and kappa['descriptors → extra trees'] > .6 and abs(kappa['metadata → logistic regression']) < .2
    assert d['warning'] == '' and not d['metadata_varies'] and 'cannot show a shortcut' in (tmp_path / 'b/report.md').read_text()
    table = pd.read_csv(tmp_path / 'e/joined.csv')
    assert table['BI-RADS'].isna().all() and set(table.label) == {'F', 'G', 'D'}  # classes of MIAS are no BI-RADS
