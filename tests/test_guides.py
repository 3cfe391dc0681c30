"""Every command line of the README and of the guides, as a reader would type it: read by the command's own parser, and run in order, page by page, in an empty folder.

A line is run as it stands but for `SMALL` and `MORE`, which make it cheap, and `NOT_RUN`, whose reasons are said.
"""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mammo.cli import COMMANDS, FIRST, PRESETS, _flags, parse, with_flag

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'nbs/guides').glob('*.ipynb'))]
BLOCK = re.compile(r'^```sh\n(.*?)^```', re.M | re.S)
TOOLS = ('mammography', 'make', 'papermill')
OTHERS = {'source': 'the environment', 'ray': 'a cluster', 'pip': 'a registry', 'sha256sum': 'a file of the reader'}  # First words of lines that are not ours
# What a line costs, not what it does. A value takes the place of the line's own, and is added to every command that knows the flag.
SMALL = {'--epochs': '2', '--img-size': '64', '--n-boot': '50', '--trials': '2', '--images': '8', '--audit-images': '4', '--per': '1'}
MORE = {'phantom': {'--rows': '192', '--columns': '160'},  # where the line does not say it
        'train-spine': {'--weights': 'none'}, 'train-chest': {'--weights': 'none', '--phases': 'frozen:train_backbone=no,epochs=1'}}
NOT_RUN = {'srun': 'needs Slurm', '--ray-address': 'needs a cluster', '/path/to/': 'a file of the reader'}


def text_of(page: Path) -> str:
    if page.suffix == '.md': return page.read_text(encoding='utf-8')
    return '\n\n'.join(''.join(c['source']) for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown')


def lines_of(page: Path) -> list[list[str]]:
    "The words of each line in the page's shell blocks, in order, without comments, … and the lone --."
    lines = '\n'.join(BLOCK.findall(text_of(page))).replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := [w for w in shlex.split(line, comments=True) if w not in ('…', '--')])]


def ours(words: list[str]) -> list[str]:
    "From the name of our tool on; empty for a line of another program."
    return next((words[i:] for i, w in enumerate(words) if w in TOOLS), [])


def small(words: list[str]) -> list[str]:
    "The same command at a lower price."
    name, argv = words[1], words[2:]
    for flag, value in SMALL.items():
        if flag not in _flags(COMMANDS[name][1]): continue
        argv = argv[:argv.index(flag)] + argv[argv.index(flag) + 2:] if flag in argv else argv
        argv += [flag, value]
    for flag, value in MORE.get(name, {}).items():
        if flag not in argv: argv += [flag, value]
    return [words[0], name, *argv]


COMMAND_LINES = {p: [l for l in map(ours, lines_of(p)) if l] for p in PAGES}
WITH_LINES = [p for p in PAGES if COMMAND_LINES[p]]


def test_the_reader_of_pages_sees_all_forms(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('```sh\nmake demo   # a remark\nmammography audit -- \\\n   --csv "a b.csv"\n```\n```python\nmammography = 1\n```\n```sh\nsrun -n 2 mammography card --run r …\n```\n')
    assert [ours(l) for l in lines_of(page)] == [['make', 'demo'], ['mammography', 'audit', '--csv', 'a b.csv'], ['mammography', 'card', '--run', 'r']]
    assert small('mammography gradcam --images 200 --run r'.split())[:7] == 'mammography gradcam --run r --n-boot 50 --images'.split()


def test_there_are_pages_with_lines():
    assert ROOT / 'README.md' in WITH_LINES and len(WITH_LINES) >= 6 and sum(map(len, COMMAND_LINES.values())) >= 40


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_every_line_can_be_read(page):
    for words in lines_of(page):
        assert ours(words) or words[0] in OTHERS, f'{" ".join(words)}: begins with a word that nobody checks'
    for tool, name, *argv in COMMAND_LINES[page]:
        if tool == 'mammography': parse(COMMANDS[name][1], with_flag(name, argv), preset=PRESETS.get(name))  # raises for a flag that is not there
        if tool == 'make': assert re.search(rf'^{re.escape(name)}:', (ROOT / 'Makefile').read_text(), re.M), f'make {name}'
        if tool == 'papermill':
            from papermill import inspect_notebook
            given = [argv[i + 1] for i, a in enumerate(argv) if a in ('-p', '-r')]
            assert set(given) <= set(inspect_notebook(ROOT / name)), f'{name} has no parameter of {given}'


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    targets = {t.partition('#')[0] for t in re.findall(r'\]\(([^)\s]+)\)', text_of(page)) if '://' not in t and t[0] != '#'}
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_readme_names_every_command():
    text = text_of(ROOT / 'README.md')
    assert [n for n in COMMANDS if f'| `{n}` |' not in text] == [], 'run nbs/index.ipynb, then make readme'
    assert max(map(len, text.splitlines())) < 400 and len(text.split()) < 1500


def test_what_mammography_alone_says_is_on_the_readme():
    assert {line.split()[0] for line, _, _ in FIRST} <= {w[1] for w in COMMAND_LINES[ROOT / 'README.md']} | {'demo', 'explore'}


def test_the_python_of_the_readme_is_a_training(monkeypatch):
    "Its settings are made; what takes them is replaced, so that neither torch nor a training is needed here."
    for module, name, does in (('recipes.density', 'train_density', lambda cfg: cfg), ('study', 'figures', lambda cfg: {'val': cfg})):
        assert f'\ndef {name}(' in (ROOT / 'mammo' / f'{module.replace(".", "/")}.py').read_text(encoding='utf-8')
        monkeypatch.setitem(sys.modules, f'mammo.{module}', SimpleNamespace(**{name: does}))
    found, code = {}, re.search(r'^```python\n(.*?)^```', text_of(ROOT / 'README.md'), re.M | re.S)[1]
    exec(compile(code, 'README.md', 'exec'), found)
    assert found['run'].model.unfreeze_last_block and str(found['run'].data.csv) in text_of(ROOT / 'README.md').split('```python')[0]


@pytest.mark.slow
@pytest.mark.parametrize('page', WITH_LINES, ids=lambda p: p.stem)
def test_the_lines_run_in_order(page, tmp_path, torch_home):
    "By the command that is installed, as `--devices` starts it again."
    done, command = 0, Path(sys.executable).with_name('mammography')
    for words in lines_of(page):
        line = ours(words)
        if line[:1] != ['mammography'] or any(mark in w for mark in NOT_RUN for w in words): continue
        said = subprocess.run([command, *small(line)[1:]], cwd=tmp_path, env=os.environ | {'TORCH_HOME': str(torch_home)}, capture_output=True, text=True)
        assert said.returncode == 0, f'{" ".join(line)}\n{said.stderr[-2000:]}'
        done += 1
    if page.stem not in ('weights', 'promises'): assert done >= 3 and list((tmp_path / 'outputs').iterdir())
    assert not (page.stem == 'README' and not (tmp_path / 'Article/sections').is_dir())


@pytest.mark.slow
def test_make_demo_in_an_empty_folder(tmp_path):
    "The first line of the README, whole; the environment is the one that runs the test."
    venv = Path(sys.prefix)
    for name in ('settings.ini', 'pyproject.toml', 'setup.py'): os.symlink(ROOT / name, tmp_path / name)
    if not (venv / '.installed').exists(): pytest.skip('not an environment made by make setup')
    done = subprocess.run(['make', '-f', ROOT / 'Makefile', f'VENV={venv}', '-o', venv / '.installed', 'demo'], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'quadratic kappa' in done.stdout and (tmp_path / 'outputs/demo/results/summary.json').exists()
