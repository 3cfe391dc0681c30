"Stored outputs are what the notebooks say: the comparison itself, and (slow) notebooks of several floors run again."
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from stored import compare, differences, run, said, still  # noqa: E402

AGAIN = ('00_core', '02_runs', '09_grey', '10_dicom', '12_manifest', '13_splits', '30_objectives', '31_metrics', '37_comparing', '56_figures', 'index')


@pytest.mark.parametrize('stored, fresh, same', [
    ('kappa 0.512', 'kappa 0.514', True), ('kappa 0.512', 'kappa 0.612', False), ('kappa 0.512', 'kappa 0.513', True), ('kappa 0.51', 'AUROC 0.51', False), ('n = 162', 'n = 163', False), ('16,200 bytes', '16201 bytes', True), ('16,200 bytes', '18,200 bytes', False), ('3 of 8', '4 of 8', False),
    ('0.00', '0.01', True), ('0.00', '0.03', False), ('1,024', '1024', True), ('−1.5', '1.5', False), ('1e-05', '2e-05', False), ('a\nb', 'a', False), ('{"a": 1}', '{"b": 1}', False),
    ('took 1.2 s', 'took 34 s', True), ('12.5 img/s', '99 img/s', True), ('took 1.2 s', 'took nothing', False), ('<f at 0x7f00aabbcc>', '<f at 0x7f99aabbcc>', True), ('in /tmp/abc/x.csv', 'in /tmp/tmpq1w2e3r4/x.csv', True),
    ('commit dad106dec9b3', 'commit a5d7f0f9a0b1', True), ('2026-11-26T10:00:01', '2027-01-02T00:00:00', True), ('torch 2.15.0', 'torch 2.16.1+cpu', True), ('seconds | 3', 'seconds | 9', True), ('images | 3', 'images | 9', False),
    ('| ms | n\na | 3.5 | 2', '| ms | n\na | 9.5 | 2', True), ('| ms | n\na | 3.5 | 2', '| ms | n\na | 3.5 | 3', False), ("{'decode, s': 0.1, 'n': 3}", "{'decode, s': 0.9, 'n': 3}", True),
    ('label  0.5', 'label 0.5', True), ('|----|', '|------|', True), ('face and deed', 'face and dead', False), ('bfloat16', 'float16', False), ('ResNet18', 'ResNet50', False)])
def test_what_may_differ(stored, fresh, same): assert (compare(still(stored), still(fresh)) == '') == same


def cell(*outputs, source='x'): return {'cell_type': 'code', 'source': source, 'outputs': list(outputs)}


def text(t, **more): return {'output_type': 'execute_result', 'data': {'text/plain': t} | more}


def stream(t, name='stdout'): return {'output_type': 'stream', 'name': name, 'text': [t]}


def test_what_a_cell_says():
    table = '<div><style scoped>b</style><table><thead><tr><th></th><th>a</th></tr></thead><tbody><tr><th>x</th><td>1 &lt; 2</td></tr></tbody></table></div>'
    outs = [stream('said'), stream('a warning', 'stderr'), stream('train:  17%|#6   | 42/252 [00:02<00:11]'), text('t', **{'text/html': table}), text('<Figure>', **{'image/png': 'x'}), text('bar', **{'application/vnd.jupyter.widget-view+json': {}}),
            {'output_type': 'error', 'ename': 'E', 'evalue': 'why', 'traceback': []}]
    assert said(cell(*outs)) == ['said', '| a\nx | 1 < 2', 'E: why']


def test_differences_name_the_cell():
    nb = lambda *cells: {'cells': [{'cell_type': 'markdown', 'source': 'x'}, *cells]}
    a = nb(cell(text('0.5')), cell(text('same')), cell(text('1'), source='#| slow\nx'), cell())
    assert differences(a, a) == []
    assert differences(a, nb(cell(text('0.9')), cell(text('same')), cell(source='#| slow\nx'), cell(text('more')))) == ["cell 1: 0.5 is stored, 0.9 came out, in '0.5'", 'cell 4: 0 outputs are stored, 1 came out']
    assert differences(a, nb(cell(text('0.9')), cell(text('same'))), rel=1) == []


@pytest.mark.slow
@pytest.mark.parametrize('name', AGAIN)
def test_stored_outputs_are_what_comes_out(name):
    path = ROOT / 'nbs' / f'{name}.ipynb'
    assert differences(json.loads(path.read_text(encoding='utf-8')), run(path)) == []


@pytest.mark.slow
def test_a_stored_number_that_is_wrong_is_found():
    path = ROOT / 'nbs/13_splits.ipynb'
    nb = json.loads(path.read_text(encoding='utf-8'))
    fresh = json.loads(path.read_text(encoding='utf-8'))
    hit = next(o for c in nb['cells'] for o in c.get('outputs', []) if any(ch.isdigit() for ch in ''.join(o.get('data', {}).get('text/plain', ''))) and 'text/html' not in o['data'])
    hit['data']['text/plain'] = ''.join(hit['data']['text/plain']).translate(str.maketrans('123456789', '987654321'))
    assert len(differences(nb, fresh)) == 1 and differences(fresh, fresh) == []
