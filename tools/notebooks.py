"""Run every notebook's tests top to bottom, each in a process of its own (see forked.py), as many at a time as there are cores, with one thread each:
two processes whose threads wait for each other's cores take eight times as long as one after the other.

    python tools/notebooks.py [--slow] [NAME ...]      e.g. python tools/notebooks.py 10_dicom
"""
import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from forked import SERVER, LIBRARIES, Forked

ROOT = Path(__file__).resolve().parents[1]
AGAIN = ('18_devices',)   # in which Lightning Fabric starts the program once more, so that it has to be nbdev-test itself
THREADS = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMBA_NUM_THREADS'), '1')


def cells(nb: Path, flags: str) -> None:
    "What `nbdev-test NB --flags FLAGS` does."
    from nbdev.test import nbdev_test
    nbdev_test(str(nb), flags=flags, n_workers=0)


def run(nb: Path, flags: str) -> tuple[bool, float, str]:
    "One notebook in a process of its own: passed, seconds, what it said."
    clock = time.perf_counter()
    if nb.stem in AGAIN: p = subprocess.Popen([Path(sys.executable).with_name('nbdev-test'), nb, '--n-workers', '0', '--flags', flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    else: p = Forked(cells, nb, flags, cwd=ROOT)
    out, err = p.communicate()
    return p.returncode == 0, time.perf_counter() - clock, out + err


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--slow', action='store_true', help='also run cells marked slow')
    parser.add_argument('names', nargs='*')
    args = parser.parse_args()
    notebooks = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts))
    notebooks = [p for p in notebooks if not args.names or p.stem in args.names]
    failed = []
    os.environ.update(THREADS | {'IN_TEST': '1', 'MPLBACKEND': os.environ.get('MPLBACKEND', 'agg')})
    SERVER.set_forkserver_preload([*LIBRARIES, 'nbdev.test', 'matplotlib.pyplot'])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()) as pool:
        asked = {pool.submit(run, nb, 'slow' if args.slow else ''): nb for nb in reversed(notebooks)}  # the longest stand last
        for done in as_completed(asked):
            nb, (ok, seconds, said) = asked[done], done.result()
            print(f'{"ok  " if ok else "FAIL"} {nb.relative_to(ROOT)} {seconds:.1f} s', flush=True)
            if not ok: failed.append(nb.stem); print(said)
    print(f'notebooks: {len(notebooks) - len(failed)} passed, {len(failed)} failed')
    sys.exit(bool(failed) or not notebooks)
