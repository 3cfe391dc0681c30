"Pages of an article as processes: parameters before anything runs, states, skipping, Ctrl-C; and the real pages, small."
import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from mammo.article import Page, article, check_parameters, classes_sentence, declared, findings_sentence, folds_sentence, fusion_sentence, level_sentence, limits_sentence, maps_sentence, plan, search_sentence, spread_sentence
from mammo.core import ConfigError
from mammo.pages import article_config
from mammo.runs import RunDir

ROOT = Path(__file__).parents[1]
PAGES = sorted({p.source for p in plan(article_config())})
TINY = {'exams': 24, 'img_size': 32, 'epochs': 1, 'warmup_epochs': 0, 'n_boot': 20, 'folds': 2, 'trials': 1, 'search_epochs': 1, 'map_images': 6, 'audit_images': 2, 'spine_settings': ['epochs=1', 'img_size=32'], 'chest_settings': ['epochs=1', 'img_size=32']}
NAN = float('nan')


def page(folder: Path, name: str, *sources: str, parameters: str = 'seed: int = 1\noutdir: str = "x"\nsettings: dict = {}\nseeds: list = [1]') -> Path:
    cells = [nbformat.v4.new_markdown_cell('# A page'), nbformat.v4.new_code_cell(parameters, metadata={'tags': ['parameters']}), *map(nbformat.v4.new_code_cell, sources)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}), folder / f'{name}.ipynb')
    return folder / f'{name}.ipynb'


def cells(name: str) -> list[dict]: return json.loads((ROOT / f'nbs/article/{name}.ipynb').read_text(encoding='utf-8'))['cells']


@pytest.mark.parametrize('name', PAGES)
def test_a_page_is_a_page(name):
    "One cell of parameters that the plan can fill; no functions; every figure with caption and alternative text; imports that exist."
    found = cells(name)
    for p in plan(article_config()):
        if p.source == name: check_parameters(ROOT / f'nbs/article/{name}.ipynb', {'outdir': 'x', 'settings': {}} | dict(p.given))
    code = ['\n'.join(l for l in ''.join(c['source']).split('\n') if not l.startswith('#|')) for c in found if c['cell_type'] == 'code']
    labels = re.findall(r'#\| label: (\S+)', '\n'.join(''.join(c['source']) for c in found))
    assert len(set(labels)) == len(labels)
    for c in found:
        text = ''.join(c['source'])
        if 'label: fig-' in text: assert 'fig-cap: "' in text and 'fig-alt: "' in text
        if 'label: tbl-' in text: assert 'tbl-cap: "' in text
        if c['cell_type'] == 'code' and 'parameters' not in c['metadata'].get('tags', ()) and not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(re.sub(r'(?m)^#\|.*$', '', text)).body): assert text.startswith('#| slow'), 'make test would run it'
    trees = [ast.parse(c) for c in code]
    assert not [n for t in trees for n in ast.walk(t) if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While))], 'a page holds no logic'
    for t in trees:
        for n in t.body:
            if isinstance(n, ast.ImportFrom) and n.module.startswith('mammo'):
                module = __import__(n.module, fromlist=['x'])
                assert not [a.name for a in n.names if not hasattr(module, a.name)]


@pytest.mark.parametrize('name', PAGES)
def test_what_a_page_stores(name):
    "Real outputs, small, with no error and no place of a machine."
    path = ROOT / f'nbs/article/{name}.ipynb'
    outputs = [o for c in cells(name) if c['cell_type'] == 'code' for o in c['outputs']]
    assert outputs and not [o for o in outputs if o['output_type'] == 'error']
    text = json.dumps([{k: v for k, v in o.get('data', {}).items() if not k.startswith('image/')} | {'text': o.get('text')} for o in outputs])
    assert not re.search(r'(?<![\w.~/-])/(?:home|root|Users|tmp|work)/\w', text) and path.stat().st_size < 3e6


@pytest.mark.parametrize('given, said', [({'sed': 3}, 'one: sed: there is no such parameter'), ({'seed': '3'}, "one: seed: is '3'"), ({'seed': 1.5}, 'one: seed'), ({'seed': True}, 'one: seed'), ({'settings': []}, 'one: settings')])
def test_parameters_are_checked_before_any_page_runs(tmp_path, given, said):
    page(tmp_path / 'src', 'one', '1')
    rows = [Page('good', 'one', 'Good'), Page('one', 'one', 'One', tuple(given.items()))]
    with pytest.raises(ConfigError, match=re.escape(said)): article(article_config(tmp_path / 'out'), rows, tmp_path / 'src')
    assert not (tmp_path / 'out').exists()


def test_a_missing_parameter_and_a_missing_tag_are_refused(tmp_path):
    page(tmp_path, 'one', parameters='seed: int = ...\noutdir: str = "x"\nsettings: dict = {}')
    with pytest.raises(ConfigError, match='one: seed: is missing'): article(article_config(tmp_path / 'out'), [Page('one', 'one', 'One')], tmp_path)
    nb = nbformat.read(tmp_path / 'one.ipynb', 4)
    nb.cells[1].metadata.tags = []
    nbformat.write(nb, tmp_path / 'one.ipynb')
    with pytest.raises(ConfigError, match='one.ipynb: has 0 cells tagged parameters'): declared(tmp_path / 'one.ipynb')


def test_settings_name_what_is_wrong():
    for bad in ({'colour': 1}, {'epochs': 'many'}, {'augment': 'no'}):
        with pytest.raises(ConfigError, match=f'settings.{next(iter(bad))}'): article_config(settings=bad)


OPPOSITE = [('up', .03, .01, .05), ('down', -.03, -.05, -.01), ('open', .01, -.02, .04), ('unknown', .01, None, None), ('unknown', None, NAN, NAN)]


@pytest.mark.parametrize('result, value, low, high', OPPOSITE)
def test_sentences_stay_true_whatever_comes_out(result, value, low, high):
    say = {'up': 'is higher', 'down': 'is lower', 'open': 'not decided', 'unknown': 'not known'}
    for n in (4, 400):
        told = fusion_sentence(value, low, high, n, 'kappa')
        assert [w for w in say.values() if w in told] == [say[result]] and ('few' in told) == (n == 4) and 'nan' not in told and 'None' not in told
    chance = level_sentence('AUROC', None if value is None else value + .5, None if low is None else low + .5, None if high is None else high + .5, 400, .5)
    assert {'up': 'above', 'down': 'below', 'open': 'not told apart from', 'unknown': 'nothing is said of'}[result] + ' what guessing gives (0.5)' in chance
    assert {'up': 'more alike', 'down': 'less alike', 'open': 'not decided', 'unknown': 'not known'}[result] in maps_sentence(value, low, high, 9)
    at = None if low is None else low + .5, None if high is None else high + .5
    assert {'up': 'better than by chance', 'down': 'worse than by chance', 'open': 'not told apart from chance', 'unknown': 'without an interval'}[result] in findings_sentence([('Mass', .5, *at, 40)])
    assert 'not judged' in findings_sentence([('Mass', .5, *at, 1)])
    for text in (spread_sentence('kappa', value, .02, 3, low, high, 400), folds_sentence('kappa', value, .02, low, high, 3, 400, 0.), limits_sentence(value, low, high, 400, 'test')):
        assert 'nan' not in text and 'None' not in text and text.endswith('.') and ('interval' in text or 'not defined' in text)


def test_sentences_that_compare():
    single = [folds_sentence('kappa', .7, .02, .6, .8, 3, 400, s) for s in (.9, .5, .7)]
    assert [w for t in single for w in ('above', 'below', 'inside') if f'{w} this interval' in t] == ['above', 'below', 'inside']
    assert 'do not meet' in classes_sentence([('A', .2, .1, .3, 9), ('B', .9, .8, 1., 9)]) and 'may be luck' in classes_sentence([('A', .2, .1, .5, 9), ('B', .4, .3, .6, 9)]) and 'cannot be compared' in classes_sentence([('A', NAN, None, None, 3), ('B', .4, .3, .6, 9)])
    assert 'not shown a gain' in search_sentence(.7, .75, 4, .6, .9, 'kappa') and 'only images that no trial has seen' in search_sentence(.5, .75, 4, .6, .9, 'kappa') and 'None of 4' in search_sentence(.8, .75, 4, .6, .9, 'kappa')
    assert 'no σ' in spread_sentence('kappa', .7, None, 1, .6, .8, 400) and '0.700 ± 0.020' in spread_sentence('kappa', .7, .02, 3, .6, .8, 400)
    assert 'no claim' in limits_sentence(.7, .6, .8, 400, 'val') and 'no claim' not in limits_sentence(.7, .6, .8, 400, 'test')


def state(out: Path) -> dict: return {n: e['state'] for n, e in RunDir(out).read_json('article')['pages'].items()}


def test_a_failed_page_is_kept_and_the_others_go_on(tmp_path, capsys):
    src, out = tmp_path / 'src', tmp_path / 'out'
    page(src, 'good', f'from pathlib import Path\nwith open({str(tmp_path / "ran")!r}, "a") as f: f.write(f"{{seed}}\\n")', 'import sys; print("told"); print("noise", file=sys.stderr)')
    page(src, 'bad', f'raise ValueError({str(tmp_path)!r} + " boom")', '1')
    rows = [Page('good', 'good', 'Good, seed 1', (('seed', 1),)), Page('bad', 'bad', 'Bad'), Page('child', 'good', 'Child', (('seed', 2),), needs=('bad',)), Page('index', 'good', 'All', (('seed', 3),), after=('good', 'bad', 'child'))]
    cfg = article_config(out)
    where, failed = article(cfg, rows, src)
    assert failed == ['bad', 'child'] and state(out) == {'good': 'finished', 'bad': 'failed', 'child': 'not run', 'index': 'finished'}
    assert (tmp_path / 'ran').read_text().split() == ['1', '3']
    kept = {p.stem: json.loads(p.read_text()) for p in (out / 'pages').glob('*.ipynb')}
    assert set(kept) == {'good', 'bad', 'index'} and not list((out / 'unfinished').glob('*'))
    assert kept['good']['cells'][0]['source'] == '# Good, seed 1' and [o['name'] for c in kept['good']['cells'][2:] for o in c['outputs']] == ['stdout']
    assert kept['bad']['metadata']['mammo']['state'] == 'failed' and 'This page failed' in kept['bad']['cells'][1]['source'] and 'boom' in kept['bad']['cells'][1]['source']
    assert str(tmp_path / 'out') not in json.dumps(kept) and 'papermill' not in kept['good']['metadata']
    lines = capsys.readouterr().out.splitlines()
    assert [l for l in lines if re.match(r'bad +failed +[\d.]+ s  ValueError', l)] and [l for l in lines if re.match(r'child +not run', l)]

    page(src, 'bad', '2')   # mended: it and its child are made, what has finished stays
    assert article(cfg, rows[:3], src)[1] == [] and (tmp_path / 'ran').read_text().split() == ['1', '3', '2']
    assert re.findall(r'good +finished before', capsys.readouterr().out)


@pytest.mark.slow
def test_a_page_is_made_again_where_what_it_left_has_changed(tmp_path):
    src, out = tmp_path / 'src', tmp_path / 'out'
    page(src, 'good', f'with open({str(tmp_path / "ran")!r}, "a") as f: f.write("x")')
    cfg, rows = article_config(out), [Page('good', 'good', 'Good', gives=('left.txt',)), Page('index', 'good', 'All', after=('good',))]
    out.mkdir()
    for left, ran in (('a', 'xx'), ('a', 'xx'), ('b', 'xxxx')):
        (out / 'left.txt').write_text(left)
        article(cfg, rows, src)
        assert (tmp_path / 'ran').read_text() == ran


@pytest.mark.slow
def test_ctrl_c_ends_the_pages(tmp_path):
    page(tmp_path / 'src', 'long', f'import os, subprocess, sys, time\nfrom pathlib import Path\nchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\nPath({str(tmp_path / "pids")!r}).write_text(f"{{os.getpid()}}")\ntime.sleep(60)')
    script = f'from pathlib import Path\nfrom mammo.article import Page, article\nfrom mammo.pages import article_config\narticle(article_config({str(tmp_path / "out")!r}), [Page("long", "long", "Long")], Path({str(tmp_path / "src")!r}))'
    p = subprocess.Popen([sys.executable, '-c', script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    until = time.time() + 60
    while not ((pids := tmp_path / 'pids').exists() and pids.read_text()) and time.time() < until: time.sleep(.2)
    kernel = int(pids.read_text())
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=40)
    assert p.returncode != 0
    until = time.time() + 20
    while alive(kernel) and time.time() < until: time.sleep(.2)
    assert not alive(kernel) and not (tmp_path / 'out/pages').exists() and state(tmp_path / 'out') == {}


def alive(pid: int) -> bool:
    try: return Path(f'/proc/{pid}/stat').read_text().split(')')[-1].split()[0] != 'Z'
    except FileNotFoundError: return False


@pytest.mark.slow
def test_the_article_of_two_seeds(tmp_path, mammography):
    "Every real page, small, by the command; the same command again makes nothing."
    flags = [f for k, v in TINY.items() for f in ('--' + k.replace('_', '-'), *(v if isinstance(v, list) else [v]))]
    done = mammography('article', '--seeds', '42,43', '--outdir', tmp_path / 'out', '--jobs', '2', *flags, cwd=ROOT)
    assert set(state(tmp_path / 'out').values()) == {'finished'}
    pages = sorted((tmp_path / 'out/pages').glob('*.ipynb'))
    assert len(pages) == len(plan(article_config(seeds=(42, 43)))) and all(p.stat().st_size < 3e6 for p in pages)
    assert not [p.name for p in pages if str(tmp_path) in p.read_text() or str(ROOT) in p.read_text()]
    again = mammography('article', '--seeds', '42,43', '--outdir', tmp_path / 'out', *flags, cwd=ROOT)
    assert again.stdout.count('finished before') == len(pages) and 'begun' not in again.stdout


@pytest.mark.slow
def test_the_line_of_the_issue(tmp_path):
    "papermill from the root of a project that has no outputs, with its own relative paths."
    import shutil
    (tmp_path / 'nbs').mkdir()
    shutil.copytree(ROOT / 'nbs/article', tmp_path / 'nbs/article')
    shutil.copytree(ROOT / 'outputs/article', tmp_path / 'outputs/article', ignore=lambda folder, names: [n for n in names if n != 'README.md'])   # papermill wants the folder: it is in the repository
    line = [sys.executable, '-m', 'papermill', 'nbs/article/density.ipynb', 'outputs/article/density-seed43.ipynb', '-p', 'seed', '43', '-y', json.dumps({'settings': TINY})]
    done = subprocess.run(line, cwd=tmp_path, env=os.environ | {'IN_TEST': '1'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'outputs/article/density/seed_43/results/summary.json').exists() and 'seed 43' in (tmp_path / 'outputs/article/density-seed43.ipynb').read_text()
