"""What ingest costs: the first pass an image, a second pass over a full store, and a warm read, all in one run.

    python tests/benchmarks/bench_ingest.py [--images 24] [--rows 2048] [--columns 1664]
"""
import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from mammo.breast import Prep
from mammo.core import hash_file
from mammo.ingest import MemoryStore, PixelStore, Source, decode, ingest
from mammo.jobs import usable_cpus
from mammo.phantom import phantom, write_phantom


def milliseconds(fn, items, times=1):
    "Mean over the items, best of `times` passes."
    best = float('inf')
    for _ in range(times):
        start = time.perf_counter()
        for item in items: fn(item)
        best = min(best, (time.perf_counter() - start) / len(items) * 1e3)
    return best


def study(root: Path, n: int, rows: int, columns: int) -> pd.DataFrame:
    paths = [write_phantom(root / f'{i}.dcm', phantom(1 + i % 4, 'LR'[i % 2], ('CC', 'MLO')[i // 2 % 2], seed=i // 4, rows=rows, columns=columns)) for i in range(n)]
    return pd.DataFrame({'sample_id': [p.stem for p in paths], 'path': [str(p) for p in paths], 'file_hash': [hash_file(p) for p in paths]})


def bench(manifest: pd.DataFrame, folder: Path) -> dict:
    prep, n = Prep(), len(manifest)
    store = PixelStore(folder / 'store', prep)
    sources = [Source(r.file_hash, '', (r.path,)) for r in manifest.itertuples()]
    decode(sources[0], store.recipe)  # imports and tables are paid before the clock starts
    out = {'images': n, 'workers': usable_cpus(), 'decode, ms': milliseconds(lambda s: decode(s, store.recipe), sources)}
    out['first ingest, one process, ms an image'] = ingest(manifest, prep, MemoryStore(prep), workers=0, progress=False).seconds / n * 1e3
    first = ingest(manifest, prep, store, progress=False)
    out['first ingest, workers (their start included), ms an image'] = first.seconds / n * 1e3
    second = ingest(manifest, prep, store, progress=False)
    assert first.frame.ok.all() and second.summary()['decoded'] == 0
    out['second ingest, every checksum verified, ms an image'] = second.seconds / n * 1e3
    keys = [s.key for s in sources]
    out['verify, ms'] = milliseconds(store.verify, keys, 5)
    out['warm read with open and copy, ms'] = milliseconds(lambda k: np.array(store.get(k)), keys, 5)
    out['open only, ms'] = milliseconds(store.get, keys, 5)
    out['entry, MB'] = max(store.path(k).stat().st_size for k in keys) / 1e6
    out['decode / warm read'] = out['decode, ms'] / out['warm read with open and copy, ms']
    out['first / second ingest'] = first.seconds / second.seconds
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in out.items()}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, default in (('images', 24), ('rows', 2048), ('columns', 1664)): parser.add_argument(f'--{flag}', type=int, default=default)
    args = parser.parse_args()
    with TemporaryDirectory() as d: result = bench(study(Path(d), args.images, args.rows, args.columns), Path(d))
    for name, value in result.items(): print(f'{name:62s}{value:>10}')
    print(json.dumps(result))
