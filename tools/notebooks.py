"""Run every notebook's tests top to bottom, each in a process of its own.

    python tools/notebooks.py [--slow] [NAME ...]      e.g. python tools/notebooks.py 10_dicom
"""
import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def run(nb: Path, flags: str) -> tuple[bool, float, str]:
    "One notebook in a process of its own: passed, seconds, what it said."
    clock = time.perf_counter()
    env = os.environ | {'IN_TEST': '1', 'MPLBACKEND': os.environ.get('MPLBACKEND', 'agg')}
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
    for nb in notebooks:
        ok, seconds, said = run(nb, 'slow' if args.slow else '')
        print(f'{"ok  " if ok else "FAIL"} {nb.relative_to(ROOT)} {seconds:.1f} s', flush=True)
        if not ok: failed.append(nb.stem); print(said)
    print(f'notebooks: {len(notebooks) - len(failed)} passed, {len(failed)} failed')
    sys.exit(bool(failed) or not notebooks)
