"""Stored outputs of nbs/article from the executed pages of an article, cell by cell where the source is the same: a reader of the repository
sees real figures without training anything.

    python tools/store_pages.py [outputs/article]
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def stored(source: dict,   # A notebook of nbs/article
           page: dict,     # The same, executed
           ) -> int:       # Cells with outputs
    "Puts the outputs of a page into its source."
    here = lambda outputs: json.loads(re.sub(r'(\w+)-seed\d+\.(ipynb|html)', r'\1.\2', json.dumps(outputs)))  # a link to the page of a seed leads to the page
    done = {''.join(c['source']): here(c['outputs']) for c in page['cells'] if c['cell_type'] == 'code'}
    for c in source['cells']:
        if c['cell_type'] == 'code' and ''.join(c['source']) in done:
            c['outputs'] = [o | ({'execution_count': None} if o['output_type'] == 'execute_result' else {}) for o in done[''.join(c['source'])]]
    return sum(bool(c.get('outputs')) for c in source['cells'])


if __name__ == '__main__':
    pages = {p.stem: p for p in sorted((ROOT / (sys.argv[1] if len(sys.argv) > 1 else 'outputs/article') / 'pages').glob('*.ipynb'))}
    for path in sorted((ROOT / 'nbs/article').glob('*.ipynb')):
        page = pages.get(path.stem) or next((p for n, p in pages.items() if n.startswith(f'{path.stem}-seed')), None)
        done = page and json.loads(page.read_text(encoding='utf-8'))
        if not page or done['metadata']['mammo']['state'] != 'finished': print(f'{path.stem}: no finished page'); continue
        source = json.loads(path.read_text(encoding='utf-8'))
        n = stored(source, done)
        path.write_text(json.dumps(source, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        print(f'{path.stem}: {n} cells with outputs from {page.name}, {path.stat().st_size // 1024} kB')
