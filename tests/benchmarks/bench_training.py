"""A training step of the engine against the bare torch loop on tensors in memory, same model, precision and batch, interleaved in one run.

    python tests/benchmarks/bench_training.py [arch size batches]
"""
import sys
import tempfile
import time

import numpy as np
import torch

from mammo.config import OptimConfig
from mammo.core import InputSpec, Task
from mammo.loading import Augment, Images, ToInput, make_loader
from mammo.models import backbone, build
from mammo.objectives import objective_for
from mammo.training import Learner, make_fabric, make_optimizer, train_epoch

ARCH, SIZE, BATCHES, BATCH = (sys.argv[1:2] or ['efficientnet_b0'])[0], int((sys.argv[2:3] or [512])[0]), int((sys.argv[3:4] or [4])[0]), 16


def learner(open_stages) -> Learner:
    torch.manual_seed(0)
    task = Task('density', ('1', '2', '3', '4'))
    objective = objective_for(task, class_weights=(1., 1., 1., 1.))
    return Learner(build(backbone(ARCH), 4).open(open_stages), InputSpec(size=SIZE), make_fabric('cpu'), task, objective)


def engine(l: Learner, images: Images) -> float:
    "Images a second of one epoch."
    cfg = OptimConfig(epochs=2, batch_size=BATCH)
    loader, optimizer, clock = make_loader(images, BATCH, True), make_optimizer(l.model, cfg), time.perf_counter()
    train_epoch(l, loader, optimizer, cfg, 1, 0)
    return len(images) / (time.perf_counter() - clock)


def bare(l: Learner, x: torch.Tensor, y: torch.Tensor) -> float:
    "The same steps written down as one would without an engine: float tensors in memory, no loader, no log."
    optimizer = torch.optim.Adam([p for p in l.model.parameters() if p.requires_grad], 1e-4)
    l.model.train()
    clock = time.perf_counter()
    for a in range(0, len(x), BATCH):
        with l.fabric.autocast(): loss = torch.nn.functional.cross_entropy(l.model(x[a:a + BATCH]).float(), y[a:a + BATCH])
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in l.model.parameters() if p.requires_grad], 1.)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return len(x) / (time.perf_counter() - clock)


if __name__ == '__main__':
    rng, n = np.random.default_rng(0), BATCH * BATCHES
    pixels, y = rng.integers(0, 255, (n, SIZE, SIZE), dtype=np.uint8), rng.integers(0, 4, n)
    for name, stages in (('last block', 1), ('all', None)):
        l = learner(stages)
        x = torch.cat([ToInput(l.spec)(torch.from_numpy(p)[None, None]) for p in pixels]).contiguous(memory_format=torch.channels_last)
        names = [f's{i}' for i in range(n)]
        plain, augmented, rows = Images(pixels, y, names), Images(pixels, y, names, Augment()), []
        bare(l, x[:BATCH], torch.from_numpy(y[:BATCH]))  # warm
        for _ in range(3): rows.append((bare(l, x, torch.from_numpy(y)), engine(l, plain), engine(l, augmented)))
        b, p, a = np.median(rows, axis=0)
        print(f'{ARCH} {SIZE} px, batch {BATCH}, {name}, {l.fabric.precision_name}, {torch.get_num_threads()} threads, {n} images × 3: '
              f'bare {b:.1f} img/s, engine {p:.1f} ({p / b:.2f}), with augmentation {a:.1f} ({a / b:.2f})', flush=True)
