"""What only a browser can say of the site: opened as files in headless Chromium (Debian's `chromium`, pip's `playwright`), at the width of a desk and of a phone, light and dark.

MAMMO_SCREENSHOTS=FOLDER keeps a picture of what was seen.
"""
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: pip install playwright')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='chromium is not installed: apt-get install chromium')

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
SOME = ('index', 'learn', '10_dicom', '16_datasets', '32_training', '42_gradcam', 'guides/weights', 'article/density_choices', 'reference/core', 'guides/promises')
DESK, PHONE = {'width': 1280, 'height': 900}, {'width': 390, 'height': 844}

# What is wider than the page, or cut off, and nothing that scrolls lies around it.
CUT = '''() => [...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (!box.width || !box.height || e.closest("dialog, .skip, math, svg")) return false;
  for (let p = e; p !== document.body; p = p.parentElement) if (["auto", "scroll"].includes(getComputedStyle(p).overflowX) && p !== e) return false;
  const scrolls = ["auto", "scroll"].includes(style.overflowX);
  return box.right > innerWidth + 1 || box.left < -1 || (!scrolls && style.display !== "inline" && e.scrollWidth > e.clientWidth + 2 && e.clientWidth > 0);
}).map(e => e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 60))'''

# Every text against its ground: WCAG's ratio, 4.5 or 3 for large letters.
FAINT = '''() => {
  const lum = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const rgb = s => s.match(/[\\d.]+/g).map(Number), ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > .5) return c.slice(0, 3); } return [255, 255, 255]; };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = new Set();
  for (let n; n = walk.nextNode();) {
    const e = n.parentElement, s = getComputedStyle(e);
    if (!n.data.trim() || !e.getClientRects().length || s.visibility === "hidden" || e.closest("[style*='background'], style, script, .anchor, .copy")) continue;
    if (e.closest("table[id^=T_]")) continue;   // colours that a notebook chose
    const a = lum(rgb(s.color).slice(0, 3)), b = lum(ground(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05), large = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.66 && s.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.add(`${e.tagName}.${e.className} ${s.color} ${ratio.toFixed(2)}: ${n.data.trim().slice(0, 30)}`);
  }
  return [...found];
}'''


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Some pages of the site as plain HTML."
    import docs
    out = tmp_path_factory.mktemp('site')
    docs.build(out, tmp_path_factory.mktemp('outputs'), only=lambda p: p.path in SOME)
    return out


@pytest.fixture(scope='module')
def chromium():
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--allow-file-access-from-files'])
        yield browser
        browser.close()


class Tab:
    "A page, what its console complained of, and what it asked for outside of its folder."

    def __init__(self, chromium, site, size=DESK, colours='light', **more):
        self.site, self.context = site, chromium.new_context(viewport=size, color_scheme=colours, **more)
        self.page, self.problems = self.context.new_page(), []
        self.page.on('console', lambda m: m.type in ('error', 'warning') and self.problems.append(m.text))
        self.page.on('pageerror', lambda e: self.problems.append(str(e)))
        self.page.on('requestfailed', lambda r: self.problems.append(f'{r.url} {r.failure}'))
        self.page.on('request', lambda r: r.url.startswith((site.as_uri(), 'data:')) or self.problems.append(r.url))

    def open(self, path):
        self.page.goto((self.site / f'{path}.html').as_uri(), wait_until='load')
        return self.page

    def __enter__(self): return self

    def __exit__(self, *_): self.context.close()

    def keep(self, name):
        if folder := os.environ.get('MAMMO_SCREENSHOTS'): self.page.screenshot(path=Path(folder) / f'{name.replace("/", "_")}.png')


@pytest.mark.parametrize('size', [DESK, PHONE], ids=['desk', 'phone'])
def test_nothing_is_cut_off_and_nothing_complains(chromium, site, size):
    with Tab(chromium, site, size) as tab:
        for path in SOME:
            page = tab.open(path)
            assert page.evaluate('document.documentElement.scrollWidth') <= size['width'], path
            assert page.evaluate(CUT) == [], path
            assert page.evaluate('[...document.images].every(i => { i.loading = "eager"; return true; })') and page.wait_for_function('[...document.images].every(i => i.complete && i.naturalWidth)'), path
            tab.keep(f'{path}_{size["width"]}')
        assert tab.problems == []


@pytest.mark.parametrize('colours', ['light', 'dark'])
def test_letters_stand_out(chromium, site, colours):
    with Tab(chromium, site, colours=colours) as tab:
        for path in SOME:
            assert tab.open(path).evaluate(FAINT) == [], path
            tab.keep(f'{path}_{colours}')


def test_the_cut_and_the_faint_are_found(chromium, site):
    with Tab(chromium, site, PHONE) as tab:
        page = tab.open('index')
        page.evaluate('document.querySelector("main h1").style.cssText = "white-space: nowrap; width: 50px; color: #eee"')
        assert len(page.evaluate(CUT)) >= 1 and len(page.evaluate(FAINT)) == 1


def test_colours_follow_the_reader_and_are_remembered(chromium, site):
    ground = lambda page: sum(map(int, re.findall(r'\d+', page.evaluate('getComputedStyle(document.body).backgroundColor'))[:3]))
    with Tab(chromium, site, colours='dark') as tab:
        page = tab.open('index')
        button = page.get_by_role('button', name='Dark colours')
        assert ground(page) < 150 and button.get_attribute('aria-pressed') == 'true'
        button.click()
        assert ground(page) > 600 and button.get_attribute('aria-pressed') == 'false'
        assert ground(tab.open('10_dicom')) > 600
    with Tab(chromium, site, colours='dark', java_script_enabled=False) as tab:
        assert ground(tab.open('index')) < 150 and tab.page.get_by_role('button', name='Dark colours').count() == 0
        assert tab.page.locator('.toc a').first.is_visible() and tab.page.get_by_role('link', name='Learn').first.is_visible()


def test_the_search(chromium, site):
    with Tab(chromium, site) as tab:
        page = tab.open('guides/weights')
        page.keyboard.press('/')
        box = page.get_by_role('searchbox')
        box.fill('InputSpec')
        first = page.locator('.results a').first
        page.wait_for_function('document.querySelector(".results a")')
        assert first.locator('b').inner_text() == 'InputSpec' and first.get_attribute('href') == '../reference/core.html#InputSpec'
        tab.keep('search')
        page.keyboard.press('ArrowDown')
        assert first.evaluate('e => e === document.activeElement')
        page.keyboard.press('Enter')
        page.wait_for_url('**/reference/core.html#InputSpec')
        page.get_by_role('button', name='Search').click()
        box.fill('no such word anywhere')
        page.wait_for_function('document.querySelector(".count").textContent === "0 places"')
        page.keyboard.press('Escape')
        assert not page.locator('dialog').is_visible() and tab.problems == []


def test_tables_sort_by_click_and_by_keyboard(chromium, site):
    with Tab(chromium, site) as tab:
        page = tab.open('index')
        page.evaluate('''() => { document.querySelector(".text").insertAdjacentHTML("afterbegin", `<table id="t"><thead><tr><th>who</th><th>kappa</th></tr></thead><tbody>
          ${[["b", "0.5 (0.1 to 0.9)"], ["a", "−1"], ["c", "1,200"], ["d", "nan"], ["e", "7 %"]].map(r => "<tr>" + r.map(c => "<td>" + c + "</td>").join("") + "</tr>").join("")}</tbody></table>`); }''')
        html = page.content()
        (site / 'table.html').write_text(html, encoding='utf-8')
        page = tab.open('table')
        column = lambda: ''.join(page.locator('#t tbody td:first-child').all_inner_texts())
        state = lambda: [h.get_attribute('aria-sort') for h in page.locator('#t th').all()]
        assert column() == 'bacde' and state() == [None, None]
        page.locator('#t').get_by_role('button', name='kappa').click()
        assert column() == 'abecd' and state() == [None, 'ascending'], 'what is no number stands last'
        page.keyboard.press('Enter')
        assert column() == 'cebad' and state() == [None, 'descending']
        page.keyboard.press('Enter')
        assert column() == 'bacde' and state() == [None, None]
        page.keyboard.press('Shift+Tab')
        page.keyboard.press('Space')
        assert column() == 'abcde' and state() == ['ascending', None]
        page = tab.open('32_training')
        table = page.locator('.table').first
        table.get_by_role('button').nth(1).click()
        assert page.locator('th[aria-sort]').count() == 1
        (site / 'table.html').unlink()


def test_the_keyboard_reaches_the_text_and_the_menu(chromium, site):
    with Tab(chromium, site, PHONE) as tab:
        page = tab.open('10_dicom')
        page.keyboard.press('Tab')
        assert page.locator('.skip').evaluate('e => e === document.activeElement && e.getBoundingClientRect().left >= 0 && getComputedStyle(e).outlineStyle !== "none"')
        page.keyboard.press('Enter')
        assert page.evaluate('document.activeElement.id') == 'content'
        menu = page.get_by_role('button', name='Menu')
        assert not page.locator('#sidebar').is_visible()
        menu.click()
        assert page.locator('#sidebar').is_visible() and menu.get_attribute('aria-expanded') == 'true'
        assert page.locator('#sidebar a[aria-current=page]').last.inner_text() == 'DICOM' and page.locator('#sidebar').get_by_role('link', name='Reference', exact=True).is_visible()
        assert page.evaluate(CUT) == []
        tab.keep('menu')
        page.keyboard.press('Escape')
        assert not page.locator('#sidebar').is_visible()


def test_code_unfolds_in_articles_and_can_be_copied(chromium, site):
    with Tab(chromium, site, permissions=['clipboard-read', 'clipboard-write']) as tab:
        page = tab.open('article/density_choices')
        assert not page.locator('.code').first.is_visible()
        page.get_by_role('button', name='Show all code').click()
        assert page.locator('.code').first.is_visible()
        page = tab.open('10_dicom')
        box = page.locator('.code').nth(2)
        box.hover()
        box.get_by_role('button', name='copy').click()
        page.wait_for_function('document.body.innerText.includes("copied")')
        copied = page.evaluate('navigator.clipboard.readText()')
        assert copied.count('\n') >= 1 and '\n\n\n\n' not in copied and 'copy' not in copied.split('\n')[-1]


@pytest.mark.slow
@pytest.mark.parametrize('size', [DESK, PHONE], ids=['desk', 'phone'])
def test_every_page_at_both_widths(chromium, tmp_path_factory, size):
    import docs
    out = tmp_path_factory.mktemp('all')
    made, wrong = docs.build(out, ROOT / 'outputs'), []
    with Tab(chromium, out, size) as tab:
        for p in made:
            page = tab.open(p.relative_to(out).with_suffix('').as_posix())
            wide = page.evaluate('document.documentElement.scrollWidth')
            wrong += [(p.stem, w) for w in page.evaluate(CUT) + [f'{wide} px wide'] * (wide > size['width'])]
        assert wrong == [] and tab.problems == [] and len(made) > 100
