"""The reference, read from the exported modules without importing them: public names, signatures, docments.

A parameter's comment is the one on its line (or, as fastcore has it, on the lines above it); the return's is the one on the line of its annotation.
"""
import ast
import html
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    name: str                 # As it is exported
    kind: str                 # function, class, value, or lent: made in another module and offered here too
    signature: str            # Code
    doc: str                  # First line of the docstring
    params: tuple[tuple[str, str, str, str], ...] = ()  # Name, type, default, what it is
    returns: tuple[str, str] = ('', '')  # Type, what it is
    methods: tuple['Entry', ...] = ()

    @property
    def anchor(self) -> str: return self.name


@dataclass(frozen=True)
class Module:
    name: str                 # Without the package: `recipes.density`
    notebook: str             # Stem of the notebook that makes it
    doc: str                  # What the module promises
    entries: tuple[Entry, ...]


def comments(source: str) -> dict[int, str]:
    "Line → comment on it."
    return {t.start[0]: t.string.lstrip('# ').strip() for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}


def first(node) -> str: return (ast.get_docstring(node) or '').strip().split('\n')[0]


def unparse(node) -> str: return ast.unparse(node) if node is not None else ''


def _parameters(args: ast.arguments, said: dict[int, str], bound: bool = False) -> list[tuple[str, str, str, str]]:
    plain = args.posonlyargs + args.args
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    rows = list(zip(plain, defaults)) + ([(args.vararg, None)] if args.vararg else []) + list(zip(args.kwonlyargs, args.kw_defaults)) + ([(args.kwarg, None)] if args.kwarg else [])
    lines = [a.lineno for a, _ in rows]
    name = lambda a: ('*' if a is args.vararg else '**' if a is args.kwarg else '') + a.arg
    end = lambda a, d: max(a.end_lineno, d.end_lineno if d is not None else 0)
    alone = lambda a: lines.count(a.lineno) == 1  # a comment on a line of several parameters is about none of them
    return [(name(a), unparse(a.annotation), unparse(d), said.get(end(a, d), '') if alone(a) else '') for a, d in rows[bool(bound and plain and plain[0].arg in ('self', 'cls')):]]


def _arguments(args: ast.arguments, bound: bool = False) -> list[str]:
    "Each as it is written in a signature; of methods without self or cls."
    shown = [n + (f': {t}' if t else '') + (f' = {d}' if d and t else f'={d}' if d else '') for n, t, d, _ in _parameters(args, {}, bound)]
    if args.kwonlyargs and not args.vararg: shown.insert(len(shown) - len(args.kwonlyargs) - bool(args.kwarg), '*')
    if args.posonlyargs: shown.insert(len(args.posonlyargs) - bound, '/')
    return shown


def _signature(name: str, args: list[str], returns: str = '') -> str:
    "On one line where it fits, else a line an argument."
    back = f' -> {returns}' if returns else ''
    one = f'{name}({", ".join(args)}){back}'
    return one if len(one) <= 88 else '\n'.join([f'{name}(', *(f'    {a},' for a in args), f'){back}'])


def _function(node, said: dict[int, str], name: str = '') -> Entry:
    after = said.get(node.returns.end_lineno, '') if node.returns is not None else ''
    bound = '.' in name  # a method
    params = _parameters(node.args, {l: c for l, c in said.items() if node.returns is None or l != node.returns.end_lineno}, bound)  # on its line a comment is about what comes back
    name, back = name or node.name, unparse(node.returns)
    asked = any(unparse(d).split('.')[-1] in ('property', 'cached_property') for d in node.decorator_list)
    text = name + (f' -> {back}' if back else '') if asked else _signature(name, _arguments(node.args, bound), back)
    return Entry(name, 'function', text, first(node), tuple(params), (back, after))


def _class(node: ast.ClassDef, said: dict[int, str]) -> Entry:
    record = any('dataclass' in unparse(d) for d in node.decorator_list)
    fields = [(n.target.id, unparse(n.annotation), unparse(n.value), said.get(n.end_lineno, '')) for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    defs = [n for n in node.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    init = next((n for n in defs if n.name == '__init__'), None)
    if init is not None: args, params = _arguments(init.args, True), _parameters(init.args, said, True)
    else: args, params = [f'{n}: {t}' + (f' = {d}' if d else '') for n, t, d, _ in fields] if record else [], fields
    bases = [unparse(b) for b in node.bases]
    doc = first(node) or (first(init) if init is not None else '')
    methods = [_function(n, said, f'{node.name}.{n.name}') for n in defs if not n.name.startswith('_') and (first(n) or n.returns is not None)]
    text = _signature(node.name, args) if args else f'class {node.name}' + (f'({", ".join(bases)})' if bases else '')
    return Entry(node.name, 'class', text, doc, tuple(params), ('', ''), tuple(methods))


def _value(name: str, node, said: dict[int, str], lines: list[str]) -> Entry:
    code = re.sub(r'\s+', ' ', unparse(node.value))
    above = []
    for l in reversed(lines[:node.lineno - 1]):
        if not l.startswith('# ') or l.startswith('# %%'): break
        above.insert(0, l.lstrip('# ').strip())
    return Entry(name, 'value', f'{name} = {code if len(code) <= 300 else code[:300] + " …"}', ' '.join(above) or said.get(node.end_lineno, ''))


def entries(source: str) -> tuple[str, tuple[Entry, ...]]:
    "A module's docstring and its public names, in the order of the file."
    tree, said, lines = ast.parse(source), comments(source), source.split('\n')
    public = next(([e.value for e in n.value.elts] for n in tree.body if isinstance(n, ast.Assign) and unparse(n.targets[0]) == '__all__'), [])
    found: dict[str, Entry] = {}
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and n.name in public: found[n.name] = _function(n, said)
        elif isinstance(n, ast.ClassDef) and n.name in public: found[n.name] = _class(n, said)
        elif isinstance(n, (ast.Assign, ast.AnnAssign)) and n.value is not None:
            for t in n.targets if isinstance(n, ast.Assign) else [n.target]:
                for e in t.elts if isinstance(t, ast.Tuple) else [t]:
                    if unparse(e) in public: found[unparse(e)] = _value(unparse(e), n, said, lines)
        elif isinstance(n, ast.ImportFrom):
            for a in n.names:
                if (a.asname or a.name) in public: found[a.asname or a.name] = Entry(a.asname or a.name, 'lent', f'from {"." * n.level}{n.module} import {a.name}', '')
    return first(tree), tuple(found.values())


def modules(root: Path) -> list[Module]:
    "All exported modules, by the number of their notebook."
    found = []
    for path in (root / 'mammo').rglob('*.py'):
        source = path.read_text(encoding='utf-8')
        if not (made := re.search(r'File to edit: (?:\.\./)+nbs/(\w+)\.ipynb', source)): continue
        doc, names = entries(source)
        found.append(Module('.'.join(path.relative_to(root / 'mammo').with_suffix('').parts), made[1], doc, names))
    return sorted(found, key=lambda m: m.notebook)


def _lent(m: Module) -> str:
    "Names of other modules that this one offers too."
    by_home: dict[str, list[str]] = {}
    for e in m.entries:
        if e.kind == 'lent': by_home.setdefault(re.sub(r'^from (?:\.+|mammo\.)(\S+) .*', r'\1', e.signature), []).append(e.name)
    rows = [f'[mammo.{home}]({home}.ipynb): {", ".join(f"[`{n}`]({home}.ipynb#{n})" for n in names)}' for home, names in by_home.items()]
    return 'It also offers, from ' + '; from '.join(rows) + '.' if rows else ''


def _cell(text: str) -> str: return re.sub(r'\s+', ' ', text).replace('|', '\\|') if text else ''


def _code(text: str) -> str:
    "Inline code in a cell of a table."
    text = text if len(text) <= 60 else text[:57] + '…'
    if '|' in text: return f'<code>{html.escape(text).replace("|", "&#124;")}</code>'  # a bar in a cell
    return f'`{_cell(text)}`' if text else ''


def entry_page(e: Entry, level: int) -> str:
    parts = [f'{"#" * level} {e.name} {{#{e.anchor}}}', f'```python\n{e.signature}\n```', e.doc]
    again = [bool(c) and i > 0 and e.params[i - 1][3] == c for i, (*_, c) in enumerate(e.params)]  # several on one line share its comment
    rows = [f'| `{n}` | {_code(t)} | {_code(d)} | {"as above" if a else _cell(c)} |' for (n, t, d, c), a in zip(e.params, again)]
    if any(e.returns) and e.kind == 'function' and (e.returns[1] or e.params) and e.returns[0] != 'None': rows.append(f'| returns | {_code(e.returns[0])} |  | {_cell(e.returns[1])} |')
    if any(p[3] for p in e.params) or e.returns[1]: parts.append('| parameter | type | default | what it is |\n|---|---|---|---|\n' + '\n'.join(rows))
    return '\n\n'.join(p for p in parts + [entry_page(m, level + 1) for m in e.methods] if p)


def module_page(m: Module) -> str:
    "The page of a module as Markdown."
    own = [e for e in m.entries if e.kind != 'lent']
    head = f'`mammo.{m.name}` is made in [{m.notebook}](../{m.notebook}.ipynb), where every name below stands beside its reason, an example and its tests.\n\n```python\nfrom mammo.{m.name} import {", ".join(e.name for e in own[:3])}\n```' if own else \
        f'`mammo.{m.name}` is made in [{m.notebook}](../{m.notebook}.ipynb). It has no public name of its own.'
    return '\n\n'.join(p for p in [head, _lent(m), *(entry_page(e, 2) for e in own)] if p)
