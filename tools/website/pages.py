"""What the site holds, in reading order, and each page as a notebook that Quarto and `plain` both read.

A page is staged once: hidden cells are gone, nbdev's directives too, the title has become front matter, every picture has a text that stands for it,
names of the library lead to the reference, and links that leave the site lead to the repository or nowhere.
"""
import json
import re
import subprocess
from configparser import ConfigParser
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import nbformat
import yaml
from nbformat.v4 import new_markdown_cell, new_notebook, new_raw_cell

from .reference import Module, module_page

SECTIONS = {'Home': 'index', 'Learn': 'learn', 'Guides': 'guides', 'Article': 'article', 'Reference': 'reference', 'Promises': 'guides/promises'}
# The first floor of a group, its name, and what one learns there.
FLOORS = (
    (0, 'Foundations', 'The words and files that everything shares: tasks, settings, run directories, jobs in other processes, hashes instead of names.'),
    (8, 'Images', 'From raw codes to grey values on a screen: the DICOM standard, and drawn X-rays whose truth is known.'),
    (12, 'Data', 'From a folder somebody sent to batches a network eats: manifest, patients on one side of every split, the breast cut out, the pixel store.'),
    (20, 'Models', 'Backbones as rows of a table, a table of features beside the image, and what frozen stages have to say kept.'),
    (30, 'Training', 'Objectives, one loop, and every figure with its n and its interval: what is claimed, and on whom.'),
    (40, 'Looking', 'Maps of features, heat maps that have to prove themselves, folds, seeds, subgroups, other sites: what a reviewer asks next.'),
    (50, 'Recipes', 'Density, spine and chest: three short rows of settings on one engine, and ensembles of their runs.'),
    (55, 'Reports', 'Figures, tables and sections from finished runs, every number with the file it came from.'),
    (62, 'Tools', 'For people: explorer, viewer, gallery, and the command line.'),
)
DIRECTIVE = re.compile(r'^#\|\s*(.*?)\s*$\n?', re.M)
BAR = re.compile(r'\d+%\|.*\|\s*\d+/\d+')  # a progress bar, which stands where it stood when the page was stored
FENCE = re.compile(r'(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)', re.M | re.S)


@dataclass(frozen=True)
class Page:
    path: str            # Where it stands in the site, without suffix: `guides/weights`
    section: str         # One of SECTIONS
    group: str           # The heading it stands under in the sidebar
    title: str           # As its `# ` line says
    promise: str = ''    # The `> ` line below the title
    source: Path | None = None  # The notebook it is made from; none for pages that are made here
    repo: str = ''       # That notebook in the repository, where it is in it
    failed: bool = False  # It was kept although a cell failed


@dataclass(frozen=True)
class Project:
    name: str
    version: str
    licence: str
    branch: str
    git_url: str         # Where the repository is published, or nothing
    citation: dict       # CITATION.cff

    def blob(self, repo: str) -> str: return f'{self.git_url}/blob/{self.branch}/{repo}'

    def colab(self, repo: str) -> str:
        "The notebook in Colab; empty where the repository is not on GitHub."
        return f'https://colab.research.google.com/github/{self.blob(repo).removeprefix("https://github.com/")}' if repo and self.git_url.startswith('https://github.com/') else ''


def project(root: Path) -> Project:
    "Name, version and address, from settings.ini and CITATION.cff; without `git_url`, GitHub's address of `origin`."
    ini = ConfigParser()
    ini.read(root / 'settings.ini')
    d, cff = ini['DEFAULT'], yaml.safe_load((root / 'CITATION.cff').read_text(encoding='utf-8'))
    origin = subprocess.run(['git', 'config', 'remote.origin.url'], cwd=root, capture_output=True, text=True).stdout.strip()
    on_github = re.fullmatch(r'(?:https://(?:[^@/]+@)?|git@|ssh://git@)github\.com[:/](.+?)(?:\.git)?/?', origin)
    url = d.get('git_url', '').rstrip('/') or (f'https://github.com/{on_github[1]}' if on_github else '')
    return Project(d['lib_name'], d['version'], cff['license'], d.get('branch', 'main'), url, cff)


def floor_group(stem: str) -> tuple[int, str, str]:
    "The row of FLOORS to which a numbered notebook belongs."
    return [f for f in FLOORS if f[0] <= int(stem.split('_')[0])][-1]


def cells_of(path: Path) -> nbformat.NotebookNode:
    nb = json.loads(path.read_text(encoding='utf-8'))
    for c in nb['cells']:
        c['source'] = ''.join(c['source'])
        for o in c.get('outputs', []):
            if 'text' in o: o['text'] = ''.join(o['text'])
            for k, v in o.get('data', {}).items():
                if isinstance(v, list) and not k.endswith('json'): o['data'][k] = ''.join(v)
    return nbformat.from_dict(nb)


def head(nb) -> tuple[str, str]:
    "The `# ` line and the `> ` lines below it."
    for c in nb.cells:
        if c.cell_type == 'markdown' and (m := re.match(r'\s*# (.+)\n?\s*((?:>.*\n?)*)', c.source)):
            return m[1].strip(), ' '.join(l.lstrip('> ').strip() for l in m[2].splitlines()).strip()
    return '', ''


def _page(path: Path, name: str, section: str, group: str, root: Path) -> Page:
    nb = cells_of(path)
    title, promise = head(nb)
    failed = bool(nb.metadata.get('papermill', {}).get('exception')) or nb.metadata.get('mammo', {}).get('state') == 'failed'
    repo = path.relative_to(root).as_posix() if (root / 'nbs') in path.parents else ''
    return Page(name, section, group, title or path.stem.replace('_', ' '), promise, path, repo, failed)


def _notebooks(folder: Path) -> list[Path]: return sorted(p for p in folder.glob('*.ipynb') if not p.name.startswith(('.', '_')))


def in_order(folder: Path) -> list[Path]:
    "Pages of a study as `mammography article` planned them; others by name."
    state = folder.parent / 'article.json'
    planned = list(json.loads(state.read_text(encoding='utf-8'))['pages']) if state.exists() else []
    return sorted(_notebooks(folder), key=lambda p: (p.stem != 'index', planned.index(p.stem) if p.stem in planned else len(planned), p.stem))


def collect(root: Path, outputs: Path, mods: list[Module]) -> list[Page]:
    "Every page in reading order: home, Learn, guides, article with its studies, reference, promises."
    nbs = root / 'nbs'
    found = [_page(nbs / 'index.ipynb', 'index', 'Home', '', root), Page('learn', 'Learn', '', 'Learn', 'The library from its first word to its command line, in the order in which it can be read.')]
    found += [_page(p, p.stem, 'Learn', floor_group(p.stem)[1], root) for p in _notebooks(nbs) if re.match(r'\d\d_', p.name)]
    guides = [p for p in _notebooks(nbs / 'guides') if p.stem != 'promises']
    found += [Page('guides', 'Guides', '', 'Guides', 'One task a page, with the commands that do it.'), *(_page(p, f'guides/{p.stem}', 'Guides', '', root) for p in guides)]
    found += [Page('article', 'Article', '', 'Article', 'Executed pages: what was run, on whom, and what came out. Every figure is read from the artefacts of its run.')]
    found += [_page(p, f'article/{p.stem}', 'Article', 'Pages', root) for p in in_order(nbs / 'article')]
    for folder in sorted({p.parent for p in outputs.rglob('pages/*.ipynb') if '.ipynb_checkpoints' not in p.parts}):
        study = folder.parent.relative_to(outputs).as_posix()
        found += [_page(p, f'runs/{study.replace("/", "-")}/{p.stem}', 'Article', f'Study: {study}', root) for p in in_order(folder)]
    found += [Page('reference', 'Reference', '', 'Reference', 'Every public name, with its parameters and the page on which it is made.')]
    found += [Page(f'reference/{m.name}', 'Reference', floor_group(m.notebook)[1], f'mammo.{m.name}', m.doc) for m in mods]
    found += [_page(nbs / 'guides/promises.ipynb', 'guides/promises', 'Promises', '', root)]
    return [replace(p, title=f'{p.title} (did not finish)') if p.failed else p for p in found]


def relative(to: str, page: str) -> str:
    "The way from one page of the site to another."
    up = len(PurePosixPath(page).parts) - 1
    return '../' * up + to


def slug(text: str) -> str:
    "The anchor of a heading, as pandoc makes it."
    text = re.sub(r'[^\w\s.-]', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text).lower())
    return re.sub(r'^[^a-z]+', '', re.sub(r'[\s]+', '-', text.strip())) or 'section'


def outside_code(text: str, change) -> str:
    "`change` applied to Markdown between fenced blocks."
    return ''.join(part if i % 2 else change(part) for i, part in enumerate(FENCE.split(text)))


def options(source: str) -> tuple[dict, str]:
    "A cell's `#|` lines as a dict, nbdev's as `name: True`, and what remains of the cell."
    lines = DIRECTIVE.findall(source)
    pairs = '\n'.join(l for l in lines if re.match(r'[\w-]+:(\s|$)', l) or l[:1] in '- ')
    found = yaml.safe_load(pairs) or {} if pairs else {}
    return found | {l.split()[0]: ' '.join(l.split()[1:]) or True for l in lines if l and not re.match(r'[\w-]+:(\s|$)|[- ]', l)}, DIRECTIVE.sub('', source)


NBDEV = {'export', 'exporti', 'exports', 'default_exp', 'slow', 'gpu', 'hide', 'hide_input', 'hide_output', 'notest', 'eval', 'collapse_input'}


class Links:
    "Turns links of notebooks into links of the site, and names of the library into links to the reference."

    def __init__(self, root: Path, found: list[Page], mods: list[Module], about: Project):
        self.root, self.about = root, about
        self.by_source = {p.source: p.path for p in found if p.source}
        self.by_repo = {p.repo: p.path for p in found if p.repo}
        self.names: dict[str, str] = {}
        counted: dict[str, list[str]] = {}
        for m in mods:
            for e in (e for e in m.entries if e.kind != 'lent'): counted.setdefault(e.name, []).append(f'reference/{m.name}.ipynb#{e.anchor}')
            counted.setdefault(f'mammo.{m.name}', []).append(f'reference/{m.name}.ipynb')
        self.names = {k: v[0] for k, v in counted.items() if len(v) == 1}
        self.made_in = {f'reference/{m.name}.ipynb': m.notebook for m in mods}
        self.notebooks = {p.source.stem: p.path for p in found if p.section == 'Learn' and p.source}

    def target(self, page: Page, href: str) -> str | None:
        "The link as it has to stand on the page; `None` where it leads nowhere that is published."
        if re.match(r'[a-z][a-z0-9+.-]*:|//', href): return href
        path, _, anchor = href.partition('#')
        if anchor: anchor = '#' + (anchor if anchor.startswith(('fig-', 'tbl-')) else slug(anchor.replace('-', ' ')))
        if not path: return anchor
        if page.repo: there = (self.root / page.repo).parent / path
        else: there = page.source.parent / path if page.source else self.root / path
        there = there.resolve()
        if not page.repo and not there.exists(): there = (self.root / 'nbs/article' / path).resolve()  # an executed page keeps the links of its source
        if there in self.by_source: return relative(f'{self.by_source[there]}.ipynb', page.path) + anchor
        if not there.exists(): return href  # a dead link, and the check will say so
        repo = there.relative_to(self.root).as_posix() if self.root in there.parents else ''
        if repo.startswith('nbs/') and there.is_file(): return relative(repo.removeprefix('nbs/'), page.path)
        if repo and repo.split('/')[0] not in ('outputs', 'build') and self.about.git_url: return self.about.blob(repo)
        return None

    def rewrite(self, page: Page, text: str) -> str:
        def link(m):
            to = self.target(page, m[3])
            return m[2] if to is None and not m[1] else m[0] if to is None else f'{m[1]}[{m[2]}]({to}{m[4] or ""})'
        def name(m):
            to = self.names.get(m[1].removesuffix('()')) or (f'{self.notebooks[m[1]]}.ipynb' if m[1] in self.notebooks else None)
            word = re.fullmatch(r'[a-z]{2,}', m[1]) and self.made_in.get((to or '').split('#')[0]) != page.path  # a word of the language, unless the page makes that very name
            return m[0] if to is None or word or len(m[1]) < 3 or to == f'{page.path}.ipynb' else f'[`{m[1]}`]({relative(to, page.path)})'
        def words(part):  # not in headings, and not inside of links
            part = re.sub(r'(!?)\[([^\]\n]*)\]\(([^)\s]+)(\s+"[^"]*")?\)', link, part)
            return '\n'.join(l if l.lstrip().startswith('#') else re.sub(r'(?<![\[`\w])`(\d\d_\w+|[A-Za-z_][\w.]*(?:\(\))?)`(?![`\]])', name, l) for l in part.split('\n'))
        return outside_code(text, words)


def levels(text: str) -> list[int]:
    found: list[int] = []
    outside_code(text, lambda part: found.extend(len(h) for h in re.findall(r'^(#{1,6}) ', part, re.M)) or part)
    return found


def lower(text: str, under: int) -> str:
    "Markdown of an output with its headings below the heading it stands under, no level left out."
    found = sorted(set(levels(text)))
    last = [under]
    def one(m):
        last[0] = min(under + 1 + found.index(len(m[1])), last[0] + 1, 6)
        return '#' * last[0] + ' '
    return outside_code(text, lambda part: re.sub(r'^(#{1,6}) ', one, part, flags=re.M)) if found else text


def has_image(cell) -> bool: return any(k.startswith('image/') for o in cell.get('outputs', []) for k in o.get('data', {}))


def one_of_parameters(cells: list) -> list:
    "What papermill has put behind the parameters stands in the same cell."
    tagged = lambda c, tag: c.cell_type == 'code' and tag in c.metadata.get('tags', [])
    given = [c for c in cells if tagged(c, 'injected-parameters')]
    first = next((c for c in cells if tagged(c, 'parameters')), None)
    if first is None or not given: return cells
    first.source = '\n\n'.join(re.sub(r'^# Parameters\n', '', c.source) for c in (first, *given)).replace('\n\n', '\n\n# given to this page\n', 1)
    return [c for c in cells if c not in given]


def stage(page: Page, links: Links, about: Project) -> nbformat.NotebookNode:
    "The page as a notebook that needs nothing but its renderer."
    nb = cells_of(page.source)
    cells, under, heading, drawn = [], 1, page.title, {}
    for c in one_of_parameters(nb.cells):
        opts, source = options(c.source) if c.cell_type == 'code' else ({}, c.source)
        if c.cell_type == 'raw' or opts.get('hide') or 'default_exp' in opts or opts.get('include') is False or 'remove-cell' in c.metadata.get('tags', []): continue
        if c.cell_type == 'markdown':
            c.source = links.rewrite(page, re.sub(r'\A\s*# .+\n?\s*(?:>.*\n?)*', '', source) if page.title.startswith(head(new_notebook(cells=[c]))[0] or '\0') else source)
            if found := levels(c.source): under = found[-1]; heading = re.findall(r'^#{1,6} (.+)$', FENCE.sub('', c.source), re.M)[-1]
        else:
            keep = {k: v for k, v in opts.items() if k not in NBDEV}
            if opts.get('hide_input'): keep['echo'] = False
            if opts.get('hide_output'): keep['output'] = False
            if has_image(c) and not keep.get('fig-alt'):
                n = drawn[heading] = drawn.get(heading, 0) + 1
                plain = re.sub(r'[`*]', '', heading)
                keep['fig-alt'] = keep.get('fig-cap') or f'Picture {n} of the section “{plain}” on the page “{page.title}”'
            head_lines = yaml.safe_dump(keep, allow_unicode=True, sort_keys=False, width=10_000).strip() if keep else ''
            c.source = ''.join(f'#| {l}\n' for l in head_lines.split('\n') if l) + source.strip('\n')
            if page.section == 'Article': c.outputs = [o for o in c.outputs if not BAR.search(o.get('text') or o.get('data', {}).get('text/plain', ''))]
            for o in c.outputs:
                data = o.get('data', {})
                if data.pop('application/vnd.jupyter.widget-view+json', None) is not None and not data: data['text/plain'] = 'A widget that lives in a running notebook.'
                if 'text/markdown' in data:
                    text = links.rewrite(page, data['text/markdown'])
                    data['text/markdown'] = text if opts.get('output') == 'asis' else lower(text, under)
            if not c.outputs and not re.sub(r'^\s*%.*$', '', source, flags=re.M).strip(): continue  # empty, or a magic alone
        if c.source.strip() or c.get('outputs'): cells.append(c)
    if page.failed and not any('failed' in c.metadata.get('tags', []) for c in cells): cells.insert(0, new_markdown_cell('::: {.callout-warning}\nThis page did not finish. What stands here is what it had shown before a cell failed.\n:::'))
    if page.section == 'Home' or page.section == 'Article': cells.append(new_markdown_cell(citation(about)))
    return finished(page, cells, about, nb.metadata.get('kernelspec'))


def finished(page: Page, cells: list, about: Project, kernel: dict | None = None) -> nbformat.NotebookNode:
    "Cells under front matter as Quarto reads it."
    front = {'title': page.title} | ({'description': page.promise} if page.promise else {})
    if colab := about.colab(page.repo): front['other-links'] = [{'text': 'Open in Colab', 'href': colab, 'icon': 'play-circle'}]
    nb = new_notebook(cells=[new_raw_cell(f'---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False, width=10_000)}---'), *cells])
    nb.metadata['kernelspec'] = kernel or {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'}
    for i, c in enumerate(nb.cells): c['id'] = f'cell-{i}'
    nb.metadata['mammo'] = {'path': page.path}
    return nb


def citation(about: Project) -> str:
    "How to cite, from CITATION.cff and settings.ini."
    c, names = about.citation, [' '.join(filter(None, [a.get('given-names'), a.get('family-names'), a.get('name')])) for a in about.citation['authors']]
    where = f' {about.git_url}.' if about.git_url else ''
    fields = {'title': '{' + c['title'] + '}', 'author': ' and '.join('{' + n + '}' for n in names), 'version': about.version} | ({'url': about.git_url} if about.git_url else {})
    bib = ',\n'.join(f'  {k} = {{{v}}}' for k, v in fields.items())
    return f'## How to cite\n\n{", ".join(names)}. *{c["title"]}*. Software, version {about.version}, licence {about.licence}.{where}\n\n```bibtex\n@software{{{about.name},\n{bib}\n}}\n```'


def listing(section: str, found: list[Page]) -> str:
    "The page that opens a section: its groups, and a line a page."
    here = [p for p in found if p.section == section and p.path != SECTIONS[section]]
    said, parts = {name: text for _, name, text in FLOORS} | {'Pages': 'As they stand in the repository, with the results that were stored with them.'}, []
    for group in dict.fromkeys(p.group for p in here):
        rows = '\n'.join(f'| [{p.title}]({relative(p.path, SECTIONS[section])}.ipynb) | {p.promise.replace("|", chr(92) + "|")} |' for p in here if p.group == group)
        intro = said.get(group, 'Executed pages of one study.' if group else '')
        parts.append((f'## {group}\n\n{intro}\n\n' if group else '') + f'| page | what it shows |\n|---|---|\n{rows}')
    return '\n\n'.join(parts) or 'There are none yet.'


def navigation(found: list[Page]) -> list[dict]:
    "Quarto's sidebars: one a section, with its groups."
    bars = []
    for section, front in SECTIONS.items():
        pages = [p for p in found if p.section == section]
        contents: list = []
        for group in dict.fromkeys(p.group for p in pages):
            here = [{'href': f'{p.path}.ipynb', 'text': p.title} for p in pages if p.group == group]
            contents += [{'section': group, 'contents': here}] if group else here
        if len(pages) > 1: bars.append({'id': section.lower(), 'title': section, 'style': 'docked', 'collapse-level': 2, 'contents': contents})
    return bars + [{'id': 'none'}]  # a page of no section has no sidebar, instead of the first one


def staged(root: Path, outputs: Path, mods: list[Module], only=lambda page: True) -> list[tuple[Page, nbformat.NotebookNode | None]]:
    "Every page as a notebook, those of the reference and the lists too; `None` for pages that are not asked for."
    about, found = project(root), collect(root, outputs, mods)
    links, by_path = Links(root, found, mods, about), {f'reference/{m.name}': m for m in mods}
    def one(p: Page):
        if p.source: return stage(p, links, about)
        text = module_page(by_path[p.path]) if p.path in by_path else listing(p.section, found)
        cells = [new_markdown_cell(text)] + ([new_markdown_cell(citation(about))] if p.path == SECTIONS['Article'] else [])
        return finished(p, cells, about)
    return [(p, one(p) if only(p) else None) for p in found]
