"""A step of the viewer: seeds side by side on stored pictures of clinical size, the next image unprepared and prepared by the thread behind the viewer, and what one pays for another opacity or class.

    python tests/benchmarks/bench_viewer.py [--exams 8 --rows 2560 --columns 2048 --img-size 512 --arch efficientnet_b0 --seeds 3 --look 1.5]
"""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from mammo.config import DataConfig, ImageConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from mammo.phantom import write_study
from mammo.pipeline import train
from mammo.recipes.density import density_data
from mammo.viewer import Viewer


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def steps(v, pause: float, n: int) -> list[float]:
    "So many steps, each after a pause in which somebody looks."
    out = []
    for _ in range(n):
        time.sleep(pause)
        out.append(seconds(v.c['next'].click))
    return out


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('exams', 8), ('rows', 2560), ('columns', 2048), ('img-size', 512), ('seeds', 3)): parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--arch', default='efficientnet_b0')
    parser.add_argument('--look', type=float, default=1.5, help='seconds that somebody looks at an image')
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tmp = Path(name)
        csv = write_study(tmp / 'study', n_exams=a.exams, seed=1, rows=a.rows, columns=a.columns, progress=False)
        def run(seed):
            cfg = TrainConfig(data=DataConfig(csv=csv, dicom_root=tmp / 'study/archive', val_split=.5), image=ImageConfig(img_size=a.img_size, cache_dir=tmp / 'cache'), model=ModelConfig(arch=a.arch, weights='none', train_backbone=False),
                              optim=OptimConfig(epochs=1, warmup_epochs=0, augment=False), run=RunConfig(outdir=tmp / 'runs', n_boot=0, device='cpu', seed=seed))
            return train(density_data(cfg), cfg).path
        runs = [run(42 + s) for s in range(a.seeds)]
        for shown in (runs[:1], runs):
            v = Viewer(shown)
            half = (len(v.order) - 1) // 2
            ready, rushed = steps(v, a.look, half), steps(v, 0, len(v.order) - 1 - half)
            back = [seconds(v.c['back'].click) for _ in range(half)]
            def slide(x): v.c['opacity'].value = x
            def explain(k): v.c['label'].value = k
            slid, other = [seconds(lambda: slide(x)) for x in (.2, .4, .6, .8)], [seconds(lambda: explain(k)) for k in range(4)]
            v.ahead.shutdown()
            text = lambda x: f'{np.median(x):6.2f} s (longest {max(x):.2f}, n {len(x)})'
            print(f'\n{len(shown)} seed{"s" * (len(shown) > 1)}, {a.arch} at {a.img_size} px, stored {a.rows} × {a.columns}\nnext, prepared      {text(ready)}\nnext, without pause {text(rushed)}\nback                {text(back)}\nopacity             {text(slid)}\nanother class       {text(other)}')
