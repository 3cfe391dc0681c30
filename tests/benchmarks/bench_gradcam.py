"""The grid of heat maps against bare passes through the network: 24 images of 512 px, EfficientNet-B0, single precision, in one run.

    python tests/benchmarks/bench_gradcam.py [--rows 2048 --columns 1664 --size 512 --images 24 --rounds 3]

Bare: one forward and one backward pass an image, of the whole network, as pytorch users write it. Then the maps alone; the grid with its pictures read from DICOM; and the grid written as a PNG of
300 dots an inch. Each round does all of them in turn, and the smallest ratio over rounds counts, since other work on the machine only adds to it.
"""
import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch


def a_look(folder, rows, columns, size):
    "A finished run with its images; what it learned does not matter here."
    from mammo.config import DataConfig, ImageConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
    from mammo.looking import look
    from mammo.phantom import write_study
    from mammo.recipes.density import density_data, train_density
    csv = write_study(folder / 'study', n_exams=20, seed=1, rows=rows, columns=columns)
    run = train_density(TrainConfig(data=DataConfig(csv=csv, dicom_root=folder / 'study/archive', val_split=.5), image=ImageConfig(img_size=size), model=ModelConfig(weights='none', train_backbone=False),
                                    optim=OptimConfig(epochs=1, warmup_epochs=0), run=RunConfig(outdir=folder / 'runs', precision='fp32', n_boot=0)))
    return look(run.path, density_data)


def bare(model, x):
    model.open(None).eval()  # a frozen trunk would run without a backward pass
    for one in x: model(one[None])[0, 0].backward()
    model.zero_grad()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(rows=2048, columns=1664, size=512, images=24, rounds=3).items(): parser.add_argument(f'--{name}', type=int, default=value)
    args = parser.parse_args()
    from mammo.gradcam import FINAL, grid, scaled
    with tempfile.TemporaryDirectory() as folder:
        l = a_look(Path(folder), args.rows, args.columns, args.size)
        learner, at = l.learners[''], np.arange(args.images)
        classes = l.t.table.decoded.to_numpy()[at]
        x = torch.cat(learner.pieces(torch.stack([l.images[0, int(i)][0] for i in at])))
        table = l.t.table.iloc[at].assign(label=[l.task.labels[i % l.task.k] for i in at], kind='sure', column=at // l.task.k, truth='A', answer='A', prob=.5)

        def drawn():
            heats = scaled(l.maps(at, classes)[FINAL])
            shown = [l.shown(int(i), h) for i, h in zip(at, heats)]
            return grid(l.task, table, [p for p, _ in shown], [h for _, h in shown])

        work = {'bare': lambda: bare(learner.model, x), 'maps': lambda: l.maps(at, classes), 'grid': drawn, 'grid as PNG of 300 dpi': lambda: drawn().savefig(io.BytesIO(), dpi=300)}
        took = {name: [] for name in work}
        for _ in range(args.rounds):
            for name, f in work.items():
                clock = time.perf_counter()
                f()
                took[name].append(time.perf_counter() - clock)
        print(f'{args.images} images, {args.size} px from {args.rows} x {args.columns}, {torch.get_num_threads()} threads, {args.rounds} rounds')
        for name, t in took.items(): print(f'{name:<24} {min(t):6.2f} s   {min(a / b for a, b in zip(t, took["bare"])):5.2f} of the bare passes')
