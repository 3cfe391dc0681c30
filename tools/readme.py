"README.md from nbs/index.ipynb, whose outputs are stored. Code is shown, hidden cells are not; of cells with `#| echo: false` the output only."
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]


def echo_off(cell) -> bool: return bool(re.search(r'^#\|\s*echo:\s*false', cell.source, re.M))


def quiet(cell):
    "A cell whose code is not shown becomes the Markdown of its output."
    if cell.cell_type != 'code' or not echo_off(cell): return cell
    return nbformat.v4.new_markdown_cell('\n\n'.join(o['data']['text/markdown'] for o in cell.outputs))


def readme() -> str:
    nb = nbformat.read(ROOT / 'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not (c.cell_type == 'code' and re.search(r'^#\|\s*hide', c.source, re.M))]
    nb.cells = [quiet(c) for c in nb.cells if not (c.cell_type == 'code' and echo_off(c) and not c.outputs)]
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = re.sub(r'\]\((?!https?:|#)([^)]+\.(?:ipynb|png|svg))\)', r'](nbs/\1)', c.source)  # links start at the top here
        if c.cell_type == 'code': c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        for o in c.get('outputs', []):  # plain text reads well everywhere; HTML tables do not
            if 'data' in o: o['data'] = {k: v for k, v in o['data'].items() if k in ('text/plain', 'text/markdown')}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    return '<!-- Made from nbs/index.ipynb by `make readme`. Edit the notebook. -->\n\n' + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__': (ROOT / 'README.md').write_text(readme(), encoding='utf-8')
