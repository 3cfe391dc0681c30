"Command lines as people write them: those of the seeds, verbatim, and those with mistakes."
import json
import shlex

import numpy as np
import pandas as pd
import pytest
import torch

SEED_LINE = r"""train-density -- \
  --csv classificacao.csv \
  --dicom-root archive \
  --outdir outputs/mammo_efficientnetb0_density \
  --epochs 20 --batch-size 16 --img-size 512 \
  --class-weights auto --warmup-epochs 2 \
  --unfreeze-last-block"""
# The tree and the keys that the density seed lists.
SEED_TREE = ['best_model.pth', 'train_history.json', 'summary.json', 'run.log', 'data_manifest.json', 'metrics/val_metrics.json',
             'metrics/val_metrics.txt', 'metrics/confusion_matrix.npy', 'val_predictions.csv', 'embeddings_val.npy']
SEED_SUMMARY = ['arch', 'classes', 'epochs', 'batch_size', 'img_size', 'lr', 'optimizer', 'scheduler', 'warmup_epochs', 'class_weights',
                'embeddings_dir', 'cache_mode', 'seed', 'git_commit', 'timestamp']
SEED_HISTORY = ['epoch', 'train_loss', 'train_acc', 'val_loss', 'val_acc', 'val_kappa', 'val_macro_f1', 'learning_rate']


def words(line: str) -> list[str]: return shlex.split(line.replace('\\\n', ' '))


def check_tree(run, epochs: int):
    assert [f for f in SEED_TREE if not (run / f).exists()] == []
    summary, history = (json.loads((run / f'{n}.json').read_text()) for n in ('summary', 'train_history'))
    assert [k for k in SEED_SUMMARY if k not in summary] == []
    assert [k for k in SEED_HISTORY if len(history.get(k, ())) != epochs] == []
    assert (summary['classes'], summary['lr'], summary['seed'], summary['optimizer'], summary['scheduler']) == ('density', 1e-4, 42, 'adam', 'cosine')
    predictions = pd.read_csv(run / 'val_predictions.csv', dtype=str)
    assert list(predictions.columns[:7]) == ['sample_id', 'true_label', 'pred_label', 'prob_1', 'prob_2', 'prob_3', 'prob_4']
    assert predictions.sample_id.str.fullmatch(r'ACC\d{3}_[LR]_(CC|MLO)(_\d)?').all()
    assert np.load(run / 'metrics/confusion_matrix.npy').shape == (4, 4)
    assert np.load(run / 'embeddings_val.npy').shape == (len(predictions), 1280)
    return summary, history, predictions


def test_the_seed_line_in_small(study, mammography, tmp_path):
    "Every flag of the line, with fewer pixels and epochs."
    line = words(SEED_LINE.replace('--epochs 20', '--epochs 2').replace('512', '64').replace('outputs/', f'{tmp_path}/'))
    done = mammography(*line, cwd=study)
    summary, history, predictions = check_tree(tmp_path / 'mammo_efficientnetb0_density/results', 2)
    assert summary['trainable_parameters'] == 717_232 + 412_160 + 5_124
    assert summary['weights_record']['source'] == 'torchvision' and len(summary['weights_record']['sha256']) == 64
    assert 'quadratic kappa' in done.stdout and 'Selection set' in done.stdout
    assert history['learning_rate_backbone'][0] == pytest.approx(history['learning_rate'][0] / 10)


@pytest.mark.slow
def test_the_seed_line_verbatim(mammography, tmp_path):
    "60 exams, 512 pixels, 20 epochs: as it stands in the seed."
    from mammo.phantom import write_study
    write_study(tmp_path, n_exams=60, progress=False)
    mammography(*words(SEED_LINE), cwd=tmp_path)
    check_tree(tmp_path / 'outputs/mammo_efficientnetb0_density/results', 20)


def test_no_patient_leaves_a_trace(study, mammography, tmp_path):
    "Neither the log nor a table nor the console names a patient; the phantoms' identifiers are PHANTOM-…"
    done = mammography('train-density', '--arch', 'resnet18', '--img-size', 64, '--epochs', 1, '--outdir', tmp_path / 'o', '--n-boot', 0, '--num-workers', 0, cwd=study)
    texts = [p.read_text() for p in (tmp_path / 'o').rglob('*') if p.suffix in ('.json', '.csv', '.txt', '.log')]
    texts += [done.stdout, done.stderr, str(torch.load(tmp_path / 'o/results/best_model.pth', weights_only=True).keys())]
    assert len(texts) > 6 and not [t for t in texts if 'PHANTOM' in t.upper().replace('PHANTOM STUDY', '')]


def test_predict_answers_for_every_file(study, mammography, tmp_path):
    mammography('train-density', '--arch', 'resnet18', '--img-size', 64, '--epochs', 1, '--outdir', tmp_path / 'o', '--n-boot', 0, '--num-workers', 0, cwd=study)
    folder = tmp_path / 'new/exam1'
    folder.mkdir(parents=True)
    files = sorted((study / 'archive/ACC001').glob('*.dcm'))
    for i, f in enumerate(files): (folder / f'{i}.dcm').write_bytes(f.read_bytes())
    (folder / 'broken.dcm').write_bytes(files[0].read_bytes()[:5000])
    (folder / 'empty.dcm').write_bytes(b'')
    done = mammography('predict', '--run', tmp_path / 'o/results', '--input', tmp_path / 'new', '--out', tmp_path / 'p.csv')
    table = pd.read_csv(tmp_path / 'p.csv')
    assert (table.status == 'ok').sum() == len(files) and (table.status == 'refused').sum() == 2
    assert np.allclose(table[table.status == 'ok'][['prob_1', 'prob_2', 'prob_3', 'prob_4']].sum(axis=1), 1, atol=1e-5)
    assert table[table.status == 'refused'].reason.notna().all() and '2 refused' in done.stdout


@pytest.mark.parametrize('line, code, said', [
    ('train-density --csv absent.csv --dicom-root archive', 2, '--csv'),
    ('train-density --csv classificacao.csv --dicom-root absent', 2, '--dicom-root'),
    ('train-density --arch alexnet --outdir o', 2, '--arch'),
    ('train-density --imgsize 512', 2, 'Did you mean --img-size'),
    ('train-density --val-split 1.5 --arch resnet18 --img-size 64 --outdir o', 2, '--val-split'),
    ('train-density --weights absent.pth --outdir o', 2, '--weights'),
    ('train-density --class-weights 1,2 --arch resnet18 --img-size 64 --outdir o', 2, '--class-weights'),
    ('predict --run absent --input archive', 2, '--run'),
    ('explode', 2, 'no command'),
])
def test_a_mistake_is_one_line(study, mammography, tmp_path, line, code, said):
    line = line.replace('--outdir o', f'--outdir {tmp_path}/o')
    done = mammography(*words(line), cwd=study, check=False)
    assert done.returncode == code and said in done.stderr and 'Traceback' not in done.stderr
    assert done.stderr.count('mammography:') == 1 and not (tmp_path / 'o').exists()
    if '/o' not in line: assert done.stderr.count('\n') == 1


def test_weights_that_cannot_be_reached(study, mammography, tmp_path):
    "No network: the error names both ways on, and nothing is trained."
    done = mammography('train-density', '--outdir', tmp_path / 'o', cwd=study, check=False, TORCH_HOME=str(tmp_path / 'empty'),
                       https_proxy='http://127.0.0.1:9', http_proxy='http://127.0.0.1:9')
    assert done.returncode == 2 and '--weights none' in done.stderr and 'efficientnet_b0_rwightman-7f5810bc.pth' in done.stderr
    assert not (tmp_path / 'o').exists() and not list((tmp_path / 'empty').rglob('*.pth'))


def test_mini_mias(shared, mammography, tmp_path):
    "The issue's second line, with fewer pixels and epochs: three classes, patients apart, the file's own hash."
    done = mammography('train-density', '--dataset', 'mini-mias', '--csv', shared / 'data/mini-mias/density.csv', '--outdir', tmp_path / 'mias',
                       '--arch', 'mobilenet_v2', '--weights', shared / 'weights/mobilenet_v2_imagenet.pth', '--img-size', 96, '--epochs', 1, '--no-train-backbone')
    run = tmp_path / 'mias/results'
    predictions = pd.read_csv(run / 'val_predictions.csv')
    assert list(predictions.columns[3:6]) == ['prob_F', 'prob_G', 'prob_D'] and len(predictions) == 32
    manifest = json.loads((run / 'data_manifest.json').read_text())
    assert manifest['proof']['disjoint'] and manifest['counts']['patients'] == 81
    assert json.loads((run / 'summary.json').read_text())['weights_record']['source'] == 'file' and 'AUROC' in done.stdout


def test_subset_binary_and_sampler(study, mammography, tmp_path):
    "About 60 images in two classes, rare ones drawn more often; the same flags without --class-weights none correct twice and are refused."
    line = ['train-density', '--arch', 'resnet18', '--weights', 'none', '--img-size', 64, '--epochs', 1, '--outdir', tmp_path / 'o', '--n-boot', 0, '--num-workers', 0,
            '--subset', 60, '--classes', 'binary', '--sampler', 'weighted']
    done = mammography(*line, cwd=study, check=False)
    assert done.returncode == 2 and 'twice' in done.stderr and '--class-weights none' in done.stderr
    done = mammography(*line, '--class-weights', 'none', cwd=study)
    summary, table = json.loads((tmp_path / 'o/results/summary.json').read_text()), pd.read_csv(tmp_path / 'o/results/val_predictions.csv')
    assert (summary['classes'], summary['sampler'], summary['task']['labels']) == ('binary', 'weighted', ['AB', 'CD'])
    assert set(table.true_label) <= {'AB', 'CD'} and list(table.columns[3:5]) == ['prob_AB', 'prob_CD']
    assert 40 <= sum(r['images'] for r in summary['roles'].values()) < 97 and summary['roles']['train']['images'] > summary['roles']['val']['images']
    assert 'rule of thumb' in done.stderr  # everything is trained on a few dozen images


def test_freezing_flags_that_contradict_each_other(study, mammography, tmp_path):
    done = mammography('train-density', '--arch', 'resnet18', '--weights', 'none', '--no-train-backbone', '--unfreeze-last-block', '--outdir', tmp_path, cwd=study, check=False)
    assert done.returncode == 2 and '--no-train-backbone' in done.stderr and done.stderr.strip().count('\n') == 0
