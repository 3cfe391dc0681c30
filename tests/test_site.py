"README and site are made from the notebooks."
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))


def test_the_readme_is_in_step():
    from readme import readme
    assert (ROOT / 'README.md').read_text(encoding='utf-8') == readme(), 'run make readme'


def test_links_of_the_readme_lead_somewhere():
    targets = [t for t in re.findall(r'\]\(([^)#]+)\)', (ROOT / 'README.md').read_text(encoding='utf-8')) if not t.startswith('http')]
    assert len(targets) >= 2 and [t for t in targets if not (ROOT / t).exists()] == []


def test_the_version_stands_once():
    from configparser import ConfigParser
    import mammo
    cfg = ConfigParser()
    cfg.read(ROOT / 'settings.ini')
    assert cfg['DEFAULT']['version'] == mammo.__version__


@pytest.mark.skipif(shutil.which('quarto') is not None, reason='Quarto is here; its render is checked by make docs')
def test_the_site_without_quarto():
    done = subprocess.run([sys.executable, ROOT / 'tools/docs.py'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'Quarto is not on the PATH' in done.stdout, done.stderr
    pages = {p.relative_to(ROOT / '_docs').as_posix() for p in (ROOT / '_docs').rglob('*.html')}
    assert {'index.html', '10_dicom.html', 'guides/weights.html'} <= pages
    assert 'BI-RADS' in (ROOT / '_docs/index.html').read_text()


def test_make_help_lists_the_targets():
    said = subprocess.run(['make', 'help'], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f'make {t}' in said for t in ('setup', 'demo', 'test', 'test-all', 'readme', 'docs', 'lab', 'clean'))
