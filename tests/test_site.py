"README and site are made from the notebooks. What a browser has to say of the site stands in test_site_browser.py."
import inspect
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import docs  # noqa: E402
from website import check, pages, plain, reference  # noqa: E402

PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='


def test_the_readme_is_in_step():
    from readme import readme
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == readme(), 'run make readme'


def test_links_of_the_readme_lead_somewhere():
    targets = [t for t in re.findall(r'\]\(([^)#]+)\)', (ROOT / 'README.md').read_text(encoding='utf-8')) if not t.startswith('http')]
    assert len(targets) >= 2 and [t for t in targets if not (ROOT / t).exists()] == []


def test_the_version_stands_once():
    import mammo
    assert pages.project(ROOT).version == mammo.__version__ == pages.project(ROOT).citation['version']


def test_make_help_lists_the_targets():
    said = subprocess.run(['make', 'help'], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f'make {t}' in said for t in ('setup', 'demo', 'test', 'test-all', 'readme', 'docs', 'pdf', 'lab', 'clean'))


@pytest.fixture(scope='module')
def mods(): return reference.modules(ROOT)


@pytest.fixture(scope='module')
def studies(tmp_path_factory):
    "Two studies of executed pages: one that `mammography article` planned, one with a page that failed."
    folder = tmp_path_factory.mktemp('outputs')
    for study, names in (('article', ('zeta', 'alpha')), ('mias/second', ('page',))):
        (folder / study / 'pages').mkdir(parents=True)
        for name in names:
            nb = new_notebook(cells=[new_markdown_cell(f'# {name} of {study}\n\n> Its promise.'), new_markdown_cell(f'[twin]({names[-1]}.ipynb), [a guide](../guides/weights.ipynb)'), new_code_cell('1 + 1')])
            if study != 'article': nb.metadata['papermill'] = {'exception': True}
            nbformat.write(nb, folder / study / 'pages' / f'{name}.ipynb')
    (folder / 'article/article.json').write_text(json.dumps({'pages': {'zeta': {}, 'alpha': {}}}))
    return folder


@pytest.fixture(scope='module')
def site(tmp_path_factory, mods, studies):
    "All pages as plain HTML."
    out = tmp_path_factory.mktemp('site')
    staged = pages.staged(ROOT, studies, mods)
    made = plain.build(staged, pages.project(ROOT), out)
    docs.assets(out)
    return out, staged, made


def text(site, path): return (site[0] / f'{path}.html').read_text(encoding='utf-8')


def test_no_link_is_dead(site):
    followed, wrong = check.check(site[0])
    assert wrong == [] and followed > 5000


def test_the_check_finds_what_is_wrong(site, tmp_path):
    good = '<h1 id="a">A</h1><a href="#a">a</a><img src="x.png" alt="x">'
    (tmp_path / 'x.png').write_bytes(b'x')
    for change, said in (('', None), ('<a href="no.html">', 'dead link no.html'), ('<a href="b.html#no">', 'dead anchor b.html#no'), ('<img src="no.png" alt="n">', 'dead link no.png'), ('<img src="x.png">', '1 pictures without a text'),
                         ('<h3>C</h3>', 'a heading of level 3 below one of level 1'), ('<h1>B</h1>', '2 titles'), ('<p id="a">', 'anchor a stands twice'), ('<script src="https://host/x.js"></script>', 'loads https://host/x.js'),
                         ('<link href="//host/x.css">', 'loads //host/x.css'), ('<a href="https://host/">', None)):
        (tmp_path / 'a.html').write_text(good + change)
        (tmp_path / 'b.html').write_text(good)
        assert check.check(tmp_path)[1] == ([f'a.html: {said}'] if said else [])


def test_nothing_comes_from_a_network(site):
    for name in ('site.css', 'site.js'):
        assert re.findall(r'https?:|@import|url\(', (site[0] / name).read_text(encoding='utf-8')) == []
    scripts = {s for p in site[2] for s in re.findall(r'<script[^>]*>|<style[^>]*>', p.read_text(encoding='utf-8'))}
    assert all(re.fullmatch(r'<script src="(?:\.\./)*site\.js">|<style type="text/css">', s) for s in scripts), scripts


def test_pages_are_small(site):
    def weight(p): return p.stat().st_size + sum((p.parent / s).stat().st_size for s in set(re.findall(r'<img src="([^":]+)"', p.read_text(encoding='utf-8'))))
    largest = max(site[2], key=weight)
    assert weight(largest) < 3e6, largest


def test_every_page_has_its_place(site):
    "One title, its section and itself marked, and a chain from home to the last page."
    order = [p.path for p, _ in site[1]]
    assert order[0] == 'index' and len(order) == len(set(order)) and order[-1] == 'guides/promises'
    assert {p.section for p, _ in site[1]} == set(pages.SECTIONS)
    for i, (p, _) in enumerate(site[1]):
        if i % 7 and p.section != 'Article': continue
        html = text(site, p.path)
        assert re.search(rf'<a href="[^"]*" aria-current="(?:page|true)">{p.section}</a>', html), p.path
        assert re.findall(r'rel="(prev|next)" href="([^"]*)"', html) == [(w, pages.relative(f'{order[j]}.html', p.path)) for w, j in (('prev', i - 1), ('next', i + 1)) if 0 <= j < len(order)]
        assert 'class="skip" href="#content"' in html and '<main id="content"' in html


def test_learn_follows_the_floors(site):
    learn = [p for p, _ in site[1] if p.section == 'Learn' and p.group]
    assert [p.path for p in learn] == sorted(p.path for p in learn) and len(learn) >= 70
    assert list(dict.fromkeys(p.group for p in learn)) == [name for _, name, _ in pages.FLOORS]
    html = text(site, 'learn')
    assert all(f'>{name} <a class="anchor"' in html and said in html for _, name, said in pages.FLOORS)
    assert pages.floor_group('07_x')[1] == 'Foundations' and pages.floor_group('99_x')[1] == 'Tools'
    assert 'class="l"' in text(site, '10_dicom') and '<details class="fold"' not in text(site, '10_dicom'), 'code is shown'
    assert 'default_exp' not in text(site, '10_dicom') and '#| export' not in text(site, '10_dicom')


def test_names_lead_to_the_reference(site):
    assert '<a href="reference/dicom.html#read_image"><code>read_image</code></a>' in text(site, '10_dicom')


def test_studies_are_groups_of_the_article(site):
    found = [(p.group, p.title, p.path) for p, _ in site[1] if p.path.startswith('runs/')]
    assert found == [('Study: article', 'zeta of article', 'runs/article/zeta'), ('Study: article', 'alpha of article', 'runs/article/alpha'), ('Study: mias/second', 'page of mias/second (did not finish)', 'runs/mias-second/page')]
    html = text(site, 'runs/article/zeta')
    assert 'href="../../runs/article/alpha.html"' in html and 'href="../../guides/weights.html"' in html
    assert '<details class="fold"><summary>Code</summary>' in html and 'class="callout' not in html and 'How to cite' in html
    assert 'class="callout warning"' in text(site, 'runs/mias-second/page')


def test_the_search_knows_names_and_texts(site):
    entries = json.loads((site[0] / 'search.js').read_text(encoding='utf-8').removeprefix('window.mammoIndex=').rstrip(';\n').replace('<\\/', '</'))
    assert ['reference/dicom.html#read_image', 'mammo.dicom', 'read_image'] in [e[:3] for e in entries]
    assert any(e[0].startswith('10_dicom.html#') and 'snomed' in e[3].lower() for e in entries)
    assert 'float32' not in next(e[3] for e in entries if e[0] == 'reference/core.html#KINDS') and 'range' in next(e[3] for e in entries if e[0] == 'reference/core.html#InputSpec'), 'words stand under their heading'
    assert {e[0].split('#')[0] for e in entries} == {f'{p.path}.html' for p, _ in site[1]}
    assert (site[0] / 'search.js').stat().st_size < 1.5e6


def test_the_citation(site):
    about = pages.project(ROOT)
    for path in ('index', 'article/density_choices', 'article'):
        html = text(site, path)
        assert 'id="how-to-cite"' in html and about.citation['title'].split(':')[1].strip() in html and f'version {about.version}' in html and '@software{mammo' in re.sub(r'<[^>]+>', '', html)
    assert 'url = {https://github.com/a/b}' in pages.citation(replace(about, git_url='https://github.com/a/b')) and 'url' not in pages.citation(replace(about, git_url=''))


def test_colab_links_come_from_the_settings(tmp_path, mods):
    about = replace(pages.project(ROOT), git_url='https://github.com/lab/mammo')
    assert about.colab('nbs/10_dicom.ipynb') == 'https://colab.research.google.com/github/lab/mammo/blob/main/nbs/10_dicom.ipynb'
    assert replace(about, git_url='https://gitlab.com/lab/mammo').colab('nbs/x.ipynb') == about.colab('') == replace(about, git_url='').colab('nbs/x.ipynb') == ''
    found = pages.collect(ROOT, tmp_path, mods)
    page = next(p for p in found if p.path == '10_dicom')
    nb = pages.stage(page, pages.Links(ROOT, found, mods, about), about)
    assert yaml.safe_load(nb.cells[0].source.strip('-\n'))['other-links'][0]['href'] == about.colab('nbs/10_dicom.ipynb')
    plain.build([(page, nb)], about, tmp_path / 'out')
    assert f'<a href="{about.colab(page.repo)}">Open in Colab</a>' in (tmp_path / 'out/10_dicom.html').read_text(encoding='utf-8')


@pytest.mark.parametrize('origin, url', [('https://github.com/a/b.git', 'https://github.com/a/b'), ('git@github.com:a/b.git', 'https://github.com/a/b'), ('https://user:secret@github.com/a/b', 'https://github.com/a/b'), ('/srv/a', ''), ('', '')])
def test_the_address_of_the_repository(tmp_path, origin, url):
    for name in ('settings.ini', 'CITATION.cff'): (tmp_path / name).write_text(re.sub(r'(?m)^git_url.*', 'git_url =', (ROOT / name).read_text(encoding='utf-8')), encoding='utf-8')
    subprocess.run(['git', 'init', '-q'], cwd=tmp_path, check=True)
    if origin: subprocess.run(['git', 'remote', 'add', 'origin', origin], cwd=tmp_path, check=True)
    assert pages.project(tmp_path).git_url == url


def rendered(tmp_path, cells, section='Article', **more):
    "A page of these cells, staged and as HTML."
    path = tmp_path / 'nbs/page.ipynb'
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    page = pages.Page('page', section, 'Pages', 'Title', '', path, **more)
    about = pages.project(ROOT)
    nb = pages.stage(page, pages.Links(tmp_path, [page], [], about), about)
    return nb, plain.body(page, nb, tmp_path / 'out')[0]


def picture(source='draw()', **data): return new_code_cell(source, outputs=[new_output('display_data', data={'image/png': PIXEL} | data)])


def test_figures_have_numbers_captions_and_texts(tmp_path):
    nb, html = rendered(tmp_path, [new_markdown_cell('# Title\n\n> Promise\n\nSee @fig-b, then @fig-a and @tbl-t; not `@fig-a`.'), picture('#| label: fig-a\n#| fig-cap: "One *caption*"\n#| fig-alt: What is "seen"\ndraw()'),
                                   picture('#| label: fig-b\n#| fig-cap: Two\ndraw()'), new_code_cell('#| label: tbl-t\n#| tbl-cap: Rows\nt', outputs=[new_output('execute_result', data={'text/html': '<table border="1"><tr><td>1</td></tr></table>'})]),
                                   new_markdown_cell('## Loose'), picture(), picture()])
    assert '<figure id="fig-a"><img' in html and '<figcaption><b>Figure 1.</b> One <em>caption</em></figcaption>' in html and 'alt="What is &quot;seen&quot;"' in html
    assert 'See <a href="#fig-b">Figure 2</a>, then <a href="#fig-a">Figure 1</a> and <a href="#tbl-t">Table 1</a>; not <code>@fig-a</code>' in html
    assert 'alt="Two"' in html and 'border=' not in html
    assert 'alt="Picture 1 of the section “Loose” on the page “Title”"' in html and 'alt="Picture 2 of the section' in html
    assert [l for c in nb.cells if c.cell_type == 'code' for l in c.source.split('\n') if 'fig-alt' in l][0] == '#| fig-alt: What is "seen"', 'Quarto reads the same'
    assert '>?fig-gone<' in rendered(tmp_path, [new_markdown_cell('@fig-gone')])[1]


def test_markdown_as_quarto_has_it(tmp_path):
    _, html = rendered(tmp_path, [new_markdown_cell('# Title\n\n::: {.callout-warning title="Look"}\nBeware.\n:::\n\n$\\frac{a}{b}$\n\n$$x^2$$\n\n![Shown](pic.png){#fig-p fig-alt="A text"}\n\n## Named {#own}\n\n#### Too deep\n\n| a | b |\n|---|---|\n| 1 | `x` |\n\n```sh\nmake docs\n```')])
    assert '<aside class="callout warning"><p class="title">Look</p>' in html and html.count('</aside>') == 1
    assert '<mfrac>' in html and 'display="block"' in html and '$' not in html
    assert '<figure id="fig-p"><img src="pic.png" alt="A text" loading="lazy"><figcaption><b>Figure 1.</b> Shown</figcaption></figure>' in html
    assert '<h2 id="own">Named' in html and '<h3 id="too-deep">' in html and '<div class="table"><table>' in html and 'class="l"' in html


def test_outputs_need_no_kernel(tmp_path):
    outs = [new_output('display_data', data={'application/vnd.jupyter.widget-view+json': {'model_id': 'x'}, 'text/plain': 'train: 17%'}), new_output('display_data', data={'application/vnd.jupyter.widget-view+json': {'model_id': 'y'}}),
            new_output('stream', name='stdout', text='a\rb\n'), new_output('execute_result', data={'text/html': '<script src="https://x/y.js"></script><table border="1"><tr><td>7</td></tr></table><img src="data:,">', 'text/plain': 'no'}),
            new_output('display_data', data={'text/markdown': '# Big\n\n### Small\n\ntext'}), new_output('error', ename='E', evalue='why', traceback=['\x1b[31mE\x1b[0m: why <b>'])]
    nb, html = rendered(tmp_path, [new_markdown_cell('## Here'), new_code_cell('x', outputs=outs), new_code_cell('#| hide\nsecret()'), new_code_cell('#| echo: false\nquiet()', outputs=[new_output('stream', name='stdout', text='said')]), new_code_cell('%matplotlib inline')])
    assert 'train: 17%' in html and 'A widget that lives in a running notebook.' in html and 'widget-view' not in str(nb)
    assert '<pre class="out one">b</pre>' in html and '<script' not in html and '<td>7</td>' in html and '>no<' not in html and re.search(r'<img alt="[^"]+" src="data:,">', html)
    assert '<h3 id="big">' in html and '<h4 id="small">' in html and 'why &lt;b&gt;' in html
    assert 'secret' not in html and 'quiet' not in html and 'said' in html and 'matplotlib' not in html


def test_the_name_of_an_index_stands_in_the_header():
    table = '<table><thead><tr style="text-align: right;">\n<th></th>\n<th>a</th><th>b</th></tr><tr><th>line</th><th></th>\n<th></th></tr></thead></table>'
    assert re.sub(r'\s', '', plain.html_output(table, '')) == '<divclass="table"><table><thead><tr><th>line</th><th>a</th><th>b</th></tr></thead></table></div>'
    assert plain.html_output(two := '<tr><th></th><th>a</th></tr><tr><th>x</th><th>1</th></tr>', '') == two


def test_code_of_articles_is_folded(tmp_path):
    cells = [new_code_cell('import a'), new_code_cell('b = 1'), new_code_cell('c', outputs=[new_output('stream', name='stdout', text='x')]), new_code_cell('seed = 42', metadata={'tags': ['injected-parameters']})]
    html = rendered(tmp_path, cells)[1]
    assert html.count('<details') == 2 and '<summary>Parameters</summary>' in html, 'cells without output stand with the next one'
    assert all(w in re.sub('<[^>]+>', '', html) for w in ('import a', 'b = 1', 'seed = 42'))
    assert '<details' not in rendered(tmp_path, cells, section='Learn')[1]


def test_what_a_run_said_of_itself(tmp_path):
    "In an article: no progress bars, lines of one stream together, and the parameters that papermill gave beside those of the page."
    said = [new_output('stream', name='stdout', text='one\n'), new_output('stream', name='stderr', text='train:  17%|#6   | 42/252 [00:02<00:11]'), new_output('stream', name='stdout', text='two\n')]
    cells = [new_code_cell('seed = 1', metadata={'tags': ['parameters']}), new_code_cell('# Parameters\nseed = 7', metadata={'tags': ['injected-parameters']}), new_code_cell('go()', outputs=said)]
    html = rendered(tmp_path, cells)[1]
    assert html.count('Parameters') == 1 and 'seed = 1\n\n# given to this page\nseed = 7' in re.sub('<[^>]+>', '', html).replace('\n\n\n', '\n\n') and '42/252' not in html and '<pre class="out one">one\ntwo</pre>' in html
    assert '42/252' in rendered(tmp_path, cells, section='Learn')[1]


def test_long_lines_break_where_they_may():
    html = plain.code_block('train --img-size 64 -x a-b  # as --said\n', 'sh')
    assert html.count('class="flag"') == 3 and '<span class="flag">--img-size</span>' in html and re.sub('<[^>]+>', '', html) == 'train --img-size 64 -x a-b  # as --said\n'
    assert 'class="out one"' in plain.text_output('a b\nc') and 'class="out"' in plain.text_output('a   1\nbb  2') and 'class="out one"' in plain.text_output('a   1')


def test_words_are_no_names(tmp_path, mods):
    "`fit` is a link on the page that makes it; elsewhere only what cannot be a word."
    about, found = pages.project(ROOT), pages.collect(ROOT, tmp_path, mods)
    links, at = pages.Links(ROOT, found, mods, about), {p.path: p for p in found}
    assert links.rewrite(at['32_training'], '`fit` `InputSpec` `read_image()` `none_such`') == '[`fit`](reference/training.ipynb#fit) [`InputSpec`](reference/core.ipynb#InputSpec) [`read_image()`](reference/dicom.ipynb#read_image) `none_such`'
    assert links.rewrite(at['guides/weights'], '`fit`, `13_splits`') == '`fit`, [`13_splits`](../13_splits.ipynb)'
    assert links.rewrite(at['10_dicom'], '## `read_image`\n\n```\n`read_image`\n```') == '## `read_image`\n\n```\n`read_image`\n```'


def test_links_that_leave_the_site(tmp_path):
    (tmp_path / 'LICENSE').write_text('x')
    about = replace(pages.project(ROOT), git_url='https://github.com/a/b')
    page = pages.Page('page', 'Learn', '', 'T', '', tmp_path / 'nbs/page.ipynb', 'nbs/page.ipynb')
    links = lambda a: pages.Links(tmp_path, [page], [], a).rewrite(page, 'See [the licence](../LICENSE), [none](no.md), [itself](page.ipynb#The-Head) and `[x](../LICENSE)`.')
    assert links(about) == 'See [the licence](https://github.com/a/b/blob/main/LICENSE), [none](no.md), [itself](page.ipynb#the-head) and `[x](https://github.com/a/b/blob/main/LICENSE)`.'
    assert links(replace(about, git_url='')).startswith('See the licence, [none](no.md)')


@pytest.mark.parametrize('module, name', [('core', 'hash_file'), ('dicom', 'read_image'), ('splits', 'assign_roles'), ('metrics', 'evaluate'), ('core', 'InputSpec')])
def test_the_reference_says_what_fastcore_reads(mods, module, name):
    from importlib import import_module

    from fastcore.docments import docments
    found, entry = getattr(import_module(f'mammo.{module}'), name), next(e for m in mods if m.name == module for e in m.entries if e.name == name)
    read = docments(found, full=True)
    assert [p[0].lstrip('*') for p in entry.params] == list(inspect.signature(found).parameters)
    assert {n: c for n, _, _, c in entry.params} == {n: (v.docment or '') for n, v in read.items() if n != 'return'}
    assert entry.doc == inspect.getdoc(found).split('\n')[0]


def test_the_reference_knows_every_public_name(mods, site):
    from importlib import import_module
    assert len(mods) >= 70 and sum(len(m.entries) for m in mods) > 900
    for m in mods: assert re.search(r"__all__ = \[(.*?)\]", (ROOT / 'mammo' / f'{m.name.replace(".", "/")}.py').read_text(encoding='utf-8'), re.S)[1].count("'") == 2 * len(m.entries), m.name
    html = text(site, 'reference/core')
    assert '<a href="../00_core.html">00_core</a>' in html and '<h2 id="InputSpec">' in html and import_module('mammo.core').InputSpec.__doc__.split(',')[0] in html
    assert reference.entries('"D"\n__all__ = ["f", "V"]\n# of it\nV = (1,\n 2)\ndef f(a: int,  # one\n *, b: str = "x, y",  # two\n **k) -> int:  # what\n  "Doc."\n')[1] == (
        reference.Entry('V', 'value', 'V = (1, 2)', 'of it'),
        reference.Entry('f', 'function', "f(a: int, *, b: str = 'x, y', **k) -> int", 'Doc.', (('a', 'int', '', 'one'), ('b', 'str', "'x, y'", 'two'), ('**k', '', '', '')), ('int', 'what')))


def test_what_quarto_is_given(tmp_path, site, studies):
    "Its configuration names pages that are there, loads nothing from a network, and folds the code of articles."
    docs.stage(site[1], tmp_path / 'stage')
    cfg, bars = (yaml.safe_load((tmp_path / 'stage' / n).read_text(encoding='utf-8')) for n in ('_quarto.yml', 'sidebar.yml'))
    hrefs = lambda d: [d['href']] if isinstance(d, dict) and 'href' in d else [h for v in (d.values() if isinstance(d, dict) else d) for h in hrefs(v)] if isinstance(d, (dict, list)) else []
    named = hrefs(cfg['website']['navbar']) + hrefs(bars)
    assert [h for h in named if not (tmp_path / 'stage' / h).is_file()] == [] and {f'{p.path}.ipynb' for p, _ in site[1]} <= set(named)
    html = cfg['format']['html']
    assert html['html-math-method'] == 'mathml' and html['theme']['light'][0] == html['theme']['dark'][0] == 'default', 'other themes bring fonts from a network, and MathJax itself'
    assert all((tmp_path / 'stage' / f).is_file() for f in (*html['theme']['light'][1:], *html['theme']['dark'][1:], html['include-after-body'], *cfg['metadata-files']))
    for folder in ('article', 'runs'):
        meta = yaml.safe_load((tmp_path / 'stage' / folder / '_metadata.yml').read_text(encoding='utf-8'))
        assert meta['format']['html']['code-fold'] is True and 'typst' in meta['format']
    for p in (tmp_path / 'stage').rglob('*.ipynb'):
        nb = nbformat.read(p, as_version=4)
        nbformat.validate(nb)
        front = yaml.safe_load(nb.cells[0].source.strip('-\n'))
        assert front['title'] and nb.cells[0].cell_type == 'raw'
        for c in nb.cells[1:]:
            if c.cell_type == 'code': assert isinstance(yaml.safe_load('\n'.join(re.findall(r'^#\| (.*)', c.source, re.M))) or {}, dict), (p, c.source)


def command(*args, path, cwd=ROOT): return subprocess.run([sys.executable, ROOT / 'tools/docs.py', *args], cwd=cwd, capture_output=True, text=True, env=os.environ | {'PATH': f'{path}:/usr/bin:/bin'})


def test_make_pdf_without_quarto_says_what_is_missing(tmp_path):
    done = command('--pdf', path=tmp_path)
    assert done.returncode == 1 and done.stdout == '' and done.stderr.count('\n') == 1 and 'Quarto' in done.stderr


@pytest.mark.slow
def test_the_commands_with_and_without_quarto(tmp_path):
    "Quarto is asked for the site and for the PDF of the articles; without it the pages are plain HTML. Its part is played by a script that writes down how it was called."
    done = command('--out', tmp_path / 'out', '--outputs', tmp_path, path=tmp_path)
    assert done.returncode == 0 and 'Quarto is not on the PATH' in done.stdout and 'links followed' in done.stdout, done.stderr
    assert {'index.html', '10_dicom.html', 'guides/weights.html', 'reference/core.html', 'search.js'} <= {p.relative_to(tmp_path / 'out').as_posix() for p in (tmp_path / 'out').rglob('*') if p.is_file()}
    (tmp_path / 'quarto').write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (tmp_path / 'quarto').chmod(0o755)
    assert command('--out', tmp_path / 'q', '--outputs', tmp_path, path=tmp_path).returncode == 0
    assert command('--pdf', '--out', tmp_path / 'q', '--outputs', tmp_path, path=tmp_path).returncode == 0
    stage = ROOT / 'build/site'
    assert (tmp_path / 'asked').read_text().splitlines() == [f'render {stage} --output-dir {tmp_path}/q', f'render {stage}/article --to typst --output-dir {tmp_path}/q/pdf']
