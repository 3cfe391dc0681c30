"The house rules that no single notebook can hold: floors, exports in step, and how notebooks are written."
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.export import nb_export

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').glob('*.ipynb') if not p.name.startswith('.'))
MODULES = sorted(p for p in (ROOT / 'mammo').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
# What a notebook may not name: a place on somebody's machine.
MACHINE_PATH = re.compile(r'(?<![\w.~/-])/(?:home|root|Users|work|tmp|private|mnt|media|srv|var/folders)/\w|\b[A-Z]:\\\\?Users\\', re.ASCII)
DIRECTIVE = re.compile(r'^\s*#\s*\|\s*(\w+)(.*)$', re.M)


def cells(notebook: Path) -> list[dict]:
    found = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [c | {'source': ''.join(c['source'])} for c in found]


def directives(cell: dict) -> dict[str, str]: return {name: rest.strip() for name, rest in DIRECTIVE.findall(cell['source'])}


def exported(cell: dict) -> bool: return cell['cell_type'] == 'code' and bool({'export', 'exporti', 'exports'} & set(directives(cell)))


def code(cell: dict) -> str:
    "The Python of a cell, without directives and magics."
    return '\n'.join(l for l in cell['source'].split('\n') if not re.match(r'\s*(#\s*\||[%!])', l))


def module_of(notebook: Path) -> str | None:
    return next((d['default_exp'] for c in cells(notebook) if 'default_exp' in (d := directives(c))), None)


def name_of(path: Path) -> str: return '.'.join(path.relative_to(ROOT / 'mammo').with_suffix('').parts)


FLOORS = {m: int(p.name.split('_')[0]) for p in NOTEBOOKS if (m := module_of(p))}


def imports(path: Path) -> set[str]:
    "Modules of this project that a file imports, anywhere in it, as `core` or `recipes.density`."
    package, found = ['mammo', *name_of(path).split('.')[:-1]], set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            base = '.'.join([*(package[:len(package) - node.level + 1] if node.level else []), *filter(None, [node.module])])
            found |= {base} | {f'{base}.{a.name}' for a in node.names}
    return {n.removeprefix('mammo.') for n in found if n.removeprefix('mammo.') in FLOORS and n.startswith('mammo.')}


def test_every_module_has_its_notebook():
    assert len(FLOORS) == len(set(FLOORS)) == sum(module_of(p) is not None for p in NOTEBOOKS), 'two notebooks export to one module'
    assert {name_of(p) for p in MODULES} == set(FLOORS), 'mammo/*.py and the notebooks differ'


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_imports_only_go_down(path):
    own = FLOORS[name_of(path)]
    above = {f'{FLOORS[n]:02d} {n}' for n in imports(path) if FLOORS[n] >= own}
    assert not above, f'floor {own:02d} {name_of(path)} imports from {sorted(above)}'


def test_the_import_reader_sees_all_forms(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], 'ROOT', tmp_path)
    monkeypatch.setattr(sys.modules[__name__], 'FLOORS', {'core': 0, 'runs': 2, 'jobs': 3, 'cli': 63, 'recipes.density': 50})
    p = tmp_path / 'mammo' / 'recipes' / 'density.py'
    p.parent.mkdir(parents=True)
    p.write_text('from ..core import Task\nimport mammo.runs\ndef f():\n    from mammo import jobs\n    from .. import cli\n    import core\n')
    assert imports(p) == {'core', 'runs', 'jobs', 'cli'}


def test_low_floors_need_no_torch():
    "Floors 00 to 03 answer at the command line, those up to 15 load in every worker process, 31 where reports are made."
    light = sorted((m for m, floor in FLOORS.items() if floor <= 15 or floor == 31), key=FLOORS.get)
    script = 'import importlib, sys\nfor m in sys.argv[1:]:\n    importlib.import_module("mammo." + m)\n    if "torch" in sys.modules: sys.exit(f"mammo.{m} imports torch")'
    done = subprocess.run([sys.executable, '-c', script, *light], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('notebook', [p for p in NOTEBOOKS if module_of(p)], ids=lambda p: p.stem)
def test_exports_are_in_step(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / 'nbs').mkdir()
    shutil.copy(notebook, tmp_path / 'nbs')
    nb_export(tmp_path / 'nbs' / notebook.name, lib_path=tmp_path / 'mammo')
    path = Path(*module_of(notebook).split('.')).with_suffix('.py')
    assert (tmp_path / 'mammo' / path).read_text(encoding='utf-8') == (ROOT / 'mammo' / path).read_text(encoding='utf-8'), 'run nbdev-export'


def test_the_index_knows_every_module():
    from mammo._modidx import d
    assert {f'mammo.{m}' for m in FLOORS} == set(d['syms']), 'run nbdev-export'


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_how_notebooks_are_written(notebook):
    found, wrong = cells(notebook), []
    for i, cell in enumerate(found):
        if cell['cell_type'] != 'code': continue
        tree, lines = ast.parse(code(cell)), [l for l in code(cell).split('\n') if l.strip()]
        nodes = tree.body if exported(cell) else list(ast.walk(tree))
        if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes) and not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body):
            wrong.append(f'cell {i} mixes imports with other code')
        if any(isinstance(n, ast.ImportFrom) and n.names[0].name == '*' for n in ast.walk(tree)): wrong.append(f'cell {i} imports *')
        if exported(cell) and len(lines) > 40: wrong.append(f'cell {i} exports {len(lines)} lines')
    assert not wrong, '; '.join(wrong)


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_what_notebooks_store(notebook):
    found = [c for c in cells(notebook)]
    outputs = [o for c in found if c['cell_type'] == 'code' for o in c['outputs']]
    assert outputs, 'no stored output: run it'
    assert not [o for o in outputs if o['output_type'] == 'error'], 'a stored error'
    texts = [c['source'] for c in found] + [json.dumps({k: v for k, v in o.get('data', {}).items() if not k.startswith('image/')}) + ''.join(o.get('text', '')) for o in outputs]
    named = {m.group() for t in texts for m in MACHINE_PATH.finditer(t)} | {str(p) for p in (ROOT, Path.home()) for t in texts if len(str(p)) > 5 and str(p) in t}
    assert not named, f'names a place on one machine: {sorted(named)}'
    states = json.loads(notebook.read_text(encoding='utf-8'))['metadata'].get('widgets')
    assert not states or any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs), 'keeps the states of widgets that nobody sees: remove metadata.widgets'


@pytest.mark.parametrize('text, found', [('/' + 'home/ana/x', True), ("'/" + "tmp/abc'", True), (r'C:\Users\ana', True), ('https://host/home/x', False), ('outputs/tmp/x', False), ('and/or', False)])
def test_the_path_finder(text, found): assert bool(MACHINE_PATH.search(text)) == found
