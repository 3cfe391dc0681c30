"From runs to an article: the seeds' lines verbatim, the same bytes again, a fold, an author's text, and a PDF where LaTeX is installed."
import json
import re
import shutil
import subprocess
import zipfile

import numpy as np
import pandas as pd
import pytest

SMALL = '--arch resnet18 --weights none --img-size 64 --epochs 1 --batch-size 16 --n-boot 50 --num-workers 0 --precision fp32 --device cpu'.split()


@pytest.fixture(scope='module')
def home(study, mammography, tmp_path_factory):
    "A folder as the seeds expect it, with one finished run called results_4 and two folds."
    folder = tmp_path_factory.mktemp('report')
    for name in ('archive', 'classificacao.csv'): (folder / name).symlink_to(study / name)
    mammography('train-density', *SMALL, '--outdir', 'outputs/mammo_efficientnetb0_density', cwd=folder)
    made = folder / 'outputs/mammo_efficientnetb0_density'
    (made / 'results').rename(made / 'results_4')
    mammography('train-density', *SMALL, '--cv-folds', 2, '--cv-outdir', 'outputs/density_experiments/results_k3_seed42', '--seed', 42, cwd=folder)
    return folder


def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_the_seeds_line_verbatim_and_again(home, mammography):
    said = mammography('report-pack', '--', '--run', 'outputs/mammo_efficientnetb0_density/results_4', '--assets-dir', 'Article/assets', cwd=home).stdout
    first = files(home / 'Article')
    assert {'assets/density_train_seed42.png', 'assets/density_confusion_seed42.png', 'assets/density_gradcam_seed42.png', 'assets/density_gradcam_seed42.csv', 'assets/embeddings_pca_tsne.png',
            'sections/density_model.tex', 'sections/density_model.md', 'article-main.tex', 'Makefile'} == set(first)
    assert 'Article/assets/density_gradcam_seed42.png' in said
    mammography('report-pack', '--run', 'results_4', '--assets-dir', 'Article/assets', cwd=home)  # the seed's short name
    assert files(home / 'Article') == first


def test_every_number_has_its_source(home, mammography):
    "Numbers of the tables are read back from the files that they name."
    mammography('report-pack', '--run', 'results_4', '--no-gradcam', '--assets-dir', 'Numbers/assets', cwd=home)
    text, rows = (home / 'Numbers/sections/density_model.md').read_text(), 0
    for line in text.splitlines():
        if not (m := re.search(r'`(outputs/\S+\.json):(\S+)` \|$', line)): continue
        value = json.loads((home / m[1]).read_text())
        for key in m[2].split('.'): value = value[key]
        cells = [c.strip() for c in line.strip('|').split('|')]
        assert cells[1] == (f'{value:.3f}' if isinstance(value, float) else '–' if value is None else f'{value["precision"]:.3f}' if value['precision'] is not None else '–'), line
        rows += 1
    assert rows >= 12
    latex = (home / 'Numbers/sections/density_model.tex').read_text()
    assert latex.count('% outputs/') >= rows and str(home) not in text + latex


def test_a_fold_as_the_seed_says(home, mammography):
    mammography('report-pack', '--run', 'outputs/density_experiments/results_k3_seed42/fold_1', '--assets-dir', 'Folds/assets', '--per', 1, cwd=home)
    assert {'fold_1_gradcam.png', 'fold_1_train.png', 'fold_1_confusion.png'} <= {p.name for p in (home / 'Folds/assets').iterdir()}
    assert 'mammo:begin fold_1_model' in (home / 'Folds/sections/density_model.md').read_text()
    done = mammography('gradcam', '--run', 'outputs/density_experiments/results_k3_seed42', cwd=home, check=False)
    assert done.returncode == 2 and 'fold_1' in done.stderr and done.stderr.count('\n') == 1


def test_two_runs_of_one_name_are_listed_not_guessed(home, mammography):
    shutil.copytree(home / 'outputs/mammo_efficientnetb0_density/results_4', home / 'outputs/other/results_4')
    done = mammography('report-pack', '--run', 'results_4', cwd=home, check=False)
    shutil.rmtree(home / 'outputs/other')
    assert done.returncode == 2 and '2 runs are meant' in done.stderr and 'outputs/other/results_4' in done.stderr


def test_gradcam_of_the_run(home, mammography):
    said = mammography('gradcam', '--run', 'results_4', '--images', 8, '--audit-images', 3, '--per', 1, '--n-boot', 50, '--cmap', 'rainbow', cwd=home).stdout
    run = home / 'outputs/mammo_efficientnetb0_density/results_4'
    assert 'be trusted?' in said and 'By class' in said
    examples, predictions = pd.read_csv(run / 'gradcam/val_examples.csv', dtype={'label': str}), pd.read_csv(run / 'val_predictions.csv')
    joined = examples.merge(predictions, on='sample_id')
    assert len(joined) == len(examples) and np.allclose(joined.prob, joined[[f'prob_{k}' for k in (1, 2, 3, 4)]].max(axis=1), atol=1e-6)
    told = json.loads((run / 'gradcam/val.json').read_text())
    assert told['n'] == 8 and set(told['audit']['views']) == {''} and told['git_commit']
    ids = set(predictions.sample_id) | set(predictions.patient_key)
    assert not any(str(i) in (run / 'gradcam/val.md').read_text() for i in ids)


def test_eval_export_holds_together(home, mammography):
    mammography('eval-export', '--run', 'results_4', '--out', 'handed_over', cwd=home)
    out, again = files(home / 'handed_over'), (home / 'handed_over.zip').read_bytes()
    assert subprocess.run(['sha256sum', '--check', '--quiet', 'SHA256SUMS'], cwd=home / 'handed_over').returncode == 0
    with zipfile.ZipFile(home / 'handed_over.zip') as z: assert {n.partition('/')[2]: z.read(n) for n in z.namelist()} == out
    assert not any(str(home).encode() in b for b in out.values())
    mammography('eval-export', '--run', 'results_4', '--out', 'handed_over', cwd=home)
    assert (home / 'handed_over.zip').read_bytes() == again and files(home / 'handed_over') == out
    done = mammography('eval-export', '--run', 'outputs/density_experiments/results_k3_seed42/fold_1', '--out', 'handed_over', cwd=home, check=False)
    assert done.returncode == 2 and '--overwrite' in done.stderr


@pytest.mark.skipif(shutil.which('latexmk') is None, reason='latexmk is not installed')
def test_make_compile_builds_the_pdf(home, mammography):
    mammography('report-pack', '--run', 'results_4', '--assets-dir', 'Paper/assets', '--per', 1, cwd=home)
    subprocess.run(['make', 'compile'], cwd=home / 'Paper', check=True, capture_output=True)
    assert (home / 'Paper/output/article-main-v2.pdf').read_bytes().startswith(b'%PDF')
    log = (home / 'Paper/output/article-main-v2.log').read_text(errors='replace')
    assert 'Overfull \\hbox' not in log and 'undefined' not in log.lower()


def test_mlflow_that_is_not_there_is_said(home, mammography):
    try: import mlflow  # noqa: F401
    except ImportError:
        done = mammography('eval-export', '--run', 'results_4', '--out', 'with_mlflow', '--mlflow', cwd=home, check=False)
        assert done.returncode == 2 and '--mlflow' in done.stderr and 'pip install mlflow' in done.stderr
    else:
        uri = {'MLFLOW_TRACKING_URI': f'sqlite:///{home}/mlflow.db'}
        for _ in range(2): mammography('eval-export', '--run', 'results_4', '--out', 'with_mlflow', '--mlflow', cwd=home, **uri)
        mlflow.set_tracking_uri(uri['MLFLOW_TRACKING_URI'])
        runs = mlflow.search_runs(search_all_experiments=True)
        assert len(runs) == 1 and np.isclose(runs['metrics.val_accuracy'][0], json.loads((home / 'outputs/mammo_efficientnetb0_density/results_4/metrics/val_metrics.json').read_text())['accuracy'])
