"Ensembles of finished runs: what a notebook cannot say. Test labels decide nothing, runs of other images are refused, real spine images go through, and the folder can be trusted."
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from mammo.config import DataConfig, EnsembleConfig, ImageConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from mammo.core import ConfigError, RunError, Task
from mammo.endpoints import best_f1

SPINE = Task('spine', ('no_finding', 'pathology'), display=('no finding', 'pathology'))


def pictures(folder: Path, n: int, seed: int) -> Path:
    "A folder a class, a folder a patient; pathology is a bright spot in noise."
    rng = np.random.default_rng(seed)
    for i in range(n):
        img, (y, x) = rng.normal(90, 30, (72, 72)), rng.integers(16, 56, 2)
        if sick := i % 5 < 3: img += rng.uniform(10, 80) * np.exp(-((np.arange(72)[:, None] - y) ** 2 + (np.arange(72) - x) ** 2) / 100)
        place = folder / ('pathology' if sick else 'no_finding') / f'p{i:03d}'
        place.mkdir(parents=True)
        Image.fromarray(img.clip(0, 255).astype(np.uint8)).save(place / f'x{i:03d}.png')
    return folder


def settings(outdir: Path, arch: str, size: int, seed: int = 42, loss: str = 'binary', **data) -> TrainConfig:
    return TrainConfig(data=DataConfig(**({'val_split': .3, 'test_split': .3} | data)), image=ImageConfig(img_size=size, region='full', cache_dir=outdir / 'cache'), model=ModelConfig(arch=arch, weights='none', dropout=0),
                       optim=OptimConfig(epochs=2, lr=2e-3, backbone_lr=2e-3, warmup_epochs=0, loss=loss), run=RunConfig(outdir=outdir, seed=seed, precision='fp32', n_boot=0, num_workers=0))


def folders(root: Path):
    from mammo.manifest import DataSet, class_folders
    def data_of(_):
        data = class_folders(root, labels=SPINE.labels, workers=0)
        return DataSet('spine', SPINE, data.manifest, data.audit)
    return data_of


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Three runs of two backbones, sizes and losses on the same images."
    from mammo.pipeline import train
    tmp = tmp_path_factory.mktemp('ensemble')
    data_of = folders(pictures(tmp / 'pictures', 60, 0))
    runs = [train(data_of(None), c) for c in (settings(tmp / 'runs', 'resnet18', 64), settings(tmp / 'runs', 'mobilenet_v2', 48), settings(tmp / 'runs', 'resnet18', 48, 43, 'cross_entropy'))]
    return tmp, data_of, [r.path for r in runs]


@pytest.fixture(scope='module')
def made(world):
    from mammo.ensembling import ensemble
    tmp, data_of, runs = world
    return ensemble(EnsembleConfig(tuple(runs), outdir=tmp / 'made', n_boot=200, num_workers=0), data_of)


def read(run):
    said = run.read_json('ensemble')
    return said, pd.read_csv(run.file('ensemble_table'), keep_default_na=False, na_values=['']), pd.read_csv(run.file('submission'))


def with_other_truth(run: Path, to: Path) -> Path:
    "A copy of a finished run whose test labels are turned round, predictions untouched; its metrics say what follows from that."
    from mammo.comparing import score_figures
    shutil.copytree(run, to)
    path = to / 'test_predictions.csv'
    t = pd.read_csv(path, dtype=str, keep_default_na=False)
    t['true_label'] = [SPINE.labels[1 - SPINE.index(l)] for l in t.true_label]
    t.to_csv(path, index=False)
    index = lambda c: np.array([SPINE.index(l) for l in t[c]])
    metrics = json.loads((to / 'metrics/test_metrics.json').read_text())
    order = t.sample_id.argsort().to_numpy()
    figures = score_figures(index('true_label')[order], index('pred_label')[order], t[SPINE.prob_columns].astype(float).to_numpy()[order])
    (to / 'metrics/test_metrics.json').write_text(json.dumps(metrics | figures))
    return to


def test_test_labels_choose_nothing(world, made, tmp_path):
    "Every test label is turned round: weights, thresholds, the opponent and the submission stay, byte for byte; the figures on test do not."
    from mammo.ensembling import ensemble
    tmp, data_of, runs = world
    turned = [with_other_truth(r, tmp_path / str(i) / 'results') for i, r in enumerate(runs)]
    again = ensemble(EnsembleConfig(tuple(turned), outdir=tmp_path / 'made', n_boot=0, num_workers=0, csv=None), data_of)
    (a, table_a, _), (b, table_b, _) = read(made), read(again)
    assert made.file('submission').read_bytes() == again.file('submission').read_bytes()
    assert a['weights'] == b['weights'] and a['threshold'] == b['threshold'] and table_a.threshold.tolist() == table_b.threshold.tolist()
    assert [c['single'] for c in a['comparisons']] == [c['single'] for c in b['comparisons']]
    on = lambda t, role: t[t.role == role].auroc.to_numpy()
    assert np.array_equal(on(table_a, 'val'), on(table_b, 'val'))
    np.testing.assert_allclose(on(table_a, 'test'), 1 - on(table_b, 'test'), atol=1e-12)
    assert {w['chosen_on'] for w in (a['weights'], a['threshold'])} == {'val'} and 'true_label' not in made.file('submission').read_text()


def test_the_ensemble_is_computed(world, made):
    "Its row is that of the average, worked out again with scikit-learn, and is no copy of a model's row, which is what the seed's table has."
    from mammo.ensemble import tta
    from mammo.looking import look
    tmp, data_of, runs = world
    said, table, handed = read(made)
    looks = [look(r, data_of, 'test', num_workers=0) for r in runs]
    score = sum(w * tta(l.learners, l.images, l.rows)[:, 1] for w, l in zip(said['weights']['weights'], looks))
    truth, called = looks[0].t.table.target.to_numpy() == 1, score >= said['threshold']['threshold']
    np.testing.assert_allclose(handed.probability, score, atol=1e-6)
    assert handed.sample_id.tolist() == looks[0].rows.sample_id.tolist() and handed.label.tolist() == [SPINE.labels[int(c)] for c in called]
    rows = table[table.role == 'test'].set_index('answer')
    own = rows.loc['ensemble + TTA']
    np.testing.assert_allclose(own[['auroc', 'f1', 'sensitivity', 'specificity', 'accuracy']].astype(float),
                               [sk.roc_auc_score(truth, score), sk.f1_score(truth, called), sk.recall_score(truth, called), sk.recall_score(truth, called, pos_label=0), (truth == called).mean()], atol=1e-6)
    for l in looks:
        for probs in (l.probs[:, 1], tta(l.learners, l.images, l.rows)[:, 1]): assert np.abs(probs - score).max() > 1e-3
    assert list(rows.index) == ['resnet18 #1', 'resnet18 #1 + TTA', 'mobilenet_v2', 'mobilenet_v2 + TTA', 'resnet18 #2', 'resnet18 #2 + TTA', 'ensemble', 'ensemble + TTA']
    assert (rows.n == len(truth)).all() and rows.auroc_low.notna().any()


def test_thresholds_are_the_seeds(world, made):
    "The loop of the seed, on the same validation scores."
    from mammo.looking import look
    tmp, data_of, runs = world
    said, table, _ = read(made)
    for name, l in zip(('resnet18 #1', 'mobilenet_v2', 'resnet18 #2'), (look(r, data_of, 'val', num_workers=0) for r in runs)):
        from mammo.pipeline import answer
        score, truth = answer(l.learners, l.images, l.rows).probs[:, 1].astype(float), l.t.table.target.to_numpy()
        best, at = 0, .5
        for tau in np.arange(.35, .60, .001):
            f1 = sk.f1_score(truth, (score >= tau).astype(int), zero_division=0)
            if f1 > best: best, at = f1, tau
        found = best_f1(score, truth)
        assert (found['threshold'], found['f1']) == (at, best)
        assert abs(table[(table.role == 'val') & (table.answer == name)].threshold.iloc[0] - at) < 1e-12


def test_given_weights_without_mirror_images(world, tmp_path):
    from mammo.ensembling import ensemble
    from mammo.looking import look
    tmp, data_of, runs = world
    done = ensemble(EnsembleConfig(tuple(runs), outdir=tmp_path, weights=(1, 1, 2), tta=False, n_boot=0, num_workers=0), data_of)
    said, table, handed = read(done)
    assert said['weights'] == {'weights': [.25, .25, .5], 'how': 'given', 'chosen_on': None} and not table.tta.any() and len(table) == 8
    looks = [look(r, data_of, 'test', num_workers=0) for r in runs]
    np.testing.assert_allclose(handed.probability, sum(w * l.probs[:, 1] for w, l in zip((.25, .25, .5), looks)), atol=1e-5)
    assert table.auroc_low.isna().all() and 'None' not in done.file('ensemble_report').read_text()


def test_what_does_not_belong_together_is_refused(world, tmp_path):
    from mammo.ensembling import ensemble
    from mammo.manifest import DataSet
    from mammo.pipeline import train
    tmp, data_of, runs = world
    c = settings(tmp_path / 'other', 'mobilenet_v2', 32, split_seed=9)
    other = train(data_of(None), replace(c, optim=replace(c.optim, epochs=1)))
    with pytest.raises(RunError, match=r'differ in \d+ val images or labels'): ensemble(EnsembleConfig((runs[0], other.path), outdir=tmp_path / 'a', num_workers=0), data_of)
    task = Task('binary', SPINE.labels)
    c = settings(tmp_path / 'task', 'mobilenet_v2', 32)
    twin = train(DataSet('toy', task, data_of(None).manifest, []), replace(c, optim=replace(c.optim, epochs=1)))
    with pytest.raises(RunError, match='has the task binary'): ensemble(EnsembleConfig((runs[0], twin.path), outdir=tmp_path / 'a', num_workers=0), data_of)
    fused = shutil.copytree(runs[1], tmp_path / 'fused')
    known = json.loads((fused / 'config.json').read_text())
    known['settings']['embeddings_dir'] = 'somewhere'
    (fused / 'config.json').write_text(json.dumps(known))
    with pytest.raises(ConfigError, match='fuses features'): ensemble(EnsembleConfig((runs[0], fused), outdir=tmp_path / 'a', num_workers=0), data_of)
    assert not (tmp_path / 'a').exists()


def test_other_pixels_under_the_same_names_are_refused(world, tmp_path):
    "Names and labels of another data set may agree; the files do not."
    from mammo.ensembling import ensemble
    from mammo.pipeline import train
    tmp, data_of, runs = world
    strange = folders(pictures(tmp_path / 'pictures', 60, 5))
    c = settings(tmp_path / 'runs', 'mobilenet_v2', 32)
    other = train(strange(None), replace(c, optim=replace(c.optim, epochs=1)))
    mine = lambda cfg: (strange if cfg.image.img_size == 32 else data_of)(cfg)
    with pytest.raises(RunError, match=r'differ in \d+ val files'): ensemble(EnsembleConfig((runs[0], other.path), outdir=tmp_path / 'a', n_boot=0, num_workers=0), mine)


def test_new_images_and_runs_without_test_images(world, tmp_path):
    "One row a file, refused ones too; without test images nothing is claimed."
    from mammo.ensembling import ensemble
    from mammo.pipeline import train
    tmp, data_of, runs = world
    pair = [train(data_of(None), replace(c, optim=replace(c.optim, epochs=1))).path for c in (settings(tmp_path / 'runs', 'mobilenet_v2', s, test_split=0.) for s in (32, 40))]
    new = tmp_path / 'new'
    new.mkdir()
    for p in sorted(pictures(tmp_path / 'fresh', 5, 77).rglob('*.png')): shutil.copy(p, new)
    (new / 'broken.png').write_bytes(b'nothing')
    done = ensemble(EnsembleConfig(tuple(pair), outdir=tmp_path / 'made', input=(new,), n_boot=0, num_workers=0), data_of)
    said, table, handed = read(done)
    assert set(table.role) == {'val'} and 'no claim' in said['warnings'][-2] + said['warnings'][-1] and 'optimistic' in done.file('ensemble_report').read_text()
    assert handed.status.value_counts().to_dict() == {'ok': 5, 'refused': 1} and handed.reason.dropna().tolist() == ['unreadable']
    assert handed.probability.notna().sum() == 5 and (said['submission']['n'], said['submission']['n_refused']) == (5, 1)
    assert not [p for p in tmp_path.rglob('*') if p.name.startswith('ensemble') and str(tmp_path) in p.read_text(errors='ignore')]
    for p in new.glob('x*'): p.unlink()
    none = ensemble(EnsembleConfig(tuple(pair), outdir=tmp_path / 'none', input=(new,), n_boot=0, num_workers=0), data_of)
    assert read(none)[2].status.tolist() == ['refused'] and none.read_json('ensemble')['submission']['n'] == 0


def test_a_mixture_with_and_without_test_images_claims_nothing(world, tmp_path):
    "What one run keeps for its test, another may have learned from."
    from mammo.ensembling import trainings
    tmp, data_of, runs = world
    bare = shutil.copytree(runs[1], tmp_path / 'bare')
    (bare / 'test_predictions.csv').unlink()
    assert list(trainings(EnsembleConfig((runs[0], bare)))) == ['val']


@pytest.mark.slow
def test_real_spine_images(shared, tmp_path):
    "99 radiographs, two small models from random weights: nothing to claim, everything to go through."
    from mammo.ensembling import ensemble
    from mammo.manifest import DataSet, image_csv
    from mammo.pipeline import train
    root = shared / 'data/spine'
    labels = Task('spine', ('0', '1'), display=('no finding', 'pathology'))
    def data_of(_): return image_csv(_table(root, tmp_path), root, task=labels, name='spine', workers=0)
    runs = [train(data_of(None), settings(tmp_path / 'runs', 'mobilenet_v2', 64, s)).path for s in (1, 2)]
    said, table, handed = read(ensemble(EnsembleConfig(tuple(runs), outdir=tmp_path / 'made', n_boot=100, num_workers=0), data_of))
    assert len(handed) == said['roles']['test']['n'] == (table[table.role == 'test'].n.unique()[0]) and table.f1.notna().all()


def _table(root: Path, to: Path) -> Path:
    "labels.csv with the columns of an image table."
    with open(root / 'labels.csv') as f: rows = list(csv.DictReader(f))
    path = to / 'labels.csv'
    pd.DataFrame({'path': [r['file'] for r in rows], 'label': [r['label'] for r in rows], 'patient': [r['file'] for r in rows]}).to_csv(path, index=False)
    return path
