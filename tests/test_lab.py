"""JupyterLab as a user has it: `make lab` opens the index, and a notebook runs from top to bottom with Run All. In headless Chromium; slow, and skipped without it.

MAMMO_SCREENSHOTS=FOLDER keeps a picture of what was seen.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def make_lab() -> list[str]:
    "What `make lab` gives to JupyterLab."
    said = subprocess.run(['make', '-n', '-o', '.venv/.installed', 'lab'], cwd=ROOT, capture_output=True, text=True).stdout
    return re.search(r'jupyter lab (.+)', said)[1].split()


def test_make_lab_names_the_index():
    *flags, opened = make_lab()
    assert opened == 'nbs/index.ipynb' and (ROOT / opened).is_file() and flags == ['--ServerApp.root_dir=.'], 'the whole project is in sight'


@pytest.fixture(scope='module')
def chromium():
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
    path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not path: pytest.skip('chromium is not installed: apt-get install chromium')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab on a copy of the project, on a free port, with settings of its own: its address."
    home = tmp_path_factory.mktemp('lab')
    shutil.copytree(ROOT / 'nbs', home / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_*'))
    shutil.copy(ROOT / 'settings.ini', home)
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = os.environ | {'OMP_NUM_THREADS': '1', 'MAMMO_KEY_FILE': str(home / 'patient.key'), **{f'JUPYTER_{n}_DIR': str(home / n.lower()) for n in ('CONFIG', 'DATA', 'RUNTIME')}, 'JUPYTERLAB_SETTINGS_DIR': str(home / 'settings'), 'JUPYTERLAB_WORKSPACES_DIR': str(home / 'workspaces')}
    line = [sys.executable, '-m', 'jupyterlab', '--no-browser', f'--ServerApp.port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=of-the-test', '--ServerApp.allow_root=True', *make_lab()]
    with open(home / 'log', 'w') as log: process = subprocess.Popen(line, cwd=home, env=env, stdout=log, stderr=subprocess.STDOUT)
    address = f'http://127.0.0.1:{port}'
    for _ in range(240):
        assert process.poll() is None, (home / 'log').read_text()[-2000:]
        try: urllib.request.urlopen(f'{address}/api?token=of-the-test', timeout=5).read(); break
        except OSError: time.sleep(.5)
    yield address, home  # what a browser would have been sent to stands in runtime/jpserver-*-open.html
    process.send_signal(signal.SIGTERM)
    process.wait(60)


ERRORS = '''() => { const cells = [...document.querySelectorAll(".jp-CodeCell")]; return cells.filter(c => c.querySelector("[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg, .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")).map(c => c.innerText.slice(0, 300)); }'''


def opened(lab, chromium, name):
    "The notebook in a tab of its own, kernel ready; only this machine is asked."
    address, _ = lab
    tab = chromium.new_page(viewport={'width': 1400, 'height': 1000})
    tab.route('**/*', lambda r: r.continue_() if r.request.url.startswith((address, address.replace('http', 'ws'), 'data:', 'blob:')) else r.abort())
    tab.goto(f'{address}/lab/workspaces/{name}/tree/nbs/{name}.ipynb?reset&token=of-the-test', wait_until='domcontentloaded')
    tab.locator('.jp-NotebookPanel .jp-CodeCell').first.wait_for(timeout=120_000)
    tab.locator('.jp-NotebookPanel [data-status=idle]').first.wait_for(timeout=120_000)
    return tab


def run_all(tab, home, name, most):
    "Run All Cells by the menu, saved when the kernel rests: the notebook's cells as they are in the file then."
    tab.get_by_role('menuitem', name='Kernel').first.click()
    tab.locator('[data-command="kernelmenu:restart-and-clear"]').first.click()
    tab.locator('.jp-Dialog button.jp-mod-accept').click()
    tab.wait_for_function('!document.querySelector(".jp-Dialog")')
    tab.locator('.jp-NotebookPanel [data-status=idle]').first.wait_for(timeout=60_000)
    tab.get_by_role('menuitem', name='Run', exact=True).first.click()
    tab.locator('[data-command="runmenu:run-all"]').first.click()
    until, file = time.monotonic() + most, home / f'nbs/{name}.ipynb'
    while True:
        tab.wait_for_timeout(2000)
        if dialog := tab.locator('.jp-Dialog button.jp-mod-accept').all(): dialog[0].click()
        tab.keyboard.press('Control+s')
        cells = [c for c in json.loads(file.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).strip()]
        if all(c['execution_count'] for c in cells) or any(o['output_type'] == 'error' for c in cells for o in c['outputs']): return cells
        assert time.monotonic() < until, f'{sum(not c["execution_count"] for c in cells)} of {len(cells)} cells have not run'


@pytest.mark.slow
def test_make_lab_opens_the_index(lab):
    sent = next((lab[1] / 'runtime').glob('jpserver-*-open.html')).read_text(encoding='utf-8')
    assert re.search(r'url=' + re.escape(lab[0].replace('127.0.0.1', 'localhost')) + r'/lab/tree/nbs/index\.ipynb\?token=', sent), sent


@pytest.mark.slow
@pytest.mark.parametrize('name, shows', [('index', ''), ('13_splits', '.jp-RenderedHTMLCommon table'), ('32_training', '.jupyter-widgets, .jp-RenderedHTMLCommon table')])
def test_a_notebook_runs_from_top_to_bottom(lab, chromium, name, shows):
    "No cell fails, and what it shows is drawn: a table, a progress bar."
    tab = opened(lab, chromium, name)
    cells = run_all(tab, lab[1], name, 420)
    failed = [(''.join(c['source'])[:200], o['ename'], o['evalue']) for c in cells for o in c['outputs'] if o['output_type'] == 'error']
    assert failed == [] and sum(bool(c['outputs']) for c in cells) >= 1
    if shows:
        for at in range(0, 40_000, 700):  # JupyterLab draws cells when they come into sight
            if tab.locator(shows).count(): break
            tab.locator('.jp-WindowedPanel-outer').first.evaluate('(e, y) => e.scrollTo(0, y)', at)
            tab.wait_for_timeout(150)
        assert tab.locator(shows).first.is_visible()
    if name == '32_training': assert any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for c in cells for o in c['outputs']), 'a progress bar was drawn'
    if folder := os.environ.get('MAMMO_SCREENSHOTS'): tab.screenshot(path=Path(folder) / f'lab_{name}.png')
    tab.close()
