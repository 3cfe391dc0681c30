"""What a notebook has stored, beside what it says when it is run again: texts as they are, numbers within a tolerance. Times, speeds, places, addresses, dates and hashes may differ.

    python tools/stored.py [NAME ...] [--rel 0.02]        e.g. python tools/stored.py 10_dicom
"""
import argparse
import html
import json
import math
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBER = r'(?<![\w.])[-+−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w)'
# What is of the machine, the clock or the day. Each becomes a word, so that a text still has to say it in the same place.
PASSING = (
    ('ADDRESS', r'\b0x[0-9a-fA-F]{6,}\b'),
    ('DATE', r'\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?'),
    ('PLACE', r'(?:(?<![\w.~/-])/|\b[A-Z]:\\)(?:tmp|private|home|root|Users|var|work|mnt|usr|opt|builds?)[^\s\'",;)\]]*|\btmp\w{6,}\b'),
    ('HASH', r'\b(?=\w*\d)(?=\w*[a-f])[0-9a-f]{7,64}(?:-dirty)?\b'),
    ('VERSION', r'\b\d+\.\d+\.\d+(?:[.+]\w+)*\b|\b\d+\.\d+\.\d+\w*\b'),
    ('TIME', rf'{NUMBER}\s?(?:ns|µs|us|ms|s|sec|seconds?|min|minutes?|h|hours?|(?:img|images|it|files?|exams?|MB|GB)/s)\b|\b\d+:\d\d(?::\d\d)?\b'),
)
TIMED = re.compile(r', m?s\b|\b(?:seconds?|speed|time|ms|wall|pid|per s|images/s|img/s|commit|host|platform|python|torch)\b', re.I)  # a column or key whose values pass


def still(text: str) -> str:
    "A text without what passes."
    text = re.sub(r'\x1b\[[0-9;]*m', '', text)
    for word, pattern in PASSING: text = re.sub(pattern, f'<{word}>', text)
    return text


def plain(markup: str) -> str:
    "A table as lines of cells."
    markup = re.sub(r'<style.*?</style>', '', markup, flags=re.S)
    rows = re.sub(r'</t[hd]>\s*<t[hd][^>]*>', ' | ', markup)
    return '\n'.join(l.strip() for l in html.unescape(re.sub(r'<[^>]+>', '\n', rows)).splitlines() if l.strip())


def bar(text: str) -> bool: return bool(re.search(r'\d+%\|.*\|\s*\d+/\d+', text))


def said(cell: dict) -> list[str]:
    "The outputs of a cell as texts, without progress bars, warnings on stderr and pictures."
    found = []
    for o in cell.get('outputs', []):
        if o['output_type'] == 'error': found.append(f'{o["ename"]}: {o["evalue"]}')
        if o['output_type'] == 'stream' and o['name'] == 'stdout': found.append(''.join(o['text']))
        data = {k: ''.join(v) if isinstance(v, list) else v for k, v in o.get('data', {}).items()}
        if any(k.startswith('application/vnd.jupyter.widget') for k in data) or any(k.startswith('image/') for k in data): continue
        if 'text/html' in data: found.append(plain(data['text/html']))
        elif text := data.get('text/markdown') or data.get('text/plain'): found.append(text)
    return [still(t).strip() for t in found if not bar(t)]


def value(text: str) -> float: return float(text.replace(',', '').replace('−', '-'))


def close(a: str, b: str, rel: float) -> bool:
    "Two written numbers are the same within the tolerance, or within one unit of the last decimal that is written; counts below a thousand are the same."
    if all(re.fullmatch(r'[-+−]?\d{1,3}', t) for t in (a, b)): return value(a) == value(b)
    def unit(t): return 10.0 ** -len(m[1]) if (m := re.search(r'\.(\d+)', t)) else 0.0
    return math.isclose(value(a), value(b), rel_tol=rel, abs_tol=max(unit(a), unit(b)) * 1.01)


def untimed(lines: list[str]) -> list[str]:
    "Lines of a table without the numbers of columns that are times."
    head = next((l for l in lines if ' | ' in l or l.startswith('| ')), '')
    timed = {i for i, name in enumerate(head.split('|')) if TIMED.search(name)}
    if not timed or head != lines[0]: return lines
    return ['|'.join(re.sub(NUMBER, '<N>', c) if i in timed else c for i, c in enumerate(l.split('|'))) for l in lines]


def compare(stored: str, fresh: str, rel: float = .02) -> str:
    "Empty where two texts say the same, else the first place where they differ."
    a, b = untimed(stored.splitlines()), untimed(fresh.splitlines())
    if len(a) != len(b): return f'{len(a)} lines are stored, {len(b)} came out: {stored[:80]!r}, {fresh[:80]!r}'
    for x, y in zip(a, b):
        if TIMED.search(x) and TIMED.search(y): x, y = (re.sub(NUMBER, '<N>', t) for t in (x, y))
        words = [re.sub(r'\s+', ' ', re.sub(r'-{2,}|─+', '-', re.sub(NUMBER, '#', t))).strip() for t in (x, y)]
        if words[0] != words[1]: return f'{x[:120]!r} is stored, {y[:120]!r} came out'
        for m, n in zip(re.findall(NUMBER, x), re.findall(NUMBER, y)):
            if not close(m, n, rel): return f'{m} is stored, {n} came out, in {x[:120]!r}'
    return ''


def differences(stored: dict, fresh: dict, rel: float = .02) -> list[str]:
    "What differs between a notebook's stored outputs and fresh ones, a line a cell; cells marked slow may not have been run."
    found = []
    for i, (a, b) in enumerate(zip(stored['cells'], fresh['cells'])):
        if a['cell_type'] != 'code' or re.search(r'^#\|\s*(?:slow|gpu)\b', ''.join(a['source']), re.M): continue
        x, y = said(a), said(b)
        if len(x) != len(y): found.append(f'cell {i}: {len(x)} outputs are stored, {len(y)} came out'); continue
        found += [f'cell {i}: {wrong}' for s, t in zip(x, y) if (wrong := compare(s, t, rel))][:1]
    return found


def run(path: Path) -> dict:
    "The notebook run from top to bottom in a kernel of its own, as JupyterLab does it."
    import nbformat
    from nbclient import NotebookClient
    os.environ.update(dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'NUMBA_NUM_THREADS'), '1'))
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells]
    for c in nb.cells:
        if c.cell_type == 'code' and re.search(r'^#\|\s*(?:slow|gpu)\b', c.source, re.M): c.source = ''
    NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    return json.loads(nbformat.writes(nb))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', help='stems of notebooks; none: all')
    parser.add_argument('--rel', type=float, default=.02, help='by how much a number may differ')
    args, wrong = parser.parse_args(argv), 0
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        if path.name.startswith('.') or '.ipynb_checkpoints' in path.parts or args.names and path.stem not in args.names: continue
        found = differences(json.loads(path.read_text(encoding='utf-8')), run(path), args.rel)
        wrong += bool(found)
        print(f'{path.stem}: {len(found) or "nothing"} differs', *found, sep='\n  ', flush=True)
    return bool(wrong)


if __name__ == '__main__': sys.exit(main())
