"The metrics against hand-worked tables, against scikit-learn on the data and on every kind of resample, and against the clock."
import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from mammo.core import DataError, Task
from mammo.metrics import confusion, confusion_metrics, evaluate, format_metrics, headline, quick_metrics, resample_counts, selection_key, statistic_for

DENSITY = Task('density', ('1', '2', '3', '4'), display=('A', 'B', 'C', 'D'))
CHEST = Task('chest', ('mass', 'nodule', 'edema'), kind='multilabel')


def multiclass(n_patients=80, views=4, k=4, seed=0, digits=2):
    "Truth, probabilities with many ties, patients."
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_patients), views)
    target = np.concatenate([np.arange(k), rng.integers(k, size=n_patients - k)])[group]
    probs = rng.dirichlet(np.ones(k), len(group)) + 1.5 * np.eye(k)[target] * rng.random((len(group), 1))
    steps = np.floor(probs / probs.sum(1, keepdims=True) * 10 ** digits)
    steps[:, -1] = 10 ** digits - steps[:, :-1].sum(1)
    return target, steps / 10 ** digits, group


def multilabel(n=400, seed=0):
    rng = np.random.default_rng(seed)
    target = (rng.random((n, 3)) < [.4, .2, .1]).astype(float)
    probs = np.round(1 / (1 + np.exp(-(2 * target - 1 + rng.normal(size=target.shape)))), 2)
    target[rng.random(target.shape) < .25] = np.nan
    return target, probs, np.arange(n) // 2


def by_sklearn(target, probs, decoded, k):
    "The whole table, computed by scikit-learn."
    f1 = {a: sk.f1_score(target, decoded, average=a) for a in ('macro', 'weighted')}
    kappa = {w or 'unweighted': sk.cohen_kappa_score(target, decoded, weights=w, labels=range(k)) for w in (None, 'linear', 'quadratic')}
    area = [sk.roc_auc_score(target == c, probs[:, c]) for c in range(k)]
    ap = [sk.average_precision_score(target == c, probs[:, c]) for c in range(k)]
    balanced = sk.balanced_accuracy_score(target, decoded)
    return {'accuracy': sk.accuracy_score(target, decoded), 'balanced_accuracy': balanced, 'bal_acc_adj': (balanced - 1 / k) / (1 - 1 / k),
            **{f'kappa_{w}': v for w, v in kappa.items()}, 'macro_f1': f1['macro'], 'weighted_f1': f1['weighted'], 'auroc_macro': np.mean(area),
            'average_precision': np.mean(ap), 'log_loss': sk.log_loss(target, probs, labels=range(k))}


# Four tables worked by hand: rows are the truth.
# 1. perfect: everything is 1.
# 2. two by two, 20 + 5 against 10 + 15 (50 images): accuracy 35/50; margins 25/25 and 30/20, so chance agreement 1/2 and kappa .4; recalls .8 and .6.
# 3. always the middle of three classes with 2, 6, 2 images: recalls 0, 1, 0; the margins explain everything, so kappa is 0; F1 of the middle 12/16.
# 4. reversed order, one image a class of three: linear 1 - 4 / (8/3), quadratic 1 - 8 / 4, accuracy 1/3.
TABLES = [
    ([[3, 0, 0], [0, 2, 0], [0, 0, 4]], dict(accuracy=1, balanced_accuracy=1, bal_acc_adj=1, kappa_unweighted=1, kappa_linear=1, kappa_quadratic=1, macro_f1=1, weighted_f1=1)),
    ([[20, 5], [10, 15]], dict(accuracy=.7, balanced_accuracy=.7, bal_acc_adj=.4, kappa_unweighted=.4, kappa_linear=.4, kappa_quadratic=.4, macro_f1=(40 / 55 + 30 / 45) / 2)),
    ([[0, 2, 0], [0, 6, 0], [0, 2, 0]], dict(accuracy=.6, balanced_accuracy=1 / 3, bal_acc_adj=0, kappa_unweighted=0, kappa_linear=0, kappa_quadratic=0, macro_f1=.25, weighted_f1=.45)),
    ([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dict(accuracy=1 / 3, kappa_unweighted=0, kappa_linear=-.5, kappa_quadratic=-1, macro_f1=1 / 3)),
]


@pytest.mark.parametrize('table, expected', TABLES)
def test_hand_worked_tables(table, expected):
    m = confusion_metrics(table)
    for name, value in expected.items(): assert m[name] == pytest.approx(value, abs=1e-12), name
    truth, answer = (np.repeat(x.ravel(), np.ravel(table)) for x in np.indices(np.shape(table)))
    assert confusion(truth, answer, len(table)).tolist() == table


@pytest.mark.parametrize('k', [2, 3, 4])
@pytest.mark.parametrize('seed', range(5))
def test_point_estimates_are_scikit_learns(k, seed):
    task = Task('t', tuple(map(str, range(k))))
    target, probs, group = multiclass(k=k, seed=seed)
    r = evaluate(task, target, probs, group, n_boot=0)
    for name, value in by_sklearn(target, probs, probs.argmax(1), k).items(): assert r[name] == pytest.approx(value, abs=1e-12), name
    assert (r['kappa'], r['auc']) == (r['kappa_quadratic'], r['auroc_macro'])
    precision, recall, f1, support = sk.precision_recall_fscore_support(target, probs.argmax(1), labels=range(k), zero_division=np.nan)
    for c in range(k):
        row = r['per_class'][str(c)]
        assert (row['recall'], row['f1'], row['support']) == pytest.approx((recall[c], f1[c], support[c]), abs=1e-12)
        assert row['precision'] == (None if np.isnan(precision[c]) else pytest.approx(precision[c], abs=1e-12))
        assert row['auroc'] == pytest.approx(sk.roc_auc_score(target == c, probs[:, c]), abs=1e-12)


def test_every_resample_is_scikit_learns():
    target, probs, group = multiclass(views=3)
    decoded = np.minimum(probs.argmax(1) + (np.arange(len(target)) % 7 == 0), 3)  # an objective with an answer of its own
    counts = resample_counts(80, 60, seed=5)
    ours = statistic_for(DENSITY, target, probs, decoded, group, 80)(counts.astype(float))
    for b in range(60):
        rows = np.repeat(np.arange(len(target)), counts[group, b])
        for name, value in by_sklearn(target[rows], probs[rows], decoded[rows], 4).items(): assert ours[name][b] == pytest.approx(value, abs=1e-12), name


def test_intervals_are_percentiles_of_those_resamples():
    target, probs, group = multiclass()
    r = evaluate(DENSITY, target, probs, group, n_boot=300, seed=3, level=.9)
    counts = resample_counts(80, 300, seed=3)
    rows = [np.repeat(np.arange(len(target)), counts[group, b]) for b in range(300)]
    values = [sk.cohen_kappa_score(target[i], probs[i].argmax(1), weights='quadratic') for i in rows]
    assert r['intervals']['kappa'] == pytest.approx(np.quantile(values, [.05, .95]), abs=1e-12)
    recalls = [sk.recall_score(target[i], probs[i].argmax(1), labels=[2], average=None)[0] for i in rows]
    assert r['per_class']['3']['intervals']['recall'] == pytest.approx(np.quantile(recalls, [.05, .95]), abs=1e-12)


def test_multilabel_resamples_with_unknown_entries():
    target, probs, group = multilabel()
    counts = resample_counts(200, 30, seed=2)
    ours = statistic_for(CHEST, target, probs, None, group, 200)(counts.astype(float))
    for b in range(30):
        rows = np.repeat(np.arange(400), counts[group, b])
        areas, losses = [], []
        for c in range(3):
            i = rows[~np.isnan(target[rows, c])]
            t, p = target[i, c], probs[i, c]
            said = p >= .5
            expected = dict(auroc=sk.roc_auc_score(t, p), ap=sk.average_precision_score(t, p), sensitivity=sk.recall_score(t, said), specificity=sk.recall_score(t, said, pos_label=0),
                            precision=sk.precision_score(t, said), f1=sk.f1_score(t, said), n=len(i), support=t.sum())
            for name, value in expected.items(): assert ours[name][b, c] == pytest.approx(value, abs=1e-12), name
            areas.append(expected['auroc'])
            losses += (-np.log(np.where(t == 1, p, 1 - p))).tolist()
        assert ours['auroc_macro'][b] == pytest.approx(np.mean(areas), abs=1e-12)
        assert ours['log_loss'][b] == pytest.approx(np.mean(losses), abs=1e-9)


def test_what_must_not_matter():
    "Not the order of patients' names, nor how often every image is copied within its patient, nor the block size."
    target, probs, group = multiclass()
    base = evaluate(DENSITY, target, probs, group, n_boot=200)
    assert evaluate(DENSITY, target, probs, [f'P{997 - g:04d}' for g in group], n_boot=200) == base
    twice = evaluate(DENSITY, np.repeat(target, 2), np.repeat(probs, 2, 0), np.repeat(group, 2), n_boot=200)
    for m in ('accuracy', 'kappa', 'auc', 'average_precision', 'log_loss'):
        assert twice[m] == pytest.approx(base[m], abs=1e-12)
        assert twice['intervals'][m] == pytest.approx(base['intervals'][m], abs=1e-12)
    many = evaluate(DENSITY, np.tile(target, 60), np.tile(probs, (60, 1)), np.tile(group, 60), n_boot=200)
    assert many['intervals']['auc'] == pytest.approx(base['intervals']['auc'], abs=1e-12)


@pytest.mark.parametrize('target', [[0, 0, 0, 0], [1, 1, 2, 2], [3, 0, 3, 0]])
@pytest.mark.parametrize('flat', [True, False])
def test_missing_classes_are_none_and_noted(target, flat):
    probs = np.full((4, 4), .25) if flat else np.eye(4)[[0, 1, 2, 0]] * .7 + .075
    r = evaluate(DENSITY, np.array(target), probs, groups=list('aabb'), n_boot=50)
    json.dumps(r, allow_nan=False)
    for i, label in enumerate('1234'):
        if i not in target:
            assert r['per_class'][label]['recall'] is None and r['per_class'][label]['auroc'] is None and r['per_class'][label]['support'] == 0
            assert any(n.startswith(f'{label} (') for n in r['notes'])
    assert 'nan' not in format_metrics(r).lower()
    assert len(headline(r)) == 4 and len(selection_key(quick_metrics(DENSITY, np.array(target), probs))) == 3


def test_what_cannot_be_evaluated_is_refused():
    target, probs, group = multiclass()
    for bad in (dict(target=np.where(target == 3, 4, target)), dict(target=target.astype(float)), dict(probs=probs[:, :3]), dict(probs=np.log(probs + 1e-9)),
                dict(probs=probs * np.nan), dict(decoded=probs), dict(groups=group[:-1]), dict(groups=[None, *group[1:]])):
        with pytest.raises(DataError): evaluate(DENSITY, **dict(target=target, probs=probs, groups=group, n_boot=10) | bad)
    y, p, _ = multilabel()
    with pytest.raises(DataError): evaluate(CHEST, y, p, decoded=p)


def test_no_torch_is_needed():
    subprocess.run([sys.executable, '-c', 'import sys, mammo.metrics; sys.exit("torch" in sys.modules)'], check=True)
