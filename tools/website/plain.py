"Pages as plain HTML: Markdown by mistune, code by Pygments, formulas as MathML, one style sheet and one script. Nothing is loaded from a network."
import base64
import hashlib
import html
import json
import os
import re
import shutil
import struct
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import jinja2
import mistune
import nbformat
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from .pages import FENCE, SECTIONS, Page, Project, options, relative, slug

HERE = Path(__file__).parent
CALLOUT = {'note': 'Note', 'tip': 'Tip', 'important': 'Important', 'warning': 'Warning', 'caution': 'Caution'}
esc = html.escape


def coloured(code: str, language: str) -> str:
    "A line of code a block, so that long lines wrap below their own beginning."
    try: lexer = get_lexer_by_name({'sh': 'bash', 'console': 'bash', '': 'text', 'mermaid': 'text'}.get(language, language), stripnl=False)
    except ClassNotFound: lexer = get_lexer_by_name('text', stripnl=False)
    marked = re.sub(r'<span class="(?:n|nn|nv|na|nt|p|o|w|err|gp)">([^<]*)</span>', r'\1', highlight(code.strip('\n'), lexer, HtmlFormatter(nowrap=True)))  # what has no colour of its own
    if lexer.name == 'Bash': marked = re.sub(r'(?<![\w<>"=-])(--?[A-Za-z][\w-]*)', r'<span class="flag">\1</span>', marked)  # no line ends inside of a flag
    lines, spans, out = marked.rstrip('\n').split('\n'), [], []
    for raw, line in zip(code.strip('\n').split('\n'), lines):
        line = ''.join(spans) + line  # a token of several lines is opened again on each
        for tag in re.findall(r'<span[^>]*>|</span>', line[sum(map(len, spans)):]):
            if tag == '</span>': spans.pop()
            else: spans.append(tag)
        indent = len(raw) - len(raw.lstrip())
        out.append(f'<span class="l"{f" style=--i:{indent}" if indent else ""}>{line}{"</span>" * len(spans)}\n</span>')
    return ''.join(out)


def code_block(code: str, language: str) -> str:
    drawn = language in ('', 'text') and bool(re.search(r'[─│└┌├]|  \S.*\n.*  \S', code))  # a drawing in characters keeps its columns
    return f'<div class="code"><pre{" class=drawn" if drawn else ""}><code>{coloured(code, language)}</code></pre></div>'


class Renderer(mistune.HTMLRenderer):
    "Headings with anchors, links between pages, tables that scroll and sort."

    def __init__(self, page: 'Body'):
        super().__init__(escape=False)
        self.page = page

    def heading(self, text, level, **attrs):
        own = re.search(r'\s*\{#([^\s}]+)[^}]*\}\s*$', text)
        text = re.sub(r'\s*\{[#.][^}]*\}\s*$', '', text)
        plain = html.unescape(re.sub(r'<[^>]+>', '', text))
        anchor = self.page.anchor(own[1] if own else slug(plain))
        self.page.heading(level, plain, anchor)
        level = min(level, self.page.last + 1) if self.page.last else level
        self.page.last = level
        return f'<h{level} id="{anchor}">{text} <a class="anchor" href="#{anchor}" aria-label="Link to “{esc(plain)}”">#</a></h{level}>\n'

    def text(self, text):
        text = super().text(text)
        return re.sub(r'(?<=\w)(?:&#x27;|\')(?=\w|\s|$)', '’', re.sub(r'(^|[\s(])(?:"|&quot;)([^"&]+)(?:"|&quot;)', r'\1“\2”', text))

    def link(self, text, url, title=None):
        if not re.match(r'[a-z][a-z0-9+.-]*:|//', url): url = re.sub(r'\.ipynb(?=#|$)', '.html', url)
        return super().link(text, url, title)

    def image(self, text, url, title=None):
        alt = html.unescape(re.sub(r'<[^>]+>', '', text))
        return f'<img src="{esc(url)}" alt="{esc(alt or title or self.page.describe())}" loading="lazy">'

    def paragraph(self, text):
        figure = re.fullmatch(r'(<img [^>]*>)\s*(?:\{([^}]*)\})?\s*', text)
        if not figure: return f'<p>{text}</p>\n'
        attrs, caption = figure[2] or '', re.search(r'alt="([^"]*)"', figure[1])[1]
        label, alt = re.search(r'#(fig-[\w-]+)', attrs), re.search(r'fig-alt=(?:"|&quot;)(.*?)(?:"|&quot;)', attrs)
        image = re.sub(r'alt="[^"]*"', f'alt="{alt[1]}"', figure[1]) if alt else figure[1]
        return self.page.figure(image, caption if label or alt else '', label and label[1])

    def block_code(self, code, info=None): return code_block(code, (info or '').split()[0].strip('{}.') if info else '')

    def table(self, text): return scrolls(f'<table>{text}</table>')

    def inline_math(self, text): return convert(text)

    def block_math(self, text): return f'<div class="math">{convert(text, display="block")}</div>\n'


def scrolls(table: str) -> str: return f'<div class="table">{table}</div>\n'


class Body:
    "One page on its way to HTML: its headings, figures, pictures as files, and texts to be searched."

    def __init__(self, page: Page, files: Path, fold: bool):
        self.page, self.files, self.fold = page, files, fold
        self.anchors, self.toc, self.texts, self.last, self.numbers, self.drawn, self.waiting = set(), [], [(page.title, '', page.promise)], 1, {}, 0, ''
        self.md = mistune.create_markdown(renderer=Renderer(self), plugins=['table', 'strikethrough', 'footnotes', 'math', 'url', 'def_list'])

    def anchor(self, name: str) -> str:
        found = next(n for n in (name, *(f'{name}-{i}' for i in range(1, 1000))) if n not in self.anchors)
        self.anchors.add(found)
        return found

    def heading(self, level: int, text: str, anchor: str):
        if level <= 3: self.toc.append((level, text, anchor))
        self.texts.append((text, anchor, ''))

    def describe(self) -> str:
        self.drawn += 1
        where = self.toc[-1][1] if self.toc else self.page.title
        return f'Picture {self.drawn} on the page “{self.page.title}”, section “{where}”'

    def say(self, text: str, before: int):
        "The words under each heading, for the search; those in front of the first belong to the heading that was last."
        pieces = re.split(r'^#{1,6} .*$', FENCE.sub('', text), flags=re.M)
        for i, piece in enumerate(pieces):
            title, anchor, said = self.texts[at := min(before - 1 + i, len(self.texts) - 1)]
            words = re.sub(r'\]\([^)]*\)|:::.*|[-:]{3,}|[#*`|>{}\[\]$\\]', ' ', piece).split()
            self.texts[at] = (title, anchor, f'{said} {" ".join(words)}'.strip()[:2000])

    def markdown(self, text: str) -> str:
        "Quarto's fenced divs are asides and boxes; the rest is Markdown."
        parts, out, box, before = re.split(r'^(:{3,}[^\n]*)$', text, flags=re.M), [], [], len(self.texts)
        for part in parts:
            if not part.startswith(':::'):
                if part.strip(): out.append(self.md(part))
            elif name := part.strip(': {}').strip():
                kind = re.search(r'callout-(\w+)', name)
                title = re.search(r'title="([^"]*)"', name)
                out.append(f'<aside class="callout {kind[1]}"><p class="title">{esc(title[1] if title else CALLOUT.get(kind[1], kind[1]))}</p>' if kind else f'<div class="{esc(" ".join(re.findall(r"[.]([a-z-]+)", name)) or name)}">')
                box.append('</aside>' if kind else '</div>')
            elif box: out.append(box.pop())
        self.say(text, before)
        return ''.join([*out, *reversed(box)])

    def figure(self, content: str, caption: str = '', label: str | None = None, kind: str = 'Figure') -> str:
        if label:
            n = 1 + sum(v.startswith(kind) for v in self.numbers.values())
            self.numbers[label] = f'{kind} {n}'
            caption = f'<b>{kind} {n}.</b> {caption}'
        said = f'<figcaption>{caption}</figcaption>' if caption else ''
        ident = f' id="{self.anchor(label)}"' if label else ''
        return f'<figure{ident}>{said if kind == "Table" else ""}{content}{said if kind != "Table" else ""}</figure>\n'

    def picture(self, kind: str, data: str, alt: str) -> str:
        "A picture becomes a file of its own, so that the page is there at once."
        raw = data.encode() if kind == 'image/svg+xml' else base64.b64decode(data)
        name = f'{hashlib.sha1(raw).hexdigest()[:12]}.{kind.split("/")[1].split("+")[0]}'
        self.files.mkdir(parents=True, exist_ok=True)
        (self.files / name).write_bytes(raw)
        size = ' width="%d" height="%d"' % struct.unpack('>II', raw[16:24]) if kind == 'image/png' else ''
        return f'<img src="{relative("pictures", self.page.path)}/{name}"{size} alt="{esc(alt)}" loading="lazy">'

    def output(self, o, opts: dict) -> str:
        "The richest form that needs no kernel."
        if o.output_type == 'error': return f'<pre class="out error" tabindex="0">{uncoloured("".join(t + chr(10) for t in o.traceback) or f"{o.ename}: {o.evalue}")}</pre>'
        if o.output_type == 'stream': return text_output(o.text)
        data = o.get('data', {})
        alt = opts.get('fig-alt') or self.describe()
        if isinstance(alt, list): alt = alt.pop(0) if len(alt) > 1 else alt[0]
        for kind in ('image/svg+xml', 'image/png', 'image/jpeg', 'image/gif'):
            if kind in data: return self.picture(kind, data[kind], alt)
        if 'text/html' in data: return html_output(data['text/html'], alt)
        if 'text/markdown' in data: return f'<div class="said">{self.markdown(data["text/markdown"])}</div>'
        if 'text/latex' in data: return self.markdown(data['text/latex'])
        return text_output(data.get('text/plain', ''))

    def code(self, c) -> str:
        opts, source = options(c.source)
        outs = [] if opts.get('output') is False else [self.output(o, opts) for o in joined(c.outputs)]
        label, tags = str(opts.get('label', '')), c.metadata.get('tags', [])
        caption = self.md(opts.get('fig-cap') or opts.get('tbl-cap') or '').strip().removeprefix('<p>').removesuffix('</p>') if isinstance(opts.get('fig-cap') or opts.get('tbl-cap'), str) else ''
        shown = ''.join(outs)
        if label.startswith(('fig-', 'tbl-')) or caption: shown = self.figure(shown, caption, label if label.startswith(('fig-', 'tbl-')) else None, 'Table' if label.startswith('tbl-') or 'tbl-cap' in opts else 'Figure')
        elif any('<img' in o for o in outs): shown = f'<figure>{shown}</figure>'
        text = ''
        if source.strip() and opts.get('echo', True) is not False and 'hide-input' not in tags:
            text = code_block(source, 'python')
            fold = opts.get('code-fold', self.fold)
            if fold and not shown and fold != 'show' and not opts.get('code-summary') and not tags: self.waiting += text; return ''
            text, self.waiting = self.waiting + text, ''
            if fold: text = f'<details class="fold"{" open" if fold == "show" else ""}><summary>{esc(str(opts.get("code-summary", "Parameters" if {"parameters", "injected-parameters"} & set(tags) else "Code")))}</summary>{text}</details>'
        return f'<div class="cell">{text}{shown}</div>\n' if text or shown else ''

    def whole(self, nb) -> str:
        parts = []
        for c in nb.cells:
            if c.cell_type == 'code': parts.append(self.code(c))
            elif c.cell_type == 'markdown': parts += [self.left(), self.markdown(c.source) + '\n']
        parts.append(self.left())
        return re.sub(r'(<pre.*?</pre>|<code.*?</code>)|\[?@((?:fig|tbl)-[\w-]*\w)\]?', self.reference, ''.join(parts), flags=re.S)

    def left(self) -> str:
        "Folded cells without an output stand with the next one, or together before the next text."
        text, self.waiting = self.waiting, ''
        return f'<div class="cell"><details class="fold"><summary>Code</summary>{text}</details></div>\n' if text else ''

    def reference(self, m) -> str:
        if m[1]: return m[1]
        return f'<a href="#{m[2]}">{self.numbers[m[2]]}</a>' if m[2] in self.numbers else f'<a href="#{m[2]}">?{m[2]}</a>'  # the check of links finds it


def uncoloured(text: str) -> str: return esc(re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', text), quote=False)


def joined(outputs: list) -> list:
    "Outputs with texts of one stream, one after the other, as one."
    found = []
    for o in outputs:
        if found and o.output_type == found[-1].output_type == 'stream' and o.name == found[-1].name: found[-1] = nbformat.from_dict(dict(found[-1]) | {'text': found[-1].text + o.text})
        else: found.append(o)
    return found


def text_output(text: str) -> str:
    text = text.rstrip('\n')
    if not text: return ''
    last = re.split(r'\r(?!\n)', text)[-1] if '\r' in text else text  # a progress line is what it was at the end
    columns = re.search(r'\S {2,}\S', last) or re.search(r'^\s', last, re.M)
    return f'<pre class="out{"" if columns and chr(10) in last else " one"}">{uncoloured(last)}</pre>'


def html_output(text: str, alt: str) -> str:
    "Tables by pandas without their own borders and styles; pictures with a text."
    text = re.sub(r'<style scoped>.*?</style>', '', text, flags=re.S)
    text = re.sub(r' border="\d+"| style="text-align: right;"', '', text)
    text = re.sub(r'<img (?![^>]*\balt=)', f'<img alt="{esc(alt)}" ', text)
    text = re.sub(r'<script\b.*?</script>', '', text, flags=re.S)
    text = re.sub(r'<(?:div|details)>\s*(<table.*?</table>)', r'<div>\1', text, flags=re.S)
    text = re.sub(r'<tr>\s*<th></th>((?:\s*<th>[^<]*</th>)+)\s*</tr>\s*<tr>\s*<th>([^<]*)</th>(?:\s*<th></th>)+\s*</tr>', r'<tr><th>\2</th>\1</tr>', text)  # the index's name in a row of its own
    return re.sub(r'(<table.*?</table>)', lambda m: scrolls(m[1]), text, flags=re.S)


def body(page: Page, nb, out: Path) -> tuple[str, list, list]:
    "HTML of a page's text, its headings, and what the search knows of it."
    b = Body(page, out / 'pictures', fold=page.section == 'Article')
    return b.whole(nb), b.toc, b.texts


@cache
def shell(): return jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template('page.html')


def _write(job) -> list:
    "One page written; runs in a worker process."
    page, nb, out, context = job
    text, toc, texts = body(page, nb, out)
    up = lambda to: relative(to, page.path)
    target = out / f'{page.path}.html'
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(shell().render(page=page, body=text, toc=toc, up=up, **context), encoding='utf-8')
    return [[f'{page.path}.html' + (f'#{a}' if a else ''), page.title, t if a else '', words, page.section] for t, a, words in texts]


def context(page: Page, found: list[Page], about: Project) -> dict:
    "What stands around a page: where one is, what came before, what comes next."
    i, here = found.index(page), [p for p in found if p.section == page.section]
    groups = [(g, [p for p in here if p.group == g]) for g in dict.fromkeys(p.group for p in here)]
    return {'about': about, 'sections': SECTIONS, 'groups': groups, 'before': found[i - 1] if i else None, 'after': found[i + 1] if i + 1 < len(found) else None, 'colab': about.colab(page.repo)}


def build(staged: list[tuple[Page, nbformat.NotebookNode | None]], about: Project, out: Path, workers: int | None = None) -> list[Path]:
    "The staged pages below `out`, which is made anew; navigation names the others too."
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in ('site.css', 'site.js'): shutil.copy(HERE / name, out)
    found = [p for p, _ in staged]
    jobs = [(p, nb, out, context(p, found, about)) for p, nb in staged if nb is not None]
    workers = workers or len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    if workers > 1 and len(jobs) > 30:  # processes of their own, since a test that holds a browser must not be forked
        with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool: index = list(pool.map(_write, jobs, chunksize=4))
    else: index = list(map(_write, jobs))
    entries = [e for page in index for e in page]
    (out / 'search.js').write_text('window.mammoIndex=' + json.dumps(entries, ensure_ascii=False, separators=(',', ':')).replace('</', '<\\/') + ';\n', encoding='utf-8')
    return [out / f'{p.path}.html' for p, *_ in jobs]
