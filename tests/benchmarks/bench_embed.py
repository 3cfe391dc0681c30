"""`embed` end to end against the bare forward pass on tensors in memory: same model, precision, batch and threads, in one run.

    python tests/benchmarks/bench_embed.py [images rows columns]      speed, first pass and warm store, uncompressed and JPEG 2000
    python tests/benchmarks/bench_embed.py scale                      time and memory at 2,500 and 10,000 images of 512 px

End to end counts everything after the imports: finding and hashing the files, reading headers, decoding, preparing, the network, and the files written.
"""
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, ROUNDS = 32, 3  # nothing heavy is imported here: worker processes load this file, too


def copies(folder: Path, n: int, rows: int, columns: int) -> Path:
    "n uncompressed DICOM files of that size: a few phantoms, each with noise of its own."
    import numpy as np
    import pydicom
    from mammo.phantom import write_study
    from pydicom.uid import generate_uid
    write_study(folder / 'seed', 2, seed=1, rows=rows, columns=columns)
    files, rng = sorted((folder / 'seed/archive').rglob('*.dcm')), np.random.default_rng(0)
    for i in range(n):
        d = pydicom.dcmread(files[i % len(files)])
        pixels = d.pixel_array
        d.PixelData = np.where(pixels > 0, pixels + rng.integers(0, 4, pixels.shape, dtype=np.uint16), 0).astype(pixels.dtype).tobytes()
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        out = folder / 'raw' / f'{i // 4:04d}' / f'{i:05d}.dcm'
        out.parent.mkdir(parents=True, exist_ok=True)
        d.save_as(out)
    return folder / 'raw'


def jpeg2000(raw: Path, out: Path) -> Path:
    "The same files, lossless."
    import pydicom
    for f in sorted(raw.rglob('*.dcm')):
        d = pydicom.dcmread(f)
        d.compress(pydicom.uid.JPEG2000Lossless, encoding_plugin='pylibjpeg')
        target = out / f.relative_to(raw)
        target.parent.mkdir(parents=True, exist_ok=True)
        d.save_as(target)
    return out


def settings(root: Path, out: Path, cache: Path, precision: str):
    from mammo.config import DataConfig, EmbedConfig, EmbedImageConfig, EmbedModelConfig, EmbedRunConfig
    return EmbedConfig(data=DataConfig(dataset='unlabelled', dicom_root=root), image=EmbedImageConfig(cache_dir=cache), model=EmbedModelConfig(weights='none'),
                       run=EmbedRunConfig(outdir=out, batch_size=BATCH, precision=precision))


def end_to_end(cfg, n: int) -> float:
    "Images a second."
    import numpy as np
    from mammo.embeddings import embed
    from mammo.recipes.density import density_data
    clock = time.perf_counter()
    run = embed(density_data(cfg), cfg)
    seconds = time.perf_counter() - clock
    assert np.load(run.file('features')).shape == (n, 2048)
    return n / seconds


def bare(encoder, x) -> float:
    "The forward pass as one would write it down, float tensors in memory."
    import torch
    clock = time.perf_counter()
    with torch.inference_mode(), encoder.fabric.autocast():
        for a in range(0, len(x), BATCH): encoder.model.features(x[a:a + BATCH])
    return len(x) / (time.perf_counter() - clock)


def speed(n: int, rows: int, columns: int) -> None:
    import numpy as np
    import torch
    from mammo.config import EmbedModelConfig
    from mammo.embeddings import make_encoder
    with tempfile.TemporaryDirectory() as d:
        raw = copies(Path(d), n, rows, columns)
        packed = jpeg2000(raw, Path(d) / 'j2k')
        for precision in ('fp32', 'bf16'):
            encoder, _ = make_encoder(EmbedModelConfig(weights='none'), 224, 'cpu', precision)
            x = torch.rand(n, 3, 224, 224).contiguous(memory_format=torch.channels_last)
            bare(encoder, x[:BATCH])
            rates = []
            for r in range(ROUNDS):
                row = [bare(encoder, x)]
                for name, root in (('raw', raw), ('j2k', packed)):
                    cache = Path(d) / f'cache-{precision}-{name}-{r}'
                    for part in ('first', 'warm'):
                        if (name, part) != ('j2k', 'warm'): row.append(end_to_end(settings(root, Path(d) / f'{precision}-{name}-{r}-{part}', cache, precision), n))
                rates.append(row)
            b, first, warm, j2k = np.median(rates, axis=0)
            print(f'ResNet50 224 px, batch {BATCH}, {precision}, {torch.get_num_threads()} threads, {n} files of {rows} x {columns}, median of {ROUNDS}: bare {b:.1f} img/s; '
                  f'embed first pass {first:.1f} ({first / b:.2f}), warm store {warm:.1f} ({warm / b:.2f}), first pass from JPEG 2000 {j2k:.1f} ({j2k / b:.2f})', flush=True)


def squares(folder: Path, n: int) -> Path:
    "n grey pictures of 512 px with something bright on the left."
    import numpy as np
    from PIL import Image
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:512, :512]
    breast = (x < 300 * np.sqrt(np.clip(1 - ((y - 256) / 240) ** 2, 0, 1))) * 90
    for i in range(n):
        out = folder / f'{i // 1000:03d}' / f'{i:06d}.pgm'
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((breast + rng.integers(0, 60, (512, 512)) * (breast > 0)).astype(np.uint8)).save(out)
    return folder


def scale_one(n: int) -> None:
    "Time and peak memory of `embed`, from files to matrix, with PCA and clusters, in this process."
    import torch
    with tempfile.TemporaryDirectory() as d:
        root = squares(Path(d) / 'raw', n)
        cfg = settings(root, Path(d) / 'out', Path(d) / 'cache', 'bf16')
        cfg.maps.pca = cfg.maps.cluster = True
        clock = time.perf_counter()
        rate = end_to_end(cfg, n)
        peak = {who: resource.getrusage(code).ru_maxrss / 1024 for who, code in (('this process', resource.RUSAGE_SELF), ('largest worker', resource.RUSAGE_CHILDREN))}
        print(f'{n} files of 512 px, ResNet50 224 px, bf16, {torch.get_num_threads()} threads: {time.perf_counter() - clock:.0f} s, {rate:.1f} img/s, '
              + ', '.join(f'{who} {m:.0f} MiB' for who, m in peak.items()), flush=True)


if __name__ == '__main__':
    if sys.argv[1:2] == ['scale']:
        if len(sys.argv) > 2: scale_one(int(sys.argv[2]))
        else:
            for n in (2_500, 10_000): subprocess.run([sys.executable, __file__, 'scale', str(n)], check=True)
    else: speed(*(int(a) for a in (sys.argv[1:] + ['256', '2048', '1664'][len(sys.argv) - 1:])))
