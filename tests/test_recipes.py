"Spine and chest from the command line, on drawn films; and on real ones where they are."
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

SMALL = ['--arch', 'resnet18', '--weights', 'none', '--img-size', 48, '--n-boot', 50, '--num-workers', 0, '--precision', 'fp32', '--device', 'cpu']
CHEST = ['train-chest', '--', '--csv', 'Data_Entry_2017.csv', '--image-root', '.', *SMALL, '--batch-size', 16, '--phases', 'frozen:train_backbone=no,epochs=2', 'fine:unfreeze_layers=12,lr=1e-3,backbone_lr=1e-3,epochs=2', '--high-res', 64]
SPINE = ['train-spine', '--csv', 'labels.csv', '--image-root', '.', *SMALL, '--epochs', 3, '--batch-size', 8, '--lr', '1e-3', '--backbone-lr', '1e-3', '--val-split', .25, '--test-split', .25]


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "70 patients in the layout of ChestX-ray14; two of the pictures are damaged, one in each list."
    from mammo.xrayphantom import write_chests
    folder = tmp_path_factory.mktemp('films')
    write_chests(folder, 70, seed=4, size=64)
    for name in ('train_val_list.txt', 'test_list.txt'): (folder / 'images' / (folder / name).read_text().split()[0]).write_bytes(b'no picture')
    return folder


@pytest.fixture(scope='module')
def spines(tmp_path_factory):
    from mammo.xrayphantom import write_spines
    folder = tmp_path_factory.mktemp('spines')
    write_spines(folder, 60, rows=96, columns=48)
    return folder


@pytest.fixture(scope='module')
def chest(films, mammography, tmp_path_factory):
    "Standard output and run directory."
    out = tmp_path_factory.mktemp('chest')
    return mammography(*CHEST, '--outdir', out / 'o', cwd=films).stdout, out / 'o/results'


def answers(run, role): return pd.read_csv(run / f'{role}_predictions.csv', dtype={'sample_id': str})


def test_chest_keeps_the_publishers_test_list(films, chest):
    _, run = chest
    listed = set((films / 'test_list.txt').read_text().split())
    manifest = json.loads((run / 'data_manifest.json').read_text())
    tested = {s + '.png' for s in manifest['roles']['test']}
    assert tested == listed - {(films / 'test_list.txt').read_text().split()[0]}  # the damaged one is a row of the audit
    assert [r['reason'] for r in manifest['audit']['rows']].count('unreadable') == 2
    who = pd.read_csv(films / 'Data_Entry_2017.csv').set_index('Image Index')['Patient ID']
    patients = [set(who[[s + '.png' for s in names]]) for names in manifest['roles'].values()]
    assert len(patients) == 3 and all(not a & b for i, a in enumerate(patients) for b in patients[:i])


def test_chest_hands_over_what_the_seed_lists(chest):
    said, run = chest
    assert 'criteria for the pass at a higher resolution' in said and 'Pneumothorax' in said
    per_label, cells, summary = (pd.read_csv(run / f'{n}.csv') for n in ('eval_per_label_auroc', 'confusion_template', 'eval_summary'))
    fixed = json.loads((run / 'thresholds.json').read_text())
    t = answers(run, 'test')
    for r in cells[cells.role == 'test'].itertuples():
        called, truth = t[f'prob_{r.label}'] >= fixed[r.label]['threshold'], t[f'true_{r.label}'] == 1
        assert (r.TP, r.FP, r.TN, r.FN) == tuple(int(x.sum()) for x in (called & truth, called & ~truth, ~called & ~truth, ~called & truth)), r.label
        assert (t[f'pred_{r.label}'] == called).all()
    from sklearn.metrics import f1_score, roc_auc_score
    truth, called, probs = (t[[f'{w}_{l}' for l in fixed]].to_numpy() for w in ('true', 'pred', 'prob'))
    row = summary.set_index('role').loc['test']
    for kind in ('macro', 'micro', 'weighted'): assert row[f'{kind}_f1'] == pytest.approx(f1_score(truth, called, average=kind, zero_division=0), abs=1e-6) or kind == 'macro'
    own = per_label[per_label.role == 'test'].set_index('label').auroc
    for i, l in enumerate(fixed):
        if 0 < truth[:, i].sum() < len(truth): assert own[l] == pytest.approx(roc_auc_score(truth[:, i], probs[:, i]), abs=1e-6)
    assert [p['IMG_SIZE'] for p in json.loads((run / 'config_snapshot.json').read_text())['phases']] == [48, 48, 64]
    kept = json.loads((run / 'summary.json').read_text())['kept']['phase']
    assert kept in pd.read_csv(run / 'phases.csv').phase.tolist()


def test_test_labels_change_nothing_but_test_figures(films, chest, mammography, tmp_path):
    "Thresholds, weights and the phase that is kept never see a test row: with every test label turned they come out the same."
    _, run = chest
    shutil.copytree(films, tmp_path / 'films')
    table = pd.read_csv(films / 'Data_Entry_2017.csv')
    listed = set((films / 'test_list.txt').read_text().split())
    turned = table['Finding Labels'].where(~table['Image Index'].isin(listed), np.where(table['Finding Labels'] == 'No Finding', 'Mass|Nodule|Effusion', 'No Finding'))
    table.assign(**{'Finding Labels': turned}).to_csv(tmp_path / 'films/Data_Entry_2017.csv', index=False)
    mammography(*CHEST, '--outdir', tmp_path / 'o', cwd=tmp_path / 'films')
    other = tmp_path / 'o/results'
    for name in ('thresholds.json', 'val_predictions.csv', 'phases.csv'): assert (other / name).read_bytes() == (run / name).read_bytes(), name
    a, b = (torch.load(r / 'best_model.pth', weights_only=True) for r in (run, other))
    assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model']) and a['objective'] == b['objective']
    probs = [c for c in answers(run, 'test') if c.startswith('prob_')]
    assert answers(run, 'test')[probs].equals(answers(other, 'test')[probs])
    assert not answers(run, 'test').filter(like='true_').equals(answers(other, 'test').filter(like='true_'))


@pytest.mark.slow
def test_a_killed_phase_goes_on(films, chest, tmp_path):
    "kill -9 in the second phase, then --resume: the same run as one that nobody disturbed."
    _, run = chest
    command = [sys.executable, '-c', 'import sys; from mammo.cli import main; sys.exit(main())', *map(str, CHEST), '--outdir', str(tmp_path / 'o')]
    own = tmp_path / 'o/results'
    process = subprocess.Popen(command, cwd=films, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (own / 'phase_2/train_history.json').exists(): time.sleep(.02)
    assert process.poll() is None, 'it ended before it could be killed'
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (own / 'summary.json').exists() and (own / 'phase_1/summary.json').exists()
    subprocess.run([*command, '--resume'], cwd=films, check=True, capture_output=True)
    assert [p.name for p in (tmp_path / 'o').iterdir()] == ['results']
    for name in ('val_predictions.csv', 'test_predictions.csv', 'thresholds.json'): assert (own / name).read_bytes() == (run / name).read_bytes(), name


def test_unknown_findings_count_nowhere(films, mammography, tmp_path):
    "A table with empty cells and −1: the known cells alone are counted, and a label that stands in no table is named."
    table = pd.read_csv(films / 'Data_Entry_2017.csv')
    labels = json.loads(json.dumps(['Atelectasis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Mass', 'Nodule', 'Pneumonia', 'Pneumothorax']))
    own = pd.DataFrame({'path': 'images/' + table['Image Index'], 'patient': table['Patient ID']} | {l: table['Finding Labels'].str.contains(l).astype(int).astype(object) for l in labels})
    rng = np.random.default_rng(0)
    for l, gap in (('Mass', ''), ('Nodule', -1)): own.loc[rng.random(len(own)) < .3, l] = gap
    own.to_csv(tmp_path / 'own.csv', index=False)
    line = ['train-chest', '--csv', tmp_path / 'own.csv', '--image-root', films, *SMALL, '--phases', 'head:train_backbone=no,epochs=1', '--test-split', .2, '--outdir', tmp_path / 'o']
    mammography(*line)
    counts = json.loads((tmp_path / 'o/results/data_manifest.json').read_text())['counts']['labels']
    assert counts['Mass']['unknown'] > 20 and counts['Nodule']['unknown'] > 20 and counts['Effusion']['unknown'] == 0
    rows = pd.read_csv(tmp_path / 'o/results/eval_per_label_auroc.csv').set_index(['role', 'label'])
    t = answers(tmp_path / 'o/results', 'test')
    assert rows.loc[('test', 'Mass'), 'n'] == t.true_Mass.notna().sum() < len(t)
    own.drop(columns=labels).to_csv(tmp_path / 'own.csv', index=False)
    done = mammography(*line, check=False)
    assert done.returncode == 2 and 'Atelectasis' in done.stderr and done.stderr.count('\n') == 1


def test_spine_and_its_checkpoint(spines, mammography, tmp_path):
    "The checkpoint of the seed loads into torchvision's own network and says what the run says; the threshold is that of val."
    from torchvision.models import get_model
    said = mammography(*SPINE, '--outdir', tmp_path / 'o', cwd=spines).stdout
    run = tmp_path / 'o/results'
    assert 'pathology against no finding, threshold' in said
    ckpt = torch.load(tmp_path / 'o/checkpoints/resnet18_best.pth', weights_only=True)
    assert set(ckpt) >= {'model_state_dict', 'optimizer_state_dict', 'epoch', 'best_auroc', 'metrics'} and set(ckpt['metrics']) >= {'auroc', 'sensitivity', 'specificity', 'f1_score'}
    get_model('resnet18', weights=None, num_classes=1).load_state_dict(ckpt['model_state_dict'], strict=True)
    assert len(pd.read_csv(tmp_path / 'o/checkpoints/training_logs/resnet18_log.csv')) == 3
    fixed, t = json.loads((run / 'thresholds.json').read_text())['pathology'], answers(run, 'val')
    from sklearn.metrics import f1_score
    grid = np.round(.35 + .001 * np.arange(250), 10)
    best, at = 0, .5
    for tau in grid:  # the seed's search
        if (f1 := f1_score(t.true_label == 'pathology', t.prob_pathology >= tau, zero_division=0)) > best: best, at = f1, tau
    assert fixed['threshold'] == pytest.approx(at) and fixed['f1'] == pytest.approx(best) and fixed['chosen_on'] == 'val'
    assert ((answers(run, 'test').prob_pathology >= fixed['threshold']) == (answers(run, 'test').pred_label == 'pathology')).all()
    out = tmp_path / 'new.csv'
    mammography('predict', '--run', run, '--input', spines / 'images', '--out', out, '--num-workers', 0)
    new = pd.read_csv(out)
    assert len(new) == 60 and ((new.prob_pathology >= fixed['threshold']) == (new.pred_label == 'pathology')).all()
    from mammo.xrayphantom import write_spines
    mammography('validate', '--run', run, '--csv', write_spines(tmp_path / 'site', 20, seed=9, rows=96, columns=48), '--out', tmp_path / 'v', '--n-boot', 20, '--num-workers', 0)
    assert json.loads((tmp_path / 'v/validation.json').read_text())['endpoint']['threshold']['threshold'] == pytest.approx(fixed['threshold'])


def test_copies_of_a_film_stand_on_one_side(spines, mammography, tmp_path):
    "Without patients, images that look alike are one patient, so no copy of a training image is tested."
    from PIL import Image
    shutil.copytree(spines, tmp_path / 's')
    table = pd.read_csv(tmp_path / 's/labels.csv').drop(columns='patient')
    copies = []
    for i, f in enumerate(table.file[:20]):
        Image.open(tmp_path / 's' / f).save(tmp_path / 's/images' / f'copy_{i:02d}.jpg', quality=80)
        copies.append(f'images/copy_{i:02d}.jpg')
    pd.concat([table, table[:20].assign(file=copies)]).to_csv(tmp_path / 's/labels.csv', index=False)
    mammography(*SPINE, '--epochs', 1, '--outdir', tmp_path / 'o', cwd=tmp_path / 's')
    manifest = json.loads((tmp_path / 'o/results/data_manifest.json').read_text())
    role = {s: r for r, names in manifest['roles'].items() for s in names}
    assert all(role[f'copy_{i:02d}'] == role[f'spine_{i:04d}'] for i in range(20))
    assert 'look_alike' in manifest['audit']['counts']


@pytest.mark.parametrize('arch, stem', [('densenet121', 'densenet121'), ('efficientnet_v2_s', 'efficientnetv2_s'), ('resnet50', 'resnet50')])
@pytest.mark.slow
def test_the_three_networks_of_the_spine_seed(spines, mammography, tmp_path, arch, stem):
    "Their own settings, fewer pixels and epochs."
    more = ['--phases', '32 px:img_size=32,epochs=1', '48 px:epochs=1'] if arch.startswith('eff') else []
    mammography('train-spine', '--', '--arch', arch, '--csv', 'labels.csv', '--image-root', '.', '--outdir', tmp_path / 'o', *SMALL[2:], '--epochs', 1, *more, cwd=spines)
    assert (tmp_path / f'o/checkpoints/{stem}_best.pth').is_file() and (tmp_path / f'o/checkpoints/training_logs/{stem}_log.csv').is_file()


def test_on_real_films(shared, mammography, tmp_path):
    "Learned features, the head alone: well above chance on the spines, whose scoliosis shows at any size; the chest films at 64 px only have to pass through."
    weights = ['--arch', 'mobilenet_v2', '--weights', shared / 'weights/mobilenet_v2_imagenet.pth', '--mean', .5, .5, .5, '--std', .5, .5, .5, '--num-workers', 0, '--n-boot', 100]
    data = shared / 'data'
    mammography('train-spine', '--csv', data / 'spine/labels.csv', '--image-root', data / 'spine', '--outdir', tmp_path / 's', *weights, '--img-size', 128, '--no-train-backbone', '--lr', '3e-3', '--epochs', 12, '--test-split', .3)
    metrics = json.loads((tmp_path / 's/results/metrics/test_metrics.json').read_text())
    assert metrics['auroc_macro'] > .75 and metrics['n'] > 25
    mammography('train-chest', '--csv', data / 'nih-64/labels.csv', '--image-root', data / 'nih-64', '--outdir', tmp_path / 'c', *weights, '--img-size', 64, '--phases', 'frozen:train_backbone=no,epochs=2', '--test-split', .3)
    metrics = json.loads((tmp_path / 'c/results/metrics/test_metrics.json').read_text())
    assert metrics['n_patients'] > 30 and len(metrics['per_class']) == 8
