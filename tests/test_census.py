"What `mammography audit` finds in a folder with everything that a folder has, and that it names nobody."
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import dcmread

from mammo.cli import main
from mammo.phantom import Dress, phantom, write_phantom

MARKS = {'PatientName': 'MARKED^NAME', 'PatientID': 'MARKEDID', 'InstitutionName': 'MARKED HOSPITAL', 'ReferringPhysicianName': 'MARKED^DOCTOR', 'StudyDescription': 'MARKED STUDY', 'PatientBirthDate': '19010203', 'ImageComments': 'MARKED COMMENT'}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Two sites: a table, an exam of two labels, the same pixels in other bytes at the other site, truncated, coloured, empty and foreign files, and a vendor with HTML in its name."
    root = tmp_path_factory.mktemp('sites')
    for k, (acc, density) in enumerate((('A1', 1), ('A2', 2), ('A3', 3))):
        for side in 'LR':
            path = write_phantom(root / f'one/{acc}/{side}.dcm', phantom(density, side, 'CC', seed=k, rows=160, columns=128), f'W{k}', acc, dress=Dress())
            ds = dcmread(path)
            for word, value in (MARKS | {'Manufacturer': '<b>Maker|&'}).items(): setattr(ds, word, value)
            ds.save_as(path)
    write_phantom(root / 'two/B1/x.dcm', phantom(2, 'L', 'CC', seed=1, rows=160, columns=128), 'W9', 'B1', dress=Dress(mono=1, syntax='rle'))
    (root / 'one/A1/cut.dcm').write_bytes((root / 'one/A1/L.dcm').read_bytes()[:3000])
    (root / 'one/A1/empty.dcm').write_bytes(b'')
    (root / 'one/A1/notes.txt').write_text('MARKED NOTE')
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(root / 'two/colour.png')
    (root / 'one.csv').write_text('AccessionNumber,BI-RADS\nA1,1\nA2,2\nA3,3\nA3,4\n')
    (root / 'two.csv').write_text('AccessionNumber,BI-RADS\nB1,4\n')
    return root


def run(folders, out, *more): return main(['audit', '--dicom-root', str(folders / 'one'), str(folders / 'two'), '--outdir', str(out), '--num-workers', '0', *map(str, more)])


def test_everything_is_counted_and_nobody_is_named(folders, tmp_path, capfd):
    assert run(folders, tmp_path / 'a', '--csv', folders / 'one.csv', folders / 'two.csv', '--images', '20') == 0
    told, found = capfd.readouterr().out, json.loads((tmp_path / 'a/audit.json').read_text())
    assert found['totals'] == {'sets': 2, 'files': [9, 2], 'images': [8, 2], 'readable': [6, 1], 'refused': [2, 0], 'not_eligible': [0, 1], 'other_files': [1, 0], 'megapixels': [.02, .02]}
    assert found['duplicates'] == {'groups': 1, 'files': 2, 'between_sets': 1, 'other_bytes': 1, 'label_conflicts': 1}, 'the same pixels are a B here and a D there'
    assert found['counts']['transfer syntax or format'] == {'Explicit VR Little Endian': [6, 0], 'RLE Lossless': [0, 1]} and found['counts']['side and view'] == {'L CC': [3, 1], 'R CC': [3, 0]}
    assert [(l['dataset'], l['counts'], l['contradictions']) for l in found['labels']] == [('classificacao', {'A': 2, 'B': 2}, 1), ('classificacao', {'D': 1}, 0)]
    page, twins = (tmp_path / 'a/audit.html').read_text(), pd.read_csv(tmp_path / 'a/duplicates.csv')
    assert twins.label.tolist() == ['B', 'D'] and page.count('<figure>') == 7 and '<b>Maker' not in page and '&lt;b&gt;Maker' in page and '| <b>Maker/& |' in told
    words = re.sub('base64,[^"]*', '', page)
    for text in (told, words, *(p.read_text() for p in (tmp_path / 'a').iterdir() if p.suffix in ('.csv', '.json', '.md'))): assert 'MARKED' not in text and '19010203' not in text
    for text in (told.replace(str(tmp_path), ''), words): assert not re.search(r'\bA[123]\b|\bB1\b|\.dcm|notes', text), 'the page and the report speak of numbers'
    files = pd.read_csv(tmp_path / 'a/files.csv')
    assert len(files) == 11 and sorted(files.reason.dropna()) == ['not_an_image', 'not_eligible', 'unreadable', 'unreadable']


def test_relative_folders_know_their_labels(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders)
    assert main(['audit', '--dicom-root', 'one', '--csv', 'one.csv', '--outdir', str(tmp_path / 'r'), '--num-workers', '0', '--images', '0']) == 0
    assert json.loads((tmp_path / 'r/audit.json').read_text())['labels'][0]['counts'] == {'A': 2, 'B': 2}


def test_it_ends_well_whatever_it_finds(folders, tmp_path, capsys):
    (tmp_path / 'bad.csv').write_bytes(b'\x00\x01"')
    (tmp_path / 'odd.csv').write_text('a,b\n1,2\n')
    assert run(folders, tmp_path / 'b', '--csv', tmp_path / 'bad.csv', tmp_path / 'odd.csv', '--no-pixels') == 0
    assert capsys.readouterr().out.count('the table cannot be used') == 2
    assert run(folders, tmp_path / 'b', '--csv', tmp_path / 'bad.csv', tmp_path / 'odd.csv', '--no-pixels') == 0, 'again, over the first'
    assert run(folders, tmp_path / 'b') == 2 and '--overwrite' in capsys.readouterr().err
    (tmp_path / 'nothing').mkdir()
    assert main(['audit', '--dicom-root', str(tmp_path / 'nothing'), '--outdir', str(tmp_path / 'c')]) == 0 and json.loads((tmp_path / 'c/audit.json').read_text())['totals']['files'] == [0]


@pytest.mark.parametrize('name', ['mass_case_description_train_set.csv', 'INbreast.csv', 'featureS.txt', 'breast-level_annotations.csv', 'EMBED_OpenData_metadata.csv', 'train.csv'])
@pytest.mark.parametrize('trap', ['pipe', 'endless', 'folder'])
def test_a_publishers_table_that_is_a_trap(tmp_path, name, trap, capsys):
    "A pipe would wait for ever, a device would fill the memory."
    (tmp_path / 'd/train_images').mkdir(parents=True)
    {'pipe': os.mkfifo, 'endless': lambda p: p.symlink_to('/dev/zero'), 'folder': Path.mkdir}[trap](tmp_path / 'd' / name)
    assert main(['audit', '--dicom-root', str(tmp_path / 'd'), '--outdir', str(tmp_path / 'o')]) == 0
    assert main(['audit', '--dicom-root', str(tmp_path / 'd'), '--csv', str(tmp_path / 'd' / name), '--outdir', str(tmp_path / 'p'), '--no-pixels']) == 0
    assert 'the table cannot be used' in capsys.readouterr().out


def test_what_has_no_row_is_counted(folders, tmp_path, capsys):
    "Hidden files, and files behind a link out of the folder; what an earlier audit left in the folder is not counted, and nothing of it stays."
    (tmp_path / 'd/.hidden').mkdir(parents=True)
    (tmp_path / 'd/.x.dcm').touch(), (tmp_path / 'd/DICOMDIR').touch(), (tmp_path / 'd/link').symlink_to(folders / 'two/B1')
    assert main(['audit', '--dicom-root', str(tmp_path / 'd'), '--outdir', str(tmp_path / 'o'), '--num-workers', '0']) == 0
    told = capsys.readouterr().out
    assert '| 1 | 3 files and folders | hidden and system files' in told and '| 1 | 1 files | files behind links that lead out' in told
    for more in ((), ('--overwrite', '--images', '3')):
        assert main(['audit', '--dicom-root', str(tmp_path / 'd'), '--outdir', str(tmp_path / 'd/found'), '--num-workers', '0', *more]) == 0
        assert json.loads((tmp_path / 'd/found/audit.json').read_text())['totals']['files'] == [1]
    assert main(['audit', '--dicom-root', str(folders / 'one'), '--outdir', str(tmp_path / 'd/found'), '--num-workers', '0']) == 2 and '--dicom-root is another' in capsys.readouterr().err


def test_one_table_for_the_first_of_two_folders(folders, tmp_path):
    assert run(folders, tmp_path / 'a', '--csv', folders / 'one.csv', '--no-pixels') == 0
    assert [l['dataset'] for l in json.loads((tmp_path / 'a/audit.json').read_text())['labels']] == ['classificacao', '']


def test_a_terminal_obeys_nothing(folders, tmp_path, capsys):
    (tmp_path / 't.csv').write_text('AccessionNumber,BI-RADS,\033]0;x\007\033[31mRED\nA1,1,\0\n')
    assert main(['train-density', '--csv', str(tmp_path / 't.csv'), '--dicom-root', str(folders / 'one'), '--outdir', str(tmp_path / 'o')]) in (1, 2)
    said = capsys.readouterr().err
    assert 'RED' in said and '\033' not in said and '\007' not in said


@pytest.mark.parametrize('flags', [['--dicom-root', 'nowhere'], ['--csv', 'none.csv', 'none.csv'], ['--csv', 'one.csv'], ['--keep', 'cats']])
def test_what_cannot_be_meant(folders, tmp_path, flags, capsys):
    roots = [] if '--dicom-root' in flags else ['--dicom-root', str(folders / 'one'), str(folders / 'two')]
    assert main(['audit', *roots, *flags, '--outdir', str(tmp_path / 'o')]) == 2 and capsys.readouterr().err.startswith('mammography: ')


def test_a_public_data_set_is_known_by_its_files(tmp_path, capsys):
    root = tmp_path / 'patches_completo'
    root.mkdir()
    for i in range(4): Image.fromarray(np.random.default_rng(max(i, 1)).integers(0, 255, (40, 32), dtype=np.uint8)).save(root / f'{i}.{"pgm" if i == 1 else "png"}')
    (root / 'featureS.txt').write_text('0.png\n0\n1.pgm\n1\n2.png\n2\n3.png\n3\n')
    assert main(['audit', '--dicom-root', str(root), '--outdir', str(tmp_path / 'o'), '--num-workers', '0']) == 0
    found = json.loads((tmp_path / 'o/audit.json').read_text())
    assert found['labels'][0]['dataset'] == 'patches_completo' and found['labels'][0]['counts'] == dict.fromkeys('ABCD', 1) and found['duplicates']['label_conflicts'] == 1


def test_datasets_are_listed(capsys):
    assert main(['datasets']) == 0
    told = capsys.readouterr().out
    for word in ('rsna', 'vindr-mammo', 'cbis-ddsm', 'inbreast', 'embed', 'mini-mias', 'mamografias', 'patches_completo', 'nih', 'vindr-spinexr', 'IRMA', 'CC BY 3.0', '4th edition'): assert word in told
    assert told.count('licence') == 11 and main(['datasets', '--name', 'ddsm']) == 2


def test_real_files(shared, tmp_path, capsys):
    "13 real DICOM files: one no decoder reads, one in colour; four hold the same pixels in four ways."
    assert main(['audit', '--dicom-root', str(shared / 'data/dicom'), '--outdir', str(tmp_path / 'o'), '--num-workers', '1', '--images', '2']) == 0
    found = json.loads((tmp_path / 'o/audit.json').read_text())
    assert found['totals']['readable'] == [11] and found['totals']['refused'] == [1] and found['totals']['not_eligible'] == [1] and (found['duplicates']['groups'], found['duplicates']['files']) == (1, 4)
