"""The site: home, Learn, guides, article, reference, promises. With Quarto on the PATH it is rendered by it; without it, plain HTML of the same pages.

    python tools/docs.py [--plain] [--out FOLDER] [--outputs FOLDER]      the site in _docs/
    python tools/docs.py --pdf                                            the article's pages as PDF (Quarto's typst) in _docs/pdf/

Pages are staged in build/site: what Quarto reads and what plain HTML is made from is the same.
"""
import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from website import check, pages, plain, reference

ROOT = Path(__file__).resolve().parents[1]
WEBSITE = Path(__file__).parent / 'website'


def stage(staged, found: Path) -> None:
    "Notebooks, navigation and styles as Quarto wants them in one folder."
    shutil.rmtree(found, ignore_errors=True)
    for page, nb in staged:
        to = found / f'{page.path}.ipynb'
        to.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, to)
    assets(found)
    shutil.copy(ROOT / '_quarto.yml', found)
    for name in ('quarto.scss', 'quarto-dark.scss'): shutil.copy(WEBSITE / name, found)
    (found / 'sidebar.yml').write_text(yaml.safe_dump({'website': {'sidebar': pages.navigation([p for p, _ in staged])}}, allow_unicode=True, sort_keys=False), encoding='utf-8')
    (found / 'tables.html').write_text(f'<script>\n{(WEBSITE / "site.js").read_text(encoding="utf-8")}</script>\n', encoding='utf-8')
    for folder in ('article', 'runs'):  # code is folded there, and there is a PDF
        if (found / folder).is_dir(): shutil.copy(WEBSITE / 'article.yml', found / folder / '_metadata.yml')


def assets(out: Path) -> None:
    "Pictures and other files that stand beside the notebooks."
    for p in (ROOT / 'nbs').rglob('*'):
        name = p.relative_to(ROOT / 'nbs')
        if p.is_file() and p.suffix not in ('.ipynb', '.yml', '.py') and not any(part.startswith(('.', '_')) for part in name.parts):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(p, out / name)


def build(out: Path, outputs: Path, only=lambda page: True) -> list[Path]:
    "The plain rendering."
    made = plain.build(pages.staged(ROOT, outputs, reference.modules(ROOT), only), pages.project(ROOT), out)
    assets(out)
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plain', action='store_true', help='plain HTML even where Quarto is installed')
    parser.add_argument('--pdf', action='store_true', help='the pages of the article as PDF instead')
    parser.add_argument('--out', type=Path, default=ROOT / '_docs')
    parser.add_argument('--outputs', type=Path, default=ROOT / 'outputs', help='where finished studies lie')
    args, clock, quarto, folder = parser.parse_args(argv), time.perf_counter(), shutil.which('quarto'), ROOT / 'build/site'
    if args.pdf and not quarto:
        print('make pdf needs Quarto (https://quarto.org/docs/get-started): it is not on the PATH, and nothing was made.', file=sys.stderr)
        return 1
    if quarto and not args.plain:
        stage(pages.staged(ROOT, args.outputs.resolve(), reference.modules(ROOT)), folder)
        if not args.pdf: return subprocess.run([quarto, 'render', folder, '--output-dir', args.out.resolve()]).returncode
        kinds = [d for d in ('article', 'runs') if (folder / d).is_dir()]
        return max(subprocess.run([quarto, 'render', folder / d, '--to', 'typst', '--output-dir', args.out.resolve() / 'pdf']).returncode for d in kinds)
    made = build(args.out.resolve(), args.outputs.resolve())
    links, wrong = check.check(args.out.resolve())
    largest = max(made, key=lambda p: p.stat().st_size)
    why = 'Plain HTML as asked' if quarto else 'Quarto is not on the PATH: plain HTML'
    print(f'{why} of the same {len(made)} pages is in {args.out.name}/ (start at index.html). {time.perf_counter() - clock:.1f} s, {links} links followed, '
          f'largest page {largest.stat().st_size / 1e6:.2f} MB ({largest.stem}).')
    for w in wrong: print(w, file=sys.stderr)
    return bool(wrong)


if __name__ == '__main__': sys.exit(main())
