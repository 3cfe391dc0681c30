"""The picture of the README: phantom mammograms A to D, and below them where a model has looked.

    python tools/picture.py [FOLDER]      trains on phantoms in FOLDER (default build/picture; a run that is there is used again), writes nbs/images/phantoms.png

Two minutes on two cores. The picture is committed; make it again when phantoms or Grad-CAM change.
"""
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mammo.config import OptimConfig
from mammo.gradcam import overlay, scaled
from mammo.looking import look
from mammo.phantom import write_study
from mammo.recipes.all import study_data
from mammo.recipes.density import demo_config, train_density

ROOT = Path(__file__).resolve().parents[1]
LAYER = 'stages.3'  # 8 × 8 fields at 128 pixels; the last layer has 4 × 4


def trained(folder: Path):
    "A run of the demo, of which the last two stages learn: the first ones, random, are computed once."
    if not (folder / 'results/summary.json').exists():
        write_study(folder / 'study', n_exams=60, rows=512, columns=416)
        cfg = demo_config(folder)
        train_density(replace(cfg, model=replace(cfg.model, unfreeze_last=2), optim=replace(cfg.optim, augment=False)))
    return look(folder / 'results', study_data, num_workers=0, device='cpu')


def draw(l) -> Figure:
    "The surest right answer of each class, as stored and with its map."
    t, answer = l.t.table.reset_index(drop=True), l.probs.argmax(1)
    surest = lambda c: max(np.flatnonzero(t.target == c), key=lambda i: (answer[i] == c, l.rows.view[i] == 'MLO', l.probs[i, c]))
    at = [int(surest(c)) for c in range(l.task.k)]
    heats = scaled(l.maps(at, answer[at], [LAYER])[LAYER])
    fig = Figure(figsize=(8, 5), layout='constrained', facecolor='white')
    for column, (i, heat, axes) in enumerate(zip(at, heats, fig.subplots(2, l.task.k).T)):
        grey, warm = l.shown(i, heat, 400)
        for ax, shown in zip(axes, (np.stack([grey] * 3, -1), overlay(grey, warm))): ax.imshow(shown); ax.axis('off')
        axes[0].set_title(f'phantom of density {l.task.display[column]}', fontsize=10)
        axes[1].set_title(f'answer {l.task.display[answer[i]]}', fontsize=10)
    return fig


if __name__ == '__main__':
    out = ROOT / 'nbs/images/phantoms.png'
    out.parent.mkdir(exist_ok=True)
    fig = draw(trained(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / 'build/picture'))
    fig.savefig(out, dpi=100, metadata={'Software': None})
    Image.open(out).convert('RGB').quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(out, optimize=True)
    print(f'{out.relative_to(ROOT)}: {out.stat().st_size / 1000:.0f} kB')
