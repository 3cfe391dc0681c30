"""Figures with intervals over patients: 2,000 resamples of 1,300 images, against the naive way that copies the resampled rows and asks scikit-learn (scaled up from a few resamples).

    python tests/benchmarks/bench_evaluation.py [--patients 325 --views 4 --resamples 2000 --naive 20]
"""
import argparse
import time

import numpy as np
import pandas as pd
import sklearn.metrics as sk

from mammo.calibration import calibration_metrics
from mammo.endpoints import at_threshold, endpoint_of, endpoint_scores
from mammo.evaluation import exam_level
from mammo.manifest import DENSITY
from mammo.metrics import evaluate, quick_metrics, resample_counts
from mammo.objectives import objective_for


def reader(patients, views, seed=0):
    "Class, probabilities and patient of each image, with mistakes that cling to the patient."
    rng, group = np.random.default_rng(seed), np.repeat(np.arange(patients), views)
    target = rng.choice(4, patients, p=[.08, .38, .40, .14])[group]
    place = target + .55 * rng.normal(size=patients)[group] + .3 * rng.normal(size=len(group))
    weight = np.exp(-2 * (place[:, None] - np.arange(4)) ** 2)
    return target, weight / weight.sum(1, keepdims=True), group


def seconds(f, *args, **kw):
    start = time.perf_counter()
    f(*args, **kw)
    return time.perf_counter() - start


def naive(target, probs, group, resamples):
    "What most notebooks do: copy, and ask again."
    counts, said = resample_counts(group.max() + 1, resamples, 0), probs.argmax(1)
    for b in range(resamples):
        at = np.repeat(np.arange(len(target)), counts[group, b])
        t, s = target[at], said[at]
        sk.accuracy_score(t, s), sk.balanced_accuracy_score(t, s), sk.f1_score(t, s, average='macro'), sk.f1_score(t, s, average='weighted'), sk.log_loss(t, probs[at], labels=range(4))
        for w in (None, 'linear', 'quadratic'): sk.cohen_kappa_score(t, s, weights=w)
        for c in range(4): sk.roc_auc_score(t == c, probs[at, c]), sk.average_precision_score(t == c, probs[at, c])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('patients', 325), ('views', 4), ('resamples', 2000), ('naive', 20)): parser.add_argument(f'--{name}', type=int, default=default)
    a = parser.parse_args()
    target, probs, group = reader(a.patients, a.views)
    ours = seconds(evaluate, DENSITY, target, probs, group, a.resamples)
    theirs = seconds(naive, target, probs, group, a.naive) * a.resamples / a.naive
    score, positive = endpoint_scores(DENSITY, endpoint_of(DENSITY), probs, target)
    rows = pd.DataFrame({'sample_id': [f's{i:06d}' for i in range(100_000)], 'exam_id': [f'e{i // 4}' for i in range(100_000)], 'laterality': list('LLRR') * 25_000, 'view': ['CC', 'MLO'] * 50_000, 'target': 0})
    many = np.tile(probs, (100_000 // len(probs) + 1, 1))[:100_000]
    print(f'{len(target)} images of {a.patients} patients, {a.resamples} resamples\n')
    print(f'all metrics                 {ours:8.2f} s\nnaive, from {a.naive} resamples    {theirs:8.2f} s   {theirs / ours:.0f} times as long')
    print(f'calibration                 {seconds(calibration_metrics, DENSITY, target, probs, group, a.resamples):8.2f} s')
    print(f'endpoint at a threshold     {seconds(at_threshold, score, positive, .5, group, n_boot=a.resamples):8.2f} s')
    print(f'exams of 100,000 images     {seconds(exam_level, DENSITY, objective_for(DENSITY), many, rows):8.2f} s')
    print(f'figures of an epoch         {min(seconds(quick_metrics, DENSITY, target, probs) for _ in range(50)) * 1000:8.2f} ms')
