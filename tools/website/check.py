"Every link, anchor and picture of a built site, followed; and everything that would leave the machine, named."
import html
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {('script', 'src'), ('link', 'href'), ('img', 'src'), ('iframe', 'src'), ('source', 'src'), ('video', 'src'), ('audio', 'src'), ('object', 'data'), ('embed', 'src'), ('image', 'href'), ('use', 'href')}


TAG = re.compile(r'<(a|area|img|script|link|iframe|source|video|audio|object|embed|image|use|h[1-6])\b([^<>]*)>|<[a-z]\w*\b[^<>]*?\sid=[^<>]*>', re.I)
ATTR = re.compile(r'([\w:-]+)=(?:"([^"]*)"|\'([^\']*)\'|([^\s"\'>]+))')


class Reader:
    "The links, anchors, pictures and headings of a page whose texts have no bare `<` and `>`, as ours have not."

    def __init__(self, text: str):
        self.links, self.loads, self.ids, self.headings, self.unnamed, self.twice = [], [], set(), [], 0, []
        for m in TAG.finditer(text): self.tag((m[1] or '').lower(), {k: html.unescape(a or b or c) for k, a, b, c in ATTR.findall(m[0])})

    def tag(self, tag: str, d: dict):
        if i := d.get('id'): self.twice += [i] if i in self.ids else []; self.ids.add(i)
        for k in ('href', 'src', 'data'):
            if (v := d.get(k)) is not None: (self.loads if (tag, k) in LOADS else self.links if tag in ('a', 'area') else []).append(v)
        if re.fullmatch(r'h[1-6]', tag): self.headings.append(int(tag[1]))
        if tag == 'img' and not (d.get('alt') or '').strip() and d.get('role') != 'presentation': self.unnamed += 1


def check(out: Path) -> tuple[int, list[str]]:
    "Number of links followed, and what is wrong: dead links and anchors, doubled anchors, pictures without text, leaps in headings, loads from elsewhere."
    pages = {p: Reader(p.read_text(encoding='utf-8')) for p in sorted(out.rglob('*.html'))}
    followed, wrong = 0, []
    for page, r in pages.items():
        name = page.relative_to(out).as_posix()
        for href in r.links + r.loads:
            parts = urlsplit(href)
            if parts.scheme in ('data', 'mailto', 'javascript'): continue
            if parts.scheme or parts.netloc:
                if href in r.loads: wrong.append(f'{name}: loads {href}')
                continue
            followed += 1
            there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not there.is_file(): wrong.append(f'{name}: dead link {href}')
            elif parts.fragment and there.suffix == '.html' and unquote(parts.fragment) not in pages.get(there, r).ids: wrong.append(f'{name}: dead anchor {href}')
        wrong += [f'{name}: anchor {i} stands twice' for i in r.twice]
        if r.unnamed: wrong.append(f'{name}: {r.unnamed} pictures without a text')
        if r.headings.count(1) != 1: wrong.append(f'{name}: {r.headings.count(1)} titles')
        wrong += [f'{name}: a heading of level {b} below one of level {a}' for a, b in zip(r.headings, r.headings[1:]) if b > a + 1]
    return followed, wrong
