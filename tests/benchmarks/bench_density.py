"""Training that does not wait: the whole `train-density` command, ingest included, against the same steps written down as a bare torch loop on tensors in memory, and
against the naive way that decodes every file in every epoch. Then the seed's table of requirements, measured on this machine.

    python tests/benchmarks/bench_density.py [--exams 60 --rows 2048 --columns 1664 --size 512 --epochs 20 --parts speed,table]

Every line is a process of its own, so that its peak memory is its own. The bare loops and the naive way run `--sample` epochs and are scaled up to `--epochs`: their epochs are
all alike. Weights are random, which costs what trained ones cost. Beside the wall time stands the processor time of all processes of a line: on a machine with other work it is the steadier of the two.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

BATCH = 16
FLAGS = ['--weights', 'none', '--batch-size', str(BATCH), '--unfreeze-last-block', '--n-boot', '0', '--warmup-epochs', '2']


def model_for(precision):
    from mammo.core import InputSpec
    from mammo.models import backbone, build
    from mammo.training import make_fabric
    torch.manual_seed(0)
    return build(backbone('efficientnet_b0'), 4).open(1).to(memory_format=torch.channels_last), InputSpec(size=512), make_fabric('cpu', precision)


def step(model, fabric, optimizer, x, y, piece):
    "One step as one would write it; the trunk in one piece or in pieces of `piece` images."
    with fabric.autocast():
        h = torch.cat([model.trunk(p) for p in x.split(piece)]) if piece else model.trunk(x)
        loss = torch.nn.functional.cross_entropy(model.answer(model.pooled(h)).float(), y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def bare(study, size, epochs, piece):
    "Float tensors in memory, no augmentation, no loader, no log; a fifth of the images is validated on."
    from mammo.breast import Prep
    from mammo.ingest import open_pixels
    from mammo.loading import ToInput
    from mammo.datasets import load_dataset
    data = load_dataset(csv=study / 'classificacao.csv', dicom_root=study / 'archive')
    with tempfile.TemporaryDirectory() as store:
        pixels = open_pixels(data.manifest, Prep(size=size), 'disk', store)
        model, spec, fabric = model_for('auto')
        x = torch.cat([ToInput(spec)(torch.from_numpy(np.array(p))[None, None]) for p in pixels])
    y, n = torch.from_numpy(data.manifest.target.to_numpy()), int(len(x) * .8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)
    clock = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        model.train()
        for a in range(0, n, BATCH): step(model, fabric, optimizer, x[a:min(a + BATCH, n)], y[a:min(a + BATCH, n)], piece)
        model.eval()
        with torch.inference_mode(), fabric.autocast():
            for a in range(n, len(x), BATCH):
                v = x[a:a + BATCH]
                model.answer(model.pooled(torch.cat([model.trunk(p) for p in v.split(piece)]) if piece else model.trunk(v)))
    return time.perf_counter() - clock[0], time.process_time() - clock[1]


def naive(study, size, epochs):
    "Each file read in each epoch by pydicom's own float64 chain and Pillow, fp32, as scripts do it."
    import pydicom
    from PIL import Image
    from pydicom.pixels import apply_modality_lut, apply_voi_lut
    from mammo.loading import ToInput
    files = sorted((study / 'archive').rglob('*.dcm'))
    model, spec, fabric = model_for('fp32')
    to_input, optimizer, n = ToInput(spec), torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4), int(len(files) * .8)

    def read(path):
        ds = pydicom.dcmread(path)
        img = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(np.float64)
        img = (img - img.min()) / (img.max() - img.min()) * 255
        return torch.from_numpy(np.array(Image.fromarray(img.astype(np.uint8)).resize((size, size), Image.BILINEAR)))[None]
    clock = time.perf_counter(), time.process_time()
    for _ in range(epochs):
        model.train()
        for a in range(0, n, BATCH):
            x = to_input(torch.stack([read(p) for p in files[a:min(a + BATCH, n)]]))
            step(model, fabric, optimizer, x, torch.zeros(len(x), dtype=torch.long), 0)
        model.eval()
        with torch.inference_mode():
            for a in range(n, len(files), BATCH): model(to_input(torch.stack([read(p) for p in files[a:a + BATCH]])))
    return time.perf_counter() - clock[0], time.process_time() - clock[1]


def child(argv, **kw):
    "Wall seconds, processor seconds, peak memory in MiB and output of a process."
    clock = time.perf_counter()
    with tempfile.TemporaryFile('w+') as out:
        p = subprocess.Popen([str(a) for a in argv], stdout=out, stderr=subprocess.STDOUT, **kw)
        _, status, used = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        said = out.read()
    if p.returncode: raise SystemExit(said[-3000:])
    return time.perf_counter() - clock, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said


def inner(a, what, epochs, piece=0):
    "A loop of this file in a process of its own, scaled up to all epochs."
    _, _, memory, said = child([sys.executable, __file__, '--inner', what, '--study', a.study, '--size', a.size, '--sample', epochs, '--piece', piece])
    wall, cpu = (float(x) * a.epochs / epochs for x in said.split()[-2:])
    return wall, cpu, memory


def command(a, name, *more):
    "`mammography train-density`, from nothing."
    here = a.work / name
    argv = [sys.executable, '-c', 'import sys; from mammo.cli import main; sys.exit(main())', 'train-density', '--csv', a.study / 'classificacao.csv', '--dicom-root', a.study / 'archive',
            '--epochs', a.epochs, '--img-size', a.size, *FLAGS, '--outdir', here / 'runs', *more]
    wall, cpu, memory, _ = child(argv)
    return wall, cpu, memory, here / 'runs'


def speed(a):
    loop, cpu_loop, memory = inner(a, 'bare', a.sample)
    rows = [('bare loop, trunk in one piece', loop, cpu_loop, memory), ('bare loop, trunk in pieces of 2', *inner(a, 'bare', a.sample, 2)), ('naive: every file in every epoch, fp32 (1 epoch scaled)', *inner(a, 'naive', 1))]
    rows += [('train-density --feature-cache 0', *command(a, 'none', '--feature-cache', 0)[:3]), ('train-density (8 kept views)', *command(a, 'kept')[:3])]
    print(f'\nEfficientNet-B0, {a.size} px, batch {BATCH}, {a.epochs} epochs, last block open, {4 * a.exams} images of {a.rows}×{a.columns}, {torch.get_num_threads()} threads\n')
    print('| way | wall, s | times the bare loop | processor, s | times the bare loop | peak memory, MiB |\n|---|---|---|---|---|---|')
    for name, wall, cpu, memory in rows: print(f'| {name} | {wall:.0f} | {wall / loop:.2f} | {cpu:.0f} | {cpu / cpu_loop:.2f} | {memory:.0f} |', flush=True)


def table(a):
    "The seed's table: memory, training time, images per second when asked, for each configuration."
    epochs, a.epochs = a.epochs, a.table_epochs
    embed = [sys.executable, '-c', 'import sys; from mammo.cli import main; sys.exit(main())', 'embed', '--csv', a.study / 'classificacao.csv', '--dicom-root', a.study / 'archive', '--weights', 'none', '--outdir', a.work / 'emb/o']
    child(embed)
    rows = []
    for name, more in (('image only, --cache-mode none', ['--cache-mode', 'none']), ('image only, --cache-mode disk', []), ('fused', ['--embeddings-dir', a.work / 'emb/o']), ('cross-validation, 3 folds', ['--cv-folds', 3])):
        wall, _, memory, runs = command(a, name.split()[-1], *more)
        found = next(iter([runs / 'results', runs / 'cv/fold_1/results'][k] for k in (0, 1) if [runs / 'results', runs / 'cv/fold_1/results'][k].exists()))
        images = '–'
        if name.endswith('disk'):
            wall_p, *_ = child([*embed[:3], 'predict', '--run', found, '--input', a.study / 'archive', '--out', a.work / 'p.csv'])
            images = f'{4 * a.exams / wall_p:.1f}'
        rows.append((name, memory, wall, images))
    print(f'\n{a.epochs} epochs, {4 * a.exams} images of {a.rows}×{a.columns}, {a.size} px, last block open; images per second: the whole `predict`, decoding included\n')
    print('| configuration | peak memory, MiB | training, min | images/s |\n|---|---|---|---|')
    for name, memory, wall, images in rows: print(f'| {name} | {memory:.0f} | {wall / 60:.1f} | {images} |', flush=True)
    a.epochs = epochs


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('exams', 60), ('rows', 2048), ('columns', 1664), ('size', 512), ('epochs', 20), ('sample', 2), ('table-epochs', 5), ('piece', 0)): parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--parts', default='speed,table')
    parser.add_argument('--inner', default='')
    parser.add_argument('--study', type=Path)
    a = parser.parse_args()
    if a.inner:
        print(*(bare(a.study, a.size, a.sample, a.piece) if a.inner == 'bare' else naive(a.study, a.size, a.sample)))
        sys.exit()
    from mammo.phantom import write_study
    with tempfile.TemporaryDirectory() as folder:
        a.work = Path(folder)
        a.study = a.work / 'study'
        write_study(a.study, n_exams=a.exams, rows=a.rows, columns=a.columns)
        for part in a.parts.split(','): {'speed': speed, 'table': table}[part](a)
