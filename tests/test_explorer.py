"""What only a browser can say: the viewer served by `mammography explore`, and the gallery opened as a file. Both in headless Chromium (Debian's `chromium`, pip's `playwright`), both without a request that leaves this machine.

MAMMO_SCREENSHOTS=FOLDER keeps a picture of what was seen.
"""
import csv
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='chromium is not installed: apt-get install chromium')


@pytest.fixture(scope='module')
def runs(study, mammography, tmp_path_factory):
    "Two seeds on the same validation images."
    folder = tmp_path_factory.mktemp('runs')
    for seed in (42, 43):
        mammography('train-density', '--csv', study / 'classificacao.csv', '--dicom-root', study / 'archive', '--outdir', folder, '--arch', 'resnet18', '--weights', 'none', '--img-size', 64, '--epochs', 1, '--lr', 1e-3,
                    '--val-split', .5, '--n-boot', 0, '--num-workers', 0, '--seed', seed)
    return [folder / 'results', folder / 'results_1']


@pytest.fixture(scope='module')
def secrets(runs, study):
    "What may not be seen: names of images and exams, keys of patients, paths."
    with open(runs[0] / 'val_predictions.csv') as f: rows = list(csv.DictReader(f))
    return {r[c] for r in rows for c in ('sample_id', 'exam_id', 'patient_key') if r[c]} | {str(study), str(runs[0].parent)}


@pytest.fixture(scope='module')
def chromium():
    "A browser."
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    "An empty page, and the addresses outside of this machine that it asked for."
    tab, left = chromium.new_page(viewport={'width': 1280, 'height': 1000}), []
    def route(r):
        if r.request.url.startswith(('http://127.0.0.1:', 'file:', 'data:', 'blob:')): r.continue_()
        else: left.append(r.request.url); r.abort()
    tab.route('**/*', route)
    yield tab, left
    tab.close()


def keep(tab, name):
    if folder := os.environ.get('MAMMO_SCREENSHOTS'): tab.screenshot(path=Path(folder) / f'{name}.png')


@pytest.fixture
def served(runs, torch_home, tmp_path):
    "`mammography explore` in a process of its own: its address. It ends with the test, and so does all that it started."
    line = [sys.executable, '-c', 'import sys; from mammo.cli import main; sys.exit(main())', 'explore', '--run', *map(str, runs), '--no-browser', '--comments', str(tmp_path / 'notes.csv'), '--num-workers', '0']
    (tmp_path / 'tmp').mkdir()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=os.environ | {'TORCH_HOME': str(torch_home), 'TMPDIR': str(tmp_path / 'tmp'), 'OMP_NUM_THREADS': '1'})
    address = process.stdout.readline().strip()
    assert re.fullmatch(r'http://127\.0\.0\.1:\d+/\?token=[\w-]{20,}', address), address
    yield address, tmp_path / 'notes.csv'
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].strip().endswith('ended') and process.returncode == 0
    assert not list((tmp_path / 'tmp').glob('mammo-page-*')), 'the notebook is still there'


def answer(address, path):
    c = http.client.HTTPConnection(re.search(r'//([^/]+)/', address)[1], timeout=30)
    c.request('GET', path)
    r = c.getresponse()
    return r.status, r.getheader('Location', ''), r.read().decode()


def test_the_viewer_in_a_browser(served, tab, secrets, runs):
    "Open, step, filter, slide, choose another class, jump to an error, note; and nothing without the token."
    (address, notes), (tab, left) = served, tab
    for path in ('/', '/?token=wrong', '/?token='):
        status, where, body = answer(address, path)
        assert status == 302 and where.startswith('/login') and 'mammo' not in body
    assert answer(address, '/api/kernels/00000000-0000-0000-0000-000000000000')[0] == 403
    tab.goto(address, wait_until='domcontentloaded')
    button = lambda name: tab.get_by_role('button', name=name)
    button('next').wait_for(timeout=120_000)
    body, caption = tab.locator('body'), lambda: re.search(r'#(\d+) · [LR] (?:CC|MLO) · true \w, said \w \(0\.\d\d\)', body.inner_text())
    picture = lambda i: tab.locator('img').nth(i).get_attribute('src')
    shown = lambda number: tab.wait_for_function('n => document.body.innerText.includes("#" + n + " · ")', arg=number)
    changed = lambda i, old: tab.wait_for_function('([i, old]) => document.images[i].src !== old', arg=[i, old])
    assert tab.locator('img').count() == 3 and 'seed 42' in body.inner_text() and 'seed 43' in body.inner_text()
    keep(tab, 'viewer_open')
    first, grey, heat = caption()[1], picture(0), picture(1)
    button('next').click()
    changed(0, grey)
    assert int(caption()[1]) == int(first) + 1
    seen = [body.inner_text()]
    # the opacity slider: the overlay changes, the original does not
    grey, heat = picture(0), picture(1)
    slider = tab.get_by_role('slider').nth(3)   # two handles of the probability, the place, the opacity
    slider.focus()
    for _ in range(4): tab.keyboard.press('ArrowLeft')
    changed(1, heat)
    tab.wait_for_function('() => document.body.innerText.includes("0.45")')
    assert picture(0) == grey
    heat = picture(1)
    tab.get_by_label('map for').select_option('D')
    tab.wait_for_function('() => document.body.innerText.includes("map for D")')
    # a filter
    n = int(re.search(r'(\d+) of \d+ val images', body.inner_text())[1])
    tab.get_by_label('outcome').select_option('wrong')
    tab.wait_for_function('n => !document.body.innerText.includes(n + " of " + n + " val")', arg=n)
    with open(runs[0] / 'val_predictions.csv') as f: wrong = sum(r['true_label'] != r['pred_label'] for r in csv.DictReader(f))
    assert int(re.search(r'(\d+) of \d+ val images', body.inner_text())[1]) == wrong
    button('worst error').click()
    tab.wait_for_timeout(1000)
    said = re.search(r'true (\w), said (\w)', caption()[0])
    assert said[1] != said[2]
    tab.get_by_placeholder('What do you see?').fill('fold of skin <b>')
    button('note').click()
    tab.wait_for_function('() => document.body.innerText.includes(": fold of skin <b>")')
    keep(tab, 'viewer_error')
    with open(notes) as f: noted = list(csv.DictReader(f))
    assert [(r['number'], r['comment'], r['sample_id'], r['run']) for r in noted] == [(caption()[1], 'fold of skin <b>', '', 'results')]
    seen.append(tab.content())
    assert [s for s in secrets if any(s in text for text in seen)] == []
    assert left == []


def test_the_gallery_in_a_browser(runs, mammography, secrets, tab, tmp_path):
    "From file://: filter, search, order, slide, open, next; no request but for its own pictures; nobody's name."
    mammography('gallery', '--run', runs[0], '--out', tmp_path / 'site', '--size', 128, '--num-workers', 0)
    page_file, (tab, left), asked, problems = tmp_path / 'site/index.html', tab, [], []
    tab.on('request', lambda r: asked.append(r.url))
    tab.on('console', lambda m: m.type == 'error' and problems.append(m.text))
    tab.on('pageerror', lambda e: problems.append(str(e)))
    tab.goto(page_file.as_uri(), wait_until='load')
    with open(runs[0] / 'val_predictions.csv') as f: rows = list(csv.DictReader(f))
    cards = lambda: tab.locator('article:visible')
    assert cards().count() == len(rows)
    assert tab.locator('article img').first.evaluate('e => e.decode().then(() => e.naturalWidth)') > 50
    keep(tab, 'gallery_open')
    tab.get_by_label('outcome').select_option('wrong')
    wrong = sum(r['true_label'] != r['pred_label'] for r in rows)
    assert cards().count() == wrong and tab.locator('#count').inner_text().startswith(f'{wrong} of {len(rows)} images')
    tab.get_by_label('order').select_option('worst')
    far = [int(d) for d in tab.locator('article:visible').evaluate_all('l => l.map(e => e.dataset.distance)')]
    assert far == sorted(far, reverse=True)
    tab.locator('form [name=view]').select_option('CC')
    assert cards().count() == sum(r['true_label'] != r['pred_label'] and r['view'] == 'CC' for r in rows)
    tab.get_by_role('button', name='reset').click()
    tab.wait_for_function('n => document.querySelectorAll("article:not([hidden])").length === n', arg=len(rows))
    tab.get_by_label('search').fill('#7')
    assert cards().count() == 1
    tab.get_by_label('search').fill('r mlo')
    assert cards().count() == sum((r['laterality'], r['view']) == ('R', 'MLO') for r in rows)
    tab.get_by_label('search').fill('nothing like this')
    assert cards().count() == 0
    tab.get_by_role('button', name='reset').click()
    opacity = lambda: float(tab.locator('article .heat').first.evaluate('e => getComputedStyle(e).opacity'))
    assert opacity() == .75
    tab.locator('form [name=heat]').fill('0.2')
    assert opacity() == pytest.approx(.2)
    tab.locator('article button').nth(2).click()
    place = lambda: tab.locator('#place').inner_text()
    assert place() == f'3 of {len(rows)}' and tab.locator('dialog').is_visible()
    tab.locator('#next').click()
    assert place() == f'4 of {len(rows)}' and '#4' in tab.locator('#about').inner_text()
    tab.keyboard.press('ArrowLeft')
    assert place() == f'3 of {len(rows)}'
    tab.wait_for_timeout(300)
    keep(tab, 'gallery_one')
    tab.locator('#close').click()
    text = page_file.read_text(encoding='utf-8')
    assert [s for s in secrets if s in text] == [] and all(a.startswith(page_file.parent.as_uri()) for a in asked) and left == problems == []
    assert text.count('alt="Mammogram ') == text.count('alt="Heat map for class ') == len(rows)
    json.loads((tmp_path / 'site/gallery.json').read_text())


def test_the_gallery_in_the_dark(chromium, runs, mammography, tmp_path):
    "The colours follow the reader, and every image is there without a script."
    mammography('gallery', '--run', runs[0], '--out', tmp_path / 'site', '--size', 96, '--images', 6, '--num-workers', 0)
    dark = chromium.new_context(color_scheme='dark', java_script_enabled=False).new_page()
    dark.goto((tmp_path / 'site/index.html').as_uri(), wait_until='load')
    assert dark.locator('article:visible').count() == 6 and not dark.locator('form').is_visible()
    keep(dark, 'gallery_dark')
    dark.close()
    light = chromium.new_context(color_scheme='dark').new_page()
    light.goto((tmp_path / 'site/index.html').as_uri(), wait_until='load')
    colours = [light.evaluate(f'getComputedStyle(document.body).{k}') for k in ('backgroundColor', 'color')]
    ground, ink = (sum(map(int, re.findall(r'\d+', c)[:3])) for c in colours)
    assert ground < 150 < 500 < ink
    keep(light, 'gallery_dark_form')
    light.close()
