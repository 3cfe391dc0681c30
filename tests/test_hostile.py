"What a hospital's folder may hold: damaged and malicious DICOM, tables, pictures, checkpoints and stores. Nothing ends the run, nothing leaves the root, every file has its row."
import errno
import json
import os
import pickle
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from mammo.breast import Prep
from mammo.core import DataError, WeightsError, hash_file
from mammo.dicom import BrokenFile, DicomError, Limits, NotEligible, ReadOptions, read_header, read_image
from mammo.ingest import ingest
from mammo.datasets import load_dataset
from mammo.runs import RunDir, harmless, table_text
from mammo.scan import find_images, read_table, scan
from mutants import KEY, MIB, SECONDS, Victim, bases, fuzz, nested, outcome, sound

ROOT = Path(__file__).parents[1]
PX = np.add.outer(np.arange(48) * 40, np.arange(40) * 50).astype('<u2')


def write(path: Path, ds) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def planted(path: Path, extra: bytes) -> Path:
    "A sound file with bytes of somebody else's in front of its pixels."
    b = write(path, sound(PX)).read_bytes()
    at = b.index(b'\xe0\x7f\x10\0')
    path.write_bytes(b[:at] + extra + b[at:])
    return path


# ---------------------------------------------------------------- DICOM: mutants

def test_the_sound_files_are_read(tmp_path):
    "Or the mutants would say nothing."
    for name, ds in bases(tmp_path).items(): assert outcome(str(write(tmp_path / 'x.dcm', ds))) == 'image', name


def test_300_mutants(tmp_path):
    victim, bad = fuzz(300, tmp_path)
    print(victim.figures())
    assert not bad, '\n\n'.join(bad)
    assert sum(victim.counts.values()) >= 300 and victim.longest < SECONDS and victim.peak < MIB and victim.counts['image'] > 50 and len(victim.counts) > 6


@pytest.mark.slow
@pytest.mark.parametrize('part', range(5))
def test_5000_mutants(tmp_path, part):
    "Each part begins with another seed; the last one is of real files."
    victim, bad = fuzz(1000, tmp_path, real=part == 4, start=part)
    print(victim.figures())
    assert not bad, '\n\n'.join(bad)
    assert sum(victim.counts.values()) >= 1000 and victim.longest < SECONDS and victim.peak < MIB


def test_a_victim_tells_crash_and_hang(tmp_path):
    "The fuzzer has to notice both: a reader that dies at one name and sleeps at another."
    v = Victim()
    v.read(write(tmp_path / 'a.dcm', sound(PX)))
    os.kill(v.process.pid, 9)
    assert v.read(tmp_path / 'a.dcm') == 'CRASH' and v.read(tmp_path / 'a.dcm') == 'image'
    os.kill(v.process.pid, 19)  # stopped: as good as hanging
    v.seconds = 2
    assert v.read(tmp_path / 'a.dcm') == 'HANG'
    v.close()


# ---------------------------------------------------------------- DICOM: by hand

def test_large_numbers_of_small_things(tmp_path):
    "400,000 elements, items, fragments or values cost seconds, not minutes; 300,000 nested sequences do not overflow."
    v, item = Victim(), b'\xfe\xff\0\xe0\0\0\0\0'
    attacks = {'elements': b''.join(struct.pack('<HH', 9, 0x1000 + k % 0xe000) + b'LO\2\0ab' for k in range(400_000)),
               'items': b'\x28\0\x10\x30SQ\0\0\xff\xff\xff\xff' + item * 400_000 + b'\xfe\xff\xdd\xe0\0\0\0\0',
               'items of known length': b'\x28\0\x10\x30SQ\0\0' + struct.pack('<I', 3_200_000) + item * 400_000,
               'values': b'\x28\0\x50\x10UN\0\0' + struct.pack('<I', 4_000_000) + b'1\\' * 2_000_000, 'nested': nested(300_000, False)}
    assert v.read(write(tmp_path / 'a.dcm', sound(PX))) == 'image'
    got = {name: v.read(planted(tmp_path / 'x.dcm', extra)) for name, extra in attacks.items()}
    assert got == {'elements': 'refused: damaged', 'items': 'refused: damaged', 'items of known length': 'image', 'values': 'image', 'nested': 'refused: damaged'}
    assert v.peak < 512, v.figures()
    v.close()


def test_bombs(tmp_path):
    "Few bytes that become 48 MiB, in two ways: read within the bounds, refused where the limits are lower."
    low = ReadOptions(limits=Limits(inflated_mb=20))
    for name in ('rle', 'deflated'):
        ds = sound(np.zeros((5000, 5000), np.uint16))
        if name == 'rle': ds.compress(RLELossless, encoding_plugin='pydicom')
        else: ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        path = write(tmp_path / f'{name}.dcm', ds)
        with pytest.raises(BrokenFile) as e: read_image(path, low, KEY)
        assert e.value.reason == 'too-large' and path.stat().st_size < 3 * 2**20
    v = Victim()
    assert v.read(tmp_path / 'rle.dcm') == 'image' and v.read(tmp_path / 'deflated.dcm') == 'image' and v.peak < 512, v.figures()
    v.close()


def test_empty_lookup_tables_and_windows(tmp_path):
    "A table of entries without bits was a division by zero."
    from mutants import lut
    for n in (0, 1, 3, 4095, 4097):
        for bits in (0, 1, 8, 17, 255):
            item = lut(max(n, 1), 8)
            item.LUTDescriptor, item.LUTData = [n, 0, bits], bytes(max(n, 1))   # odd numbers of bytes too
            image = read_image(write(tmp_path / 'x.dcm', sound(PX, VOILUTSequence=[item])), key=KEY)
            assert np.isfinite(image.img).all() and 0 <= image.img.min() <= image.img.max() <= 1


def test_a_damaged_jpeg_header_does_not_end_the_process(tmp_path):
    "gdcm aborts where a Huffman table lost its marker: found by the fuzzer."
    known = bases(tmp_path)
    for name in ('jpeg', 'jpeg lossless'):
        b = write(tmp_path / 'x.dcm', known[name]).read_bytes()
        at = b.index(b'\xff\xc4', b.index(b'\xe0\x7f\x10\0'))
        for byte, value in ((0, 0x5d), (1, 0), (1, 0xff), (1, 0xd9), (1, 0xc0)):
            (tmp_path / 'x.dcm').write_bytes(b[:at + byte] + bytes([value]) + b[at + byte + 1:])
            with pytest.raises(BrokenFile) as e: read_image(tmp_path / 'x.dcm', key=KEY)
            assert e.value.reason == 'undecodable'


def test_polyglots(tmp_path):
    "The preamble may be another format's beginning: DICOM is what is read, whatever else the file is too."
    b = write(tmp_path / 'x.dcm', sound(PX)).read_bytes()
    want = read_image(tmp_path / 'x.dcm', key=KEY).img
    for magic in (b'\x89PNG\r\n\x1a\n', b'II*\0\x08\0\0\0', b'MZ\x90\0', b'\x7fELF', b'%PDF-1.4', b'<script>'):
        (tmp_path / 'y.png').write_bytes(magic.ljust(128, b'\0') + b[128:])
        assert (read_image(tmp_path / 'y.png', key=KEY).img == want).all()


# ---------------------------------------------------------------- folders

def test_a_folder_of_traps_is_accounted_for(tmp_path):
    "Links out, loops, pipes, devices, folders called like files, closed and empty files, names of other encodings: each has a row, and the sound image is found."
    root = tmp_path / 'root'
    (root / 'sub.dcm').mkdir(parents=True)
    (tmp_path / 'secret.txt').write_text('not for you')
    write(root / 'good.dcm', sound(PX))
    (root / 'empty.dcm').touch()
    (root / 'out.dcm').symlink_to(tmp_path / 'secret.txt')
    (root / 'gone.dcm').symlink_to(tmp_path / 'nothing')
    (root / 'loop.dcm').symlink_to(root / 'loop.dcm')
    (root / 'around').symlink_to(root)
    (root / 'zero.dcm').symlink_to('/dev/zero')
    os.mkfifo(root / 'pipe.dcm')
    os.mkfifo(root / 'pipe')
    shutil.copy(root / 'good.dcm', os.fsencode(root) + b'/M\xfcller.dcm')
    audit = []
    found = find_images(root, audit=audit)
    table = scan(found, root, workers=0, key=KEY, progress=False)
    got = dict(zip(table.rel_path, table.reason))
    assert got.pop('good.dcm') == '' and set(got.values()) == {'unreadable', 'missing_file'} and [a['path'] or a['reason'] for a in audit] == ['behind_link', 'M�ller.dcm', 'pipe']
    assert set(got) == {'empty.dcm', 'out.dcm', 'gone.dcm', 'loop.dcm', 'zero.dcm', 'pipe.dcm'}
    json.dumps(table.drop(columns='path').to_dict('records'), ensure_ascii=False).encode()   # nothing that a run could not write down
    for p in found:
        try: read_image(p, key=KEY)
        except DicomError as e: assert 'not for you' not in str(e)


def test_a_closed_file_is_a_typed_error(tmp_path, monkeypatch):
    "Root may read everything, so the refusal of the system is played."
    p = write(tmp_path / 'x.dcm', sound(PX))
    def refuse(*args, **kw): raise PermissionError(errno.EACCES, 'Permission denied', str(p))
    monkeypatch.setattr('mammo.dicom.open', refuse, raising=False)
    for read in (lambda: read_header(p, KEY), lambda: read_image(p, key=KEY)):
        with pytest.raises(BrokenFile) as e: read()
        assert e.value.reason == 'unreadable' and 'Permission denied' in str(e.value) and isinstance(e.value.__context__, OSError)
    with pytest.raises(BrokenFile): read_header(tmp_path / ('x' * 300), KEY)


def test_mutants_through_ingest(tmp_path):
    "Workers decode 24 files, sound ones between damaged ones: a row each, and the sound ones are in the store."
    from hypothesis import HealthCheck, Phase, given, settings, strategies as st
    from mutants import PLAN, mutant
    from pydicom import config
    known, made = bases(tmp_path), []

    @settings(max_examples=24, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(known)), PLAN)
    def make(name, plan): made.append(mutant(known[name], plan))

    config.settings.writing_validation_mode, old = config.IGNORE, config.settings.writing_validation_mode
    try: make()
    finally: config.settings.writing_validation_mode = old
    files = [tmp_path / f'{i}.dcm' for i in range(len(made) + 3)]
    for f, b in zip(files, made): f.write_bytes(b)
    for f in files[len(made):]: write(f, sound(PX, SOPInstanceUID=f'1.2.{len(f.name)}.{f.stem}'))
    report = ingest(pd.DataFrame({'path': [str(f) for f in files], 'sample_id': [f.stem for f in files]}), Prep(size=32, region='full'), tmp_path / 'store', workers=2, timeout=60, progress=False)
    f = report.frame
    assert len(f) == len(files) and f.ok[-3:].all() and not f.reason.isin(['failed', 'timeout', 'worker-died']).any() and (f.ok | (f.reason != '')).all()


# ---------------------------------------------------------------- tables

def exams(tmp_path: Path) -> Path:
    for i, acc in enumerate(('00123', '0000000000000000000000000000000000000042')):
        (tmp_path / 'archive' / acc).mkdir(parents=True)
        write(tmp_path / 'archive' / acc / 'a.dcm', sound(PX + np.uint16(i), AccessionNumber=acc[-16:], PatientID=f'p{i}', SOPInstanceUID=f'1.2.{i + 1}'))
    return tmp_path / 't.csv'


@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'latin-1'])
def test_hostile_accessions(tmp_path, separator, encoding):
    "Long identifiers keep their zeros; those that would leave the root are audit rows."
    csv = exams(tmp_path)
    odd = ['../../x', '/etc', '..', '.', 'a/b', 'a\\b', '=cmd|x', '', '1e5']
    rows = [f'{a}{separator}2' for a in ('00123', '0' * 38 + '42', *odd)]
    csv.write_text('\n'.join([f'AccessionNumber{separator}BI-RADS', *rows]), encoding=encoding)
    data = load_dataset(csv=csv, dicom_root=tmp_path / 'archive', workers=0, key=KEY, progress=False)
    assert sorted(data.manifest.exam_id) == ['0' * 38 + '42', '00123'] and data.reasons['bad_accession'] == 7 and data.reasons['missing_folder'] == 2


@pytest.mark.parametrize('cell', ['../../secret.dcm', '/etc/passwd', '..\\..\\secret.dcm', '//server/share/x.dcm', 'a/../../secret.dcm'])
def test_paths_never_leave_the_root(tmp_path, cell):
    root = tmp_path / 'deep' / 'root'
    root.mkdir(parents=True)
    write(tmp_path / 'secret.dcm', sound(PX))
    write(root / 'a.dcm', sound(PX))
    (root / 't.csv').write_text(f'path,label\na.dcm,x\n{cell},y\n')
    with pytest.raises(DataError) as e: load_dataset('image-csv', csv=root / 't.csv', workers=0, key=KEY, progress=False)
    assert 'row 3, column path' in str(e.value) and e.value.fix


@pytest.mark.parametrize('text,said', [('a,b\n1,2,3\n', 'row 2'), ('a,b,a\n1,2,3\n', "'a'"), ('a,b\n1,2\0\n', 'row 2, column b'), ('a,b\n1,2\n3,"4\n' + '5,6\n' * 30, 'row 3, column b'),
                                       ('', 'no rows'), ('a,b\n', 'no rows'), ('a,b\n1,' + 'x' * 200_000 + '\n', 'line 2')])
def test_broken_tables_say_where(tmp_path, text, said):
    (tmp_path / 't.csv').write_text(text)
    with pytest.raises(DataError) as e: read_table(tmp_path / 't.csv')
    assert said in str(e.value) and 't.csv' in str(e.value)


def test_missing_columns_are_named(tmp_path, mammography):
    (tmp_path / 't.csv').write_text('AccessionNumber,Age\n1,50\n')
    (tmp_path / 'archive').mkdir()
    done = mammography('train-density', '--csv', tmp_path / 't.csv', '--dicom-root', tmp_path / 'archive', '--outdir', tmp_path / 'o', check=False)
    assert done.returncode == 2 and 'Age' in done.stderr and 'BI-RADS' in done.stderr and 'Traceback' not in done.stderr


def test_every_exported_table_goes_through_one_function():
    "Only `table_text` calls `to_csv`, and the one file that grows line by line uses `harmless`."
    found = {str(p.relative_to(ROOT / 'mammo')): len(re.findall(r'\.to_csv\(', p.read_text(encoding='utf-8'))) for p in (ROOT / 'mammo').rglob('*.py')}
    assert {p: n for p, n in found.items() if n} == {'runs.py': 1}
    assert [p.name for p in (ROOT / 'mammo').rglob('*.py') if 'csv.writer' in p.read_text(encoding='utf-8')] == ['cases.py'] and 'harmless(' in (ROOT / 'mammo/cases.py').read_text(encoding='utf-8')


def test_no_cell_is_a_formula():
    cells = ['=cmd|"/C calc"!A0', '@SUM(1)', '+1+cmd|x', '-2+3+cmd|x', '\t=1', '-x', '=HYPERLINK("http://x")']
    for cell in pd.read_csv(pd.io.common.StringIO(table_text(pd.DataFrame({'exam_id': cells, '=head': cells}))), dtype=str).stack(): assert cell.startswith("'")
    assert [harmless(v) for v in ('-0.5', '-0.1 to 0.2', '00123', '+1e-05', -1., None)] == ['-0.5', '-0.1 to 0.2', '00123', '+1e-05', -1., None]


# ---------------------------------------------------------------- pictures

def test_picture_bombs(tmp_path):
    "Announced sizes are refused before a pixel is decoded."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    row = zlib.compress(bytes(50_001) * 20, 9)
    (tmp_path / 'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 50_000, 50_000, 8, 0, 0, 0, 0)) + chunk(b'IDAT', row) + chunk(b'IEND', b''))
    Pillow.new('L', (9000, 9000)).save(tmp_path / 'bomb.tif', compression='tiff_deflate')
    Pillow.new('L', (64, 64), 7).save(tmp_path / 'text.png', pnginfo=_text(2**20 * 80))
    for name in ('bomb.png', 'bomb.tif'):
        for read in (read_header, read_image):
            with pytest.raises(BrokenFile) as e: read(tmp_path / name)
            assert e.value.reason == 'too-large' and (tmp_path / name).stat().st_size < 2**20
    with pytest.raises(DicomError): read_image(tmp_path / 'text.png')


def _text(n: int):
    from PIL.PngImagePlugin import PngInfo
    info = PngInfo()
    info.add_text('comment', 'x' * n, zip=True)
    return info


def test_odd_pictures(tmp_path):
    "CMYK, palettes, 16 bit, wrong extensions, floats; a turned picture is read as it is stored, and the note says so."
    a = np.random.default_rng(0).integers(0, 256, (32, 40)).astype(np.uint8)
    Pillow.fromarray(np.dstack([a, a, a, 255 - a])).convert('RGB').convert('CMYK').save(tmp_path / 'cmyk.jpg', quality=95)
    Pillow.fromarray(np.dstack([a, a // 2, a])).convert('P').save(tmp_path / 'palette.png')
    for name in ('palette.png',):
        with pytest.raises(NotEligible) as e: read_image(tmp_path / name)
        assert e.value.reason == 'colour'
    assert outcome(str(tmp_path / 'cmyk.jpg')) in ('image', 'refused: colour')
    Pillow.fromarray(a.astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    assert np.allclose(read_image(tmp_path / 'deep.png').img, a / 255, atol=1e-6)
    shutil.copy(tmp_path / 'deep.png', tmp_path / 'deep.dcm')
    assert read_image(tmp_path / 'deep.dcm').header.kind == 'png'
    Pillow.fromarray(a.astype(np.float32)).save(tmp_path / 'float.tif')
    with pytest.raises(NotEligible) as e: read_image(tmp_path / 'float.tif')
    assert e.value.reason == 'depth'
    exif = Pillow.Exif()
    exif[274] = 6
    Pillow.fromarray(a).save(tmp_path / 'turned.jpg', exif=exif)
    image = read_image(tmp_path / 'turned.jpg')
    assert image.img.shape == a.shape and any('orientation' in n for n in image.notes)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.tif', 'a.pgm'])
def test_damaged_pictures(tmp_path, name):
    rng = np.random.default_rng(1)
    Pillow.fromarray(rng.integers(0, 256, (40, 50)).astype(np.uint8)).save(tmp_path / name)
    b, seen = (tmp_path / name).read_bytes(), set()
    for _ in range(150):
        x = bytearray(b)
        for _ in range(rng.choice((1, 3, 20))): x[rng.integers(min(len(x), 400 if rng.random() < .6 else len(x)))] = rng.integers(256)
        (tmp_path / name).write_bytes(x[:rng.integers(1, len(x))] if rng.random() < .2 else x)
        seen.add((said := outcome(str(tmp_path / name))).split(':')[0])
        assert said == 'image' or said.startswith('refused'), said
    assert seen == {'image', 'refused'}


# ---------------------------------------------------------------- checkpoints and stores

class Exploit:
    "A pickle that runs a command where it is loaded without care."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f'touch {self.path}',)


def test_a_malicious_pickle_is_refused(tmp_path):
    import torch
    from mammo.models import _read_state
    from mammo.training import load_learner
    trap = tmp_path / 'was_here'
    torch.save({'version': 2, 'model': Exploit(trap)}, tmp_path / 'a.pth')
    (tmp_path / 'b.pth').write_bytes(pickle.dumps(Exploit(trap)))
    for name in ('a.pth', 'b.pth'):
        for load in (load_learner, _read_state):
            with pytest.raises(WeightsError, match='loads safely'): load(tmp_path / name)
    assert not trap.exists()
    torch.load(tmp_path / 'a.pth', weights_only=False)
    assert trap.exists()   # the exploit is a real one


def test_arrays_are_no_pickles(tmp_path):
    np.save(tmp_path / 'x.npy', np.array([Exploit(tmp_path / 'was_here')], object), allow_pickle=True)
    found = [p.name for p in (ROOT / 'mammo').rglob('*.py') if re.search(r'allow_pickle\s*=\s*True|weights_only\s*=\s*False', p.read_text(encoding='utf-8'))]
    assert not found
    with pytest.raises(ValueError): np.load(tmp_path / 'x.npy')


def test_a_flipped_byte_in_the_store_is_found(tmp_path):
    "Every byte of an entry counts: the image is decoded anew and the report says so."
    frame = pd.DataFrame({'path': [str(write(tmp_path / 'x.dcm', sound(PX)))], 'sample_id': ['x'], 'file_hash': [hash_file(tmp_path / 'x.dcm')]})
    prep = Prep(size=32, region='full')
    ingest(frame, prep, tmp_path / 'store', workers=0, progress=False)
    entry, = (tmp_path / 'store').rglob('*.pix')
    whole = entry.read_bytes()
    for at in (0, 9, 30, 64, len(whole) // 2, len(whole) - 1):
        entry.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        report = ingest(frame, prep, tmp_path / 'store', workers=0, progress=False)
        assert report.frame.rebuilt.all() and report.frame.ok.all() and len(entry.read_bytes()) == len(whole)
    assert not ingest(frame, prep, tmp_path / 'store', workers=0, progress=False).frame.rebuilt.any()


def test_export_of_a_run(tmp_path, study, mammography):
    "Safetensors from the command line, equal to the run; a changed checkpoint is neither exported nor asked; a missing library is named."
    pytest.importorskip('safetensors')
    mammography('train-density', '--csv', study / 'classificacao.csv', '--dicom-root', study / 'archive', '--outdir', tmp_path / 'o', '--arch', 'resnet18', '--weights', 'none', '--img-size', '64',
                '--epochs', '1', '--batch-size', '8', '--num-workers', '0', '--device', 'cpu', '--precision', 'fp32', '--cache-dir', tmp_path / 'cache', '--n-boot', '20')
    run = RunDir(tmp_path / 'o/results')
    done = mammography('export', '--run', run.path, '--format', 'safetensors', '--out', tmp_path / 'm.safetensors')
    assert 'at most 0' in done.stdout
    from safetensors import safe_open
    from mammo.training import read_checkpoint
    with safe_open(tmp_path / 'm.safetensors', 'pt') as f: assert all((f.get_tensor(k) == v).all() for k, v in read_checkpoint(run.file('best'))['model'].items()) and json.loads(f.metadata()['task'])['labels']
    assert mammography('export', '--run', run.path, '--format', 'pickle', '--out', tmp_path / 'm', check=False).returncode == 2
    raw = bytearray(run.file('best').read_bytes())
    raw[len(raw) // 2] ^= 1
    run.file('best').write_bytes(raw)
    from mammo.config import ExportConfig
    from mammo.export import export
    with pytest.raises(WeightsError, match='SHA-256 has changed'): export(ExportConfig(run.path, tmp_path / 'n.safetensors'))
    assert not (tmp_path / 'n.safetensors').exists()
