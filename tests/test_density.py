"Density in full as people run it: the seed's command lines, fusion, one model a view, exams, kept activations, folds, and new images."
import json
import os
import shlex
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

from forked import Forked, command

SMALL = ['--arch', 'resnet18', '--weights', 'none', '--img-size', '64', '--epochs', '2', '--lr', '1e-3', '--n-boot', '20', '--num-workers', '0', '--precision', 'fp32', '--device', 'cpu']
SEARCH_LINE = r"""train-density -- \
  --csv classificacao.csv --dicom-root archive \
  --outdir outputs/mammo_efficientnetb0_density/hpo_runs \
  --subset 256 --epochs 3 --img-size 384 \
  --optuna-trial-id hpo_trial_001 \
  --ray-trial-name hpo_trial_001 \
  --ray-logdir outputs/density_experiments/hparam_logs"""
FOLDS_LINE = 'train-density --cv-folds 3 --cv-outdir outputs/density_experiments/results_k3_seed42 --seed 42'


def words(line): return shlex.split(line.replace('\\\n', ' '))


def read(path): return json.loads(path.read_text())


@pytest.fixture
def place(study, tmp_path, monkeypatch, torch_home):
    "A folder with the small study in it, whose outputs/ is its own."
    for name in ('classificacao.csv', 'archive'): (tmp_path / name).symlink_to(study / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(torch_home))
    return tmp_path


def run(*argv):
    from mammo.cli import main
    return main([str(a) for a in argv])


def test_the_line_of_the_search(place):
    "Verbatim but for the pixels: the seed's 384 would take a minute here."
    assert run(*words(SEARCH_LINE.replace('384', '64'))) == 0
    results = place / 'outputs/mammo_efficientnetb0_density/hpo_runs/results'
    trial = read(results / 'optuna_trial.json')
    assert trial['trial_id'] == 'hpo_trial_001' and trial['params']['lr'] == 1e-4 and trial['params']['backbone_lr'] == pytest.approx(1e-5)
    assert max(v for v in trial['intermediate_values'].values() if v is not None) == trial['value']
    lines = [json.loads(l) for l in (results / 'ray_hpo_hpo_trial_001.jsonl').read_text().splitlines()]
    assert [l['training_iteration'] for l in lines] == [1, 2, 3] and all('val_kappa' in l for l in lines)
    assert (place / 'outputs/density_experiments/hparam_logs/ray_hpo_hpo_trial_001.jsonl').read_bytes() == (results / 'ray_hpo_hpo_trial_001.jsonl').read_bytes()


def test_the_line_of_the_folds(place, capsys):
    "With the defaults that it does not name made small."
    assert run(*words(FOLDS_LINE), *SMALL) == 0
    folder = place / 'outputs/density_experiments/results_k3_seed42'
    said = read(folder / 'cv_summary.json')
    tables = [pd.read_csv(folder / f'fold_{f}/results/test_predictions.csv', dtype=str) for f in (1, 2, 3)]
    everybody = pd.concat(tables)
    assert not everybody.sample_id.duplicated().any() and len(everybody) == said['n']
    assert set(tables[0].patient_key).isdisjoint(tables[1].patient_key)
    values = [read(folder / f'fold_{f}/results/metrics/test_metrics.json')['kappa_quadratic'] for f in (1, 2, 3)]
    assert said['figures']['kappa_quadratic']['mean'] == pytest.approx(np.mean(values)) and said['figures']['kappa_quadratic']['sd'] == pytest.approx(np.std(values, ddof=1))
    low, high = said['figures']['accuracy']['interval']  # over patients, of the mean of the folds
    assert low <= said['figures']['accuracy']['mean'] <= high and said['exam']['accuracy']['interval'] is not None
    assert 'sample standard deviation' in (out := capsys.readouterr().out) and 'interval of the mean over patients' in out
    assert all((folder / f'fold_{f}/results' / name).exists() for f in (1, 2, 3) for name in ('best_model.pth', 'val_predictions.csv'))


@pytest.mark.slow
@pytest.mark.parametrize('line', [SEARCH_LINE, FOLDS_LINE])
def test_the_lines_verbatim(place, line): assert run(*words(line)) == 0


def test_trainable_weights_of_each_strategy(place):
    "Counted by hand from torchvision's EfficientNet-B0 with four classes; warm-up leaves exactly these open."
    counts = {'--no-train-backbone': 5_124, '--unfreeze-last-block': 717_232 + 412_160 + 5_124, None: 4_007_548 + 5_124}
    for flag, n in counts.items():
        flags = ['--outdir', 'o', *SMALL[2:], '--epochs', 2, '--warmup-epochs', 1, '--img-size', 32, *([flag] if flag else [])]
        assert run('train-density', '--arch', 'efficientnet_b0', *flags) == 0
    found = [read(place / 'o' / r / 'summary.json')['trainable_parameters'] for r in ('results', 'results_1', 'results_2')]
    assert found == list(counts.values())
    first, last = (torch.load(place / 'o' / r / 'last.pth', weights_only=True)['model'] for r in ('results', 'results_1'))
    same = {k for k in first if k.startswith('stages.') and torch.equal(first[k], last[k])}
    assert {k.split('.')[1] for k in set(first) - same if k.startswith('stages.')} == {'7'}  # no weight and no statistic of a frozen stage has moved


@pytest.fixture
def embedded(place):
    assert run('embed', '--arch', 'resnet18', '--weights', 'none', '--img-size', 48, '--outdir', 'emb', '--device', 'cpu') == 0
    return place / 'emb'


def test_one_extraction_serves_seeds_folds_and_subsets(embedded, place):
    for more in ([], ['--seed', 43], ['--subset', 60], ['--cv-folds', 2, '--cv-outdir', 'cv']):
        assert run('train-density', *SMALL, '--epochs', 1, '--no-train-backbone', '--fusion', '--embeddings-dir', 'emb', '--outdir', 'o', *more) == 0
    s = read(place / 'o/results/summary.json')
    assert s['embeddings_dir'] == 'emb' and s['trainable_parameters'] == (512 + 512) * 4 + 4
    ckpt = torch.load(place / 'o/results/best_model.pth', weights_only=True)
    table = pd.read_csv(embedded / 'joined.csv', dtype=str)
    x = np.load(embedded / 'features.npy')[table.sample_id.isin(read(place / 'o/results/data_manifest.json')['roles']['train'])]
    np.testing.assert_allclose(ckpt['model']['head.mean'], x.mean(0), rtol=1e-4, atol=1e-5)  # training images only


def test_order_of_the_table_does_not_matter(embedded, place):
    "Rows by image: a table with the same rows in another order, and one image more, gives the same model to the bit."
    from mammo.core import hash_file
    other = place / 'other'
    shutil.copytree(embedded, other)
    table, x = pd.read_csv(embedded / 'joined.csv', dtype=str, keep_default_na=False), np.load(embedded / 'features.npy')
    at = np.random.default_rng(0).permutation(len(x))
    extra = table.iloc[:1].assign(sample_id='stranger', file_hash='stranger')
    pd.concat([extra, table.iloc[at]]).assign(EmbeddingIndex=range(len(x) + 1)).to_csv(other / 'joined.csv', index=False)
    np.save(other / 'features.npy', np.concatenate([x[:1] + 9, x[at]]))
    summary = read(other / 'summary.json') | {f'{k}_sha256': hash_file(other / f) for k, f in (('features', 'features.npy'), ('joined', 'joined.csv'))}
    (other / 'summary.json').write_text(json.dumps(summary))
    for folder in ('emb', 'other'): assert run('train-density', *SMALL, '--epochs', 1, '--unfreeze-last-block', '--embeddings-dir', folder, '--outdir', f'o_{folder}') == 0
    assert (place / 'o_emb/results/val_predictions.csv').read_bytes() == (place / 'o_other/results/val_predictions.csv').read_bytes()


def test_fusion_tells_what_is_wrong(embedded, place, capsys):
    flags = ['train-density', *SMALL, '--outdir', 'o']
    for more, said in ((['--fusion'], '--embeddings-dir FOLDER'), (['--embeddings-dir', 'nowhere'], '--embeddings-dir nowhere'), (['--missing-embeddings', 'placeholder'], '--missing-embeddings')):
        assert run(*flags, *more) == 2
        assert said in capsys.readouterr().err
    (embedded / 'features.npy').write_bytes((embedded / 'features.npy').read_bytes()[:-4])
    assert run(*flags, '--embeddings-dir', 'emb') != 0
    assert 'features.npy' in capsys.readouterr().err
    assert not (place / 'o').exists()  # nothing was begun


def test_missing_rows_are_named_or_learned(place, capsys):
    names = sorted(os.listdir(place / 'archive'))
    (place / 'part').mkdir()
    for n in names[:-4]: (place / 'part' / n).symlink_to(place / 'archive' / n)
    assert run('embed', '--arch', 'resnet18', '--weights', 'none', '--img-size', 48, '--dicom-root', 'part', '--outdir', 'emb', '--device', 'cpu') in (0, 1)
    if not (place / 'emb/summary.json').exists(): pytest.fail(capsys.readouterr().err)
    flags = ['train-density', *SMALL, '--epochs', 1, '--no-train-backbone', '--outdir', 'o', '--embeddings-dir', 'emb']
    assert run(*flags) == 2
    assert f'{names[-4]}_' in capsys.readouterr().err
    assert run(*flags, '--missing-embeddings', 'placeholder') == 0
    newest = sorted((place / 'o').iterdir())[-1]
    moved = torch.load(newest / 'best_model.pth', weights_only=True)['model']['head.placeholder']
    assert moved.abs().sum() > 0  # it was learned


def test_new_images_of_a_fused_run(embedded, place, capsys):
    assert run('train-density', *SMALL, '--epochs', 1, '--unfreeze-last-block', '--embeddings-dir', 'emb', '--cal-split', '.2', '--class-weights', 'none', '--outdir', 'o') == 0
    exam = sorted(os.listdir(place / 'archive'))[0]
    shutil.copytree(place / 'archive' / exam, place / 'new')
    predict = ['predict', '--run', 'o/results', '--input', 'new', '--out', 'p.csv', '--num-workers', 0]
    assert run(*predict) == 2
    assert '--embeddings-dir FOLDER' in capsys.readouterr().err
    assert run('embed', '--dataset', 'unlabelled', '--dicom-root', 'new', '--arch', 'resnet18', '--weights', 'none', '--img-size', 48, '--outdir', 'emb_new', '--device', 'cpu') == 0
    assert run(*predict, '--embeddings-dir', 'emb_new') == 0
    table, exams = pd.read_csv('p.csv'), pd.read_csv('p_exams.csv')
    assert (table.status == 'ok').all() and table.calibrated.all() and len(exams) == 1
    np.testing.assert_allclose(table[[f'prob_{i}' for i in (1, 2, 3, 4)]].sum(1), 1, atol=1e-5)
    assert run('embed', '--dataset', 'unlabelled', '--dicom-root', 'new', '--arch', 'resnet18', '--weights', 'none', '--img-size', 64, '--outdir', 'emb_64', '--device', 'cpu') == 0
    assert run(*predict, '--embeddings-dir', 'emb_64') != 0
    assert '--img-size was 48, now 64' in capsys.readouterr().err


def test_a_model_for_each_view(place):
    assert run('train-density', *SMALL, '--unfreeze-last-block', '--view-specific', '--outdir', 'o') == 0
    top = place / 'o/results'
    s = read(top / 'summary.json')
    assert s['models'] == ['CC', 'MLO'] and s['metrics']['val']['exam']['n'] < s['metrics']['val']['n']
    val = pd.read_csv(top / 'val_predictions.csv')
    for v in ('CC', 'MLO'):
        own = pd.read_csv(top / f'view_{v}/val_predictions.csv')
        assert set(own.view) == {v}
        both = own.merge(val, on='sample_id', suffixes=('', '_top'))
        np.testing.assert_allclose(both.prob_1, both.prob_1_top, atol=1e-4)
    exams = pd.read_csv(top / 'val_exams.csv')
    one = val[val.exam_id == exams.exam_id[0]]
    assert exams.prob_1[0] == pytest.approx(one.groupby('laterality').prob_1.mean().mean(), abs=1e-5)
    assert run('predict', '--run', 'o/results', '--input', 'archive', '--out', 'p.csv', '--num-workers', 0) == 0
    assert (pd.read_csv('p.csv').status == 'ok').sum() > 50


@pytest.mark.slow
def test_kept_activations_survive_kill(study, tmp_path):
    "kill -9 while activations are kept: no file is left behind, and the resumed run ends as the undisturbed one."
    def start(out, *more):
        return Forked(command, ['train-density', *SMALL, '--epochs', '6', '--unfreeze-last-block', '--feature-cache', '2', '--outdir', str(tmp_path / out), *more], cwd=study)
    whole = start('whole')
    assert whole.wait(300) == 0, whole.said()[1]
    killed, history = start('b'), tmp_path / 'b/results/train_history.json'
    while killed.poll() is None and not history.exists(): time.sleep(.02)
    assert killed.poll() is None, 'it ended before it could be killed'
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert sum(f.stat().st_size for f in (tmp_path / 'b/results').iterdir() if f.suffix not in ('.pth', '.tmp')) < 1e6
    again = start('b', '--resume')
    assert again.wait(300) == 0, again.said()[1]
    for name in ('val_predictions.csv', 'embeddings_val.npy'): assert (tmp_path / 'b/results' / name).read_bytes() == (tmp_path / 'whole/results' / name).read_bytes()
    assert 'activations of 4 frozen stages: 2 views' in (tmp_path / 'b/results/run.log').read_text()


def negative(path):
    "Tissue dark, air bright, with a header that says nothing of it."
    import pydicom
    ds = pydicom.dcmread(path)
    if ds.file_meta.TransferSyntaxUID.is_compressed: ds.decompress()
    ds.PixelData = (2 ** ds.BitsStored - 1 - ds.pixel_array).astype('uint16').tobytes()
    ds.save_as(path)


def test_images_unlike_the_training_images(place):
    "A phantom turned into its negative, among others that are as they were."
    assert run('train-density', *SMALL, '--epochs', 1, '--unfreeze-last-block', '--outdir', 'o') == 0
    exam = sorted(os.listdir(place / 'archive'))[1]
    shutil.copytree(place / 'archive' / exam, place / 'new')
    files = sorted((place / 'new').glob('*.dcm'))
    negative(files[0])
    assert run('predict', '--run', 'o/results', '--input', 'new', '--out', 'p.csv', '--num-workers', 0) == 0
    table = pd.read_csv('p.csv', keep_default_na=False).set_index('path').unlike_training
    assert table[files[0].name] != '' and (table.drop(files[0].name) == '').mean() >= .5


@pytest.mark.slow
def test_compiled_stages_learn_the_same(place):
    "torch.compile changes the time of a step, and its numbers by rounding only."
    flags = ['train-density', *SMALL, '--unfreeze-last-block', '--outdir', 'o']
    assert run(*flags) == 0 and run(*flags, '--compile') == 0
    a, b = (read(place / 'o' / r / 'train_history.json')['train_loss'] for r in ('results', 'results_1'))
    np.testing.assert_allclose(a, b, rtol=.01)
