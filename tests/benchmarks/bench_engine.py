"""What an engine adds to a fold: the same folds by a plain loop, in processes and on a local Ray, all in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_engine.py [--folds 3] [--epochs 2] [--workers 2] [--exams 24]

`inside` is the time in the training function, summed over the folds; `overhead a fold` is (seconds − inside / workers) / folds, so it holds the start of workers, their imports, the way there and back, and workers
that stand idle at the end; for the loop it is what is left of the clock. The start of the cluster is a row of its own, because several calls share it.
"""
import argparse
import json
import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mammo import jobs
from mammo.config import DataConfig, ImageConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from mammo.crossval import _job, _side_by_side, fold_data, fold_settings
from mammo.datasets import load_dataset
from mammo.phantom import write_study
from mammo.material import gather
from mammo.pipeline import train


def settings(folder: Path, epochs: int) -> TrainConfig:
    return TrainConfig(data=DataConfig(csv=folder / 'classificacao.csv', dicom_root=folder / 'archive'), image=ImageConfig(img_size=64, cache_dir=folder / 'cache'), model=ModelConfig(arch='resnet18', weights='none'),
                       optim=OptimConfig(epochs=epochs, batch_size=16, lr=1e-3, warmup_epochs=0, class_weights='none'), run=RunConfig(precision='fp32', device='cpu', n_boot=0, num_workers=0, cv_folds=2))


def bench(folder: Path, k: int, epochs: int, workers: int) -> list[dict]:
    cfg = settings(folder, epochs)
    data = load_dataset(csv=cfg.data.csv, dicom_root=cfg.data.dicom_root, key=b'k' * 32, workers=0)
    gather(data, cfg, needed=())  # decoded before the clock starts
    rows, answers = [], {}

    def folds(name): return [(fold_data(data, k, f), fold_settings(cfg, f, folder / name)) for f in range(k)]

    def measure(name, n, outcomes):
        clock, inside = time.perf_counter(), 0.
        with closing(outcomes):
            for o in outcomes:
                if not o.ok: raise o.error
                inside += o.seconds
        seconds = time.perf_counter() - clock
        rows.append({'engine': name, 'workers': n, 'seconds': seconds, 'inside': inside, 'overhead a fold, s': (seconds - inside / max(n, 1)) / k})
        answers[name] = [(folder / name / f'fold_{f + 1}/results/test_predictions.csv').read_bytes() for f in range(k)]

    warm = fold_settings(replace(cfg, optim=replace(cfg.optim, epochs=1)), 0, folder / 'warm')
    _job(train, True, (fold_data(data, k, 0), warm))  # what torch sets up once is not the loop's
    measure('loop', 0, jobs.map(lambda fold: _job(train, True, fold), folds('loop'), workers=0, progress=False))
    for n in sorted({1, workers}): measure(f'process, {n}', n, _side_by_side(folds(f'process, {n}'), replace(cfg, run=replace(cfg.run, fold_workers=n)), train))
    clock = time.perf_counter()
    with jobs.cluster(cpus=workers * torch.get_num_threads()):
        rows.append({'engine': 'start of a local Ray', 'workers': 0, 'seconds': time.perf_counter() - clock, 'inside': 0., 'overhead a fold, s': 0.})
        for n in sorted({1, workers}): measure(f'ray, {n}', n, _side_by_side(folds(f'ray, {n}'), replace(cfg, run=replace(cfg.run, engine='ray', fold_workers=n, num_workers=1)), train))
    assert all(a == answers['loop'] for a in answers.values()), 'predictions differ between engines'
    return rows


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, default in (('folds', 3), ('epochs', 2), ('workers', 2), ('exams', 24)): parser.add_argument(f'--{flag}', type=int, default=default)
    args = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    with TemporaryDirectory() as d:
        write_study(Path(d), n_exams=args.exams, seed=3, rows=192, columns=160, workers=0, progress=False)
        result = bench(Path(d), args.folds, args.epochs, args.workers)
    print(f'{args.folds} folds of {args.epochs} epochs, {os.environ["OMP_NUM_THREADS"]} thread each, {jobs.usable_cpus()} CPUs; the test predictions of all folds are the same, byte for byte')
    for r in result: print(f'{r["engine"]:24s}{r["seconds"]:10.1f} s{r["inside"]:10.1f} s inside{r["overhead a fold, s"]:10.2f} s a fold')
    print(json.dumps([{k: round(v, 3) if isinstance(v, float) else v for k, v in r.items()} for r in result]))
