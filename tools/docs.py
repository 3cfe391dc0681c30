"""The site. With Quarto on the PATH it is nbdev's; without it, plain HTML of the same pages by nbconvert, and the output says so.

Everything is staged in build/site, because nbdev looks for `_quarto.yml` beside the notebooks and ours stands at the top.
"""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE, BIN = ROOT / 'build/site', Path(sys.executable).parent


def stage() -> list[Path]:
    "Copies of the notebooks, the configuration, and executed pages of runs."
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(ROOT / 'nbs', STAGE, ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_*', 'nbdev.yml', 'sidebar.yml'))
    shutil.copy(ROOT / '_quarto.yml', STAGE)
    for page in sorted((ROOT / 'outputs').rglob('pages/*.ipynb')):
        (STAGE / 'runs').mkdir(exist_ok=True)
        shutil.copy(page, STAGE / 'runs' / f'{page.parents[1].name}-{page.name}')
    return sorted(STAGE.rglob('*.ipynb'), key=lambda p: (p.stem != 'index', p.relative_to(STAGE)))


def title(page: Path) -> str:
    for c in json.loads(page.read_text())['cells']:
        if c['cell_type'] == 'markdown' and (m := re.search(r'^# (.+)$', ''.join(c['source']), re.M)): return m[1]
    return page.stem


def plain(pages: list[Path]) -> Path:
    "Each page as HTML with a list of all pages at its top."
    import nbformat
    from nbconvert import HTMLExporter
    out, names = ROOT / '_docs', {p: p.relative_to(STAGE).with_suffix('.html') for p in pages}
    shutil.rmtree(out, ignore_errors=True)
    for page in pages:
        nb = nbformat.read(page, as_version=4)
        up = '../' * (len(names[page].parts) - 1)
        links = ' · '.join(f'[{title(p)}]({up}{n})' for p, n in names.items())
        nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*(hide|default_exp)', c.source, re.M)]
        for c in nb.cells:
            if c.cell_type == 'markdown': c.source = re.sub(r'\]\((?!https?:)([^)]+)\.ipynb', r'](\1.html', c.source)
            if c.cell_type == 'code': c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        nb.cells.insert(0, nbformat.v4.new_markdown_cell(links))
        nb.metadata['title'] = title(page)
        html, _ = HTMLExporter().from_notebook_node(nb, resources={'metadata': {'name': title(page)}})
        (out / names[page]).parent.mkdir(parents=True, exist_ok=True)
        (out / names[page]).write_text(html, encoding='utf-8')
    return out


if __name__ == '__main__':
    pages = stage()
    if shutil.which('quarto'):
        from nbdev.quarto import refresh_quarto_yml
        refresh_quarto_yml()
        for name in ('nbdev.yml', 'sidebar.yml'):
            if (ROOT / 'nbs' / name).exists(): shutil.copy(ROOT / 'nbs' / name, STAGE)
        sys.exit(subprocess.run([BIN / 'nbdev-docs', '--path', STAGE], cwd=ROOT).returncode)
    print(f'Quarto is not on the PATH: plain HTML of the same {len(pages)} pages is in {plain(pages).relative_to(ROOT)}/ (start at index.html)')
