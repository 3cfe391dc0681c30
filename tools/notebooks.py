"""Run every notebook's tests top to bottom, each in a process of its own, as many at a time as there are cores, with one thread each: two
processes whose threads wait for each other's cores take eight times as long as one after the other.

    python tools/notebooks.py [--slow] [NAME ...]      e.g. python tools/notebooks.py 10_dicom
"""
import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
THREADS = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMBA_NUM_THREADS'), '1')


def run(nb: Path, flags: str) -> tuple[bool, float, str]:
    "One notebook in a process of its own: passed, seconds, what it said."
    clock = time.perf_counter()
    env = os.environ | THREADS | {'IN_TEST': '1', 'MPLBACKEND': os.environ.get('MPLBACKEND', 'agg')}
    p = subprocess.run([BIN / 'nbdev-test', nb, '--n-workers', '0', '--flags', flags], cwd=ROOT, env=env, capture_output=True, text=True)
    return p.returncode == 0, time.perf_counter() - clock, p.stdout + p.stderr


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--slow', action='store_true', help='also run cells marked slow')
    parser.add_argument('names', nargs='*')
    args = parser.parse_args()
    notebooks = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not any(part.startswith(('.', '_')) for part in p.relative_to(ROOT).parts))
    notebooks = [p for p in notebooks if not args.names or p.stem in args.names]
    failed = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()) as pool:
        asked = {pool.submit(run, nb, 'slow' if args.slow else ''): nb for nb in reversed(notebooks)}  # the longest stand last
        for done in as_completed(asked):
            nb, (ok, seconds, said) = asked[done], done.result()
            print(f'{"ok  " if ok else "FAIL"} {nb.relative_to(ROOT)} {seconds:.1f} s', flush=True)
            if not ok: failed.append(nb.stem); print(said)
    print(f'notebooks: {len(notebooks) - len(failed)} passed, {len(failed)} failed')
    sys.exit(bool(failed) or not notebooks)
