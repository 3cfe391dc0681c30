"""Nobody's name leaves the files. Marker values stand in every identifying element of DICOM PS3.15 Annex E, Table E.1-1 (Application Level
Confidentiality Profile Attributes, edition 2026c, https://dicom.nema.org/medical/dicom/current/output/chtml/part15/chapter_E.html), in nested sequences,
private elements, overlays and curves too; then every byte of every artefact is searched for them, unpacked where a format packs.

`identifying_tags.csv` beside this file is the table's list of elements: tag, VR and keyword (from PS3.6; UN where this pydicom does not know the element yet)."""
import base64
import io
import json
import os
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

TAGS = pd.read_csv(Path(__file__).with_name('identifying_tags.csv'), dtype=str, keep_default_na=False)
MARK = 'ZQXKVW'                    # begins every text
PEN = '2.25.7700770077'            # every UID
DAY = '1877'                       # a year that no date of a run has
# Read for a purpose and kept as a number or one letter: age and sex, for subgroups. Text in their place is checked here; the values themselves are no marker.
TEXT = {'AE', 'CS', 'LO', 'LT', 'PN', 'SH', 'ST', 'UC', 'UR', 'UT', 'AS'}


def marker(vr: str, n: int) -> object:
    "A value of this kind that cannot be met by chance."
    if vr == 'PN': return f'{MARK}Silva{n}^{MARK}Ana'
    if vr in TEXT: return f'{MARK}{n}'[:16]
    if vr == 'UI': return f'{PEN}{n:05d}'
    if vr == 'DA': return f'{DAY}{1 + n % 12:02d}{1 + n % 28:02d}'
    if vr == 'DT': return f'{DAY}{1 + n % 12:02d}{1 + n % 28:02d}112233.{770077:06d}'
    if vr == 'TM': return f'1122{n % 60:02d}.770077'
    if vr == 'DS': return f'7700770.{n:03d}'
    if vr == 'IS': return f'77007700{n % 10}'
    return {'US': 7707}.get(vr, f'{MARK}{n}'.encode())


def item(n: int, depth: int = 2) -> Dataset:
    "An item of a sequence, with an item inside it."
    ds = Dataset()
    ds.PatientName, ds.InstitutionName, ds.PatientBirthDate, ds.ReferencedSOPInstanceUID = (marker(v, n) for v in ('PN', 'LO', 'DA', 'UI'))
    ds.CodeMeaning, ds.CodeValue = f'{MARK}code{n}', f'{MARK}{n}'
    if depth: ds.ContentSequence = Sequence([item(n, depth - 1)])
    return ds


def plant(path: Path, who: int) -> None:
    "Markers in every element of the table, in private ones, overlays and curves. What decides about the picture stays; the file's own identity is a marker."
    ds = dcmread(path)
    for n, (tag, vr, _) in enumerate(TAGS.itertuples(index=False)):
        if tag[:4] in ('0000', '0002', '0004') or tag in ('FFFCFFFC', '7FE00010'): continue
        ds.add_new(int(tag, 16), vr, Sequence([item(n)]) if vr == 'SQ' else marker(vr, n))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f'{PEN}99{abs(hash(path.as_posix())) % 10**9}'
    ds.PatientID, ds.StudyInstanceUID, ds.AccessionNumber = f'{MARK}ID{who}', f'{PEN}88{who}', f'{MARK}AN{who}'
    private = ds.private_block(0x0011, f'{MARK} CREATOR', create=True)
    private.add_new(1, 'LO', f'{MARK}private'), private.add_new(2, 'SQ', Sequence([item(7)])), private.add_new(3, 'UN', f'{MARK}raw'.encode())
    ds.add_new(0x50000022, 'LO', f'{MARK}curve'), ds.add_new(0x60004000, 'LT', f'{MARK}overlay'), ds.add_new(0x60003000, 'OW', f'{MARK}overlaydata!'.encode())
    ds.ImageComments, ds.SeriesDescription, ds.DerivationDescription = f'{MARK} free text', f'{MARK}series', f'{MARK}derived'
    ds.preamble = f'{MARK}preamble'.encode().ljust(128, b'\0')
    ds.save_as(path)


FOUND = re.compile('|'.join([MARK, PEN.replace('.', r'\.'), r'(?<![\d.])' + DAY + r'[01]\d[0-3]\d(?!\d)', DAY + '-[01][0-9]-[0-3][0-9]', r'7700770\.\d', r'\.770077']).encode(), re.IGNORECASE)
QUICK = (MARK.lower().encode(), b'770077', DAY.encode())   # one of them stands in every marker


def unpacked(data: bytes, name: str, depth: int = 3):
    "The bytes of a file and of all that is packed inside it: zip (also .pth, .npz), PNG text, data URIs, gzip, wide text."
    yield name, data
    if not depth: return
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            yield f'{name}!names', ' '.join(i.filename + str(i.comment) for i in z.infolist()).encode()
            for i in z.infolist():
                if i.compress_type != zipfile.ZIP_STORED: yield from unpacked(z.read(i), f'{name}!{i.filename}', depth - 1)
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        at = 8
        while at + 12 <= len(data):
            size, kind = int.from_bytes(data[at:at + 4], 'big'), data[at + 4:at + 8]
            for i in range(at + 8, min(at + 120, at + 8 + size)) if kind in (b'zTXt', b'iTXt', b'iCCP') else ():
                try: yield f'{name}!{kind.decode()}', zlib.decompress(data[i:at + 8 + size])
                except zlib.error: pass
            at += 12 + size
    if data[:2] == b'\x1f\x8b': yield from unpacked(zlib.decompress(data, 31), f'{name}!gz', depth - 1)
    if b'base64,' in data:
        for m in re.finditer(rb'base64,([A-Za-z0-9+/=]{16,})', data): yield from unpacked(base64.b64decode(m[1] + b'=' * (-len(m[1]) % 4)), f'{name}!data', depth - 1)
    if len(data) < 10 ** 7 and b'\0' in data: yield f'{name}!wide', data.replace(b'\0', b'')   # UTF-16, UTF-32, NumPy's text


def leaks(*places: Path | str | bytes, also: str = '') -> list[str]:
    "Where a marker, or a match of `also`, stands: in bytes, in what they pack, or in a file's name."
    looked, found = re.compile(also.encode()) if also else None, []
    for place in places:
        if isinstance(place, (str, bytes)): files = [('text', place.encode() if isinstance(place, str) else place)]
        else: files = [(p.relative_to(place).as_posix(), p.read_bytes()) for p in sorted(place.rglob('*')) if p.is_file()]
        for name, data in files:
            for at, part in [(f'name {name}', name.encode()), *unpacked(data, name)]:
                low = part.lower()
                m = any(q in low for q in QUICK) and FOUND.search(part) or looked and looked.search(part)
                if m: found.append(f'{at}: {part[max(0, m.start() - 40):m.end() + 40]!r}')
    return found


def test_the_search_finds_what_is_planted(tmp_path):
    "A search that finds nothing in anything would be worth nothing."
    from matplotlib.figure import Figure
    Figure().savefig(tmp_path / 'a.png', metadata={'Comment': f'{MARK}1'})
    from PIL import Image, PngImagePlugin
    info = PngImagePlugin.PngInfo()
    info.add_text('who', f'{MARK}2' * 20, zip=True)
    Image.new('L', (4, 4)).save(tmp_path / 'b.png', pnginfo=info)
    with zipfile.ZipFile(tmp_path / 'c.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.write(tmp_path / 'b.png', 'inner.png')
    np.save(tmp_path / 'd.npy', np.array([f'{MARK}3']))
    (tmp_path / 'e.html').write_text('<img src="data:image/png;base64,' + base64.b64encode((tmp_path / 'b.png').read_bytes()).decode() + '">')
    (tmp_path / 'f.json').write_text(json.dumps({'born': marker('DA', 3), 'acc': 0.18770101}))
    (tmp_path / f'{MARK}.txt').touch()
    (tmp_path / 'clean.json').write_text('{"acc": 0.18770101, "n": 187701013}')
    assert {l.split(':')[0].split('!')[0].removeprefix('name ') for l in leaks(tmp_path)} == {'a.png', 'b.png', 'c.zip', 'd.npy', 'e.html', 'f.json', f'{MARK}.txt'}


def test_every_element_of_the_table_is_planted(tmp_path):
    from mammo.phantom import write_study
    write_study(tmp_path, n_exams=1, seed=1, rows=96, columns=80, workers=0, progress=False)
    path = next(tmp_path.rglob('*.dcm'))
    plant(path, 1)
    ds = dcmread(path)
    there = {f'{e.tag:08X}' for e in ds}
    assert len(TAGS) == 651 and {t for t in TAGS.tag if t[:4] not in ('0000', '0002', '0004') and t not in ('FFFCFFFC', '7FE00010')} <= there
    assert len(list(ds.iterall())) > 1500 and len(leaks(tmp_path)) and ds.ContentSequence[0].ContentSequence[0].PatientName == ds.ContentSequence[0].PatientName


@pytest.fixture(scope='module')
def planted(tmp_path_factory):
    "Eight exams, every file full of markers; two files that cannot be decoded, one that is none."
    from mammo.phantom import write_study
    folder = tmp_path_factory.mktemp('planted')
    write_study(folder, n_exams=12, seed=5, rows=96, columns=80, workers=0, progress=False)
    files = sorted((folder / 'archive').rglob('*.dcm'))
    for who, f in enumerate(files): plant(f, who=int(f.parent.name.removeprefix('ACC')))
    return folder


def spoil(folder: Path) -> list[str]:
    "Files that fail in different places; their text holds markers too."
    files = sorted((folder / 'archive').rglob('*.dcm'))
    ds = dcmread(files[0]); ds.PixelData = ds.PixelData[:100]; ds.save_as(files[0].with_name('short.dcm'))
    ds = dcmread(files[0]); ds.add_new(0x00281050, 'LO', f'{MARK}center'); ds.add_new(0x00280100, 'LO', f'{MARK}bits'); ds.save_as(files[0].with_name('bits.dcm'))
    ds = dcmread(files[0]); ds.file_meta.TransferSyntaxUID = f'{PEN}66'; files[0].with_name('syntax.dcm').write_bytes(b'')
    files[0].with_name('text.dcm').write_bytes(b'\0' * 128 + b'DICM' + f'{MARK} no data set at all'.encode() * 20)
    files[0].with_name('half.dcm').write_bytes(files[0].read_bytes()[:9000])
    ds = dcmread(files[0]); ds.add_new(0x00280004, 'CS', f'{MARK}COLOUR'); ds.save_as(files[0].with_name('photometric.dcm'))
    ds = dcmread(files[0]); ds.add_new(0x00080068, 'CS', f'{MARK}I'); ds.add_new(0x00280002, 'US', 3); ds.save_as(files[0].with_name('view.dcm'))
    return ['short.dcm', 'bits.dcm', 'syntax.dcm', 'text.dcm', 'half.dcm', 'photometric.dcm', 'view.dcm']


SMALL = ('--img-size', '64', '--arch', 'resnet18', '--weights', 'none', '--batch-size', '8', '--num-workers', '0')


FIT = ('--epochs', '1', '--warmup-epochs', '0', '--n-boot', '20', '--val-split', '0.4')
DATA = ('--csv', 'classificacao.csv', '--dicom-root', 'archive')


def told(folder: Path, *lines: tuple, code: int = 0) -> str:
    "What commands write to the terminal; in this process, so that they start at once."
    import contextlib, io as texts
    from mammo.cli import main
    out, here = texts.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            for line in lines: assert main(list(map(str, line))) == code, out.getvalue()[-2000:]
    finally: os.chdir(here)
    return out.getvalue()


def lines(out: Path, *more: str) -> dict[str, tuple]:
    "The commands of a full run."
    result = out / 'run' / 'results'
    return {'embed': ('embed', *DATA, '--outdir', out / 'emb', *SMALL, '--pca', *more), 'train': ('train-density', *DATA, '--outdir', out / 'run', *SMALL, *FIT, *more),
            'predict': ('predict', '--run', result, '--input', 'archive', '--out', out / 'new' / 'predictions.csv', '--num-workers', '0'),
            'evidence': ('evidence', '--run', result, '--n-boot', '20', '--num-workers', '0'),
            'gradcam': ('gradcam', '--run', result, '--images', '4', '--audit-images', '2', '--per', '1', '--n-boot', '20', '--num-workers', '0'),
            'report': ('report-pack', '--run', result, '--assets-dir', out / 'Article' / 'assets', '--per', '1', '--n-boot', '20', '--num-workers', '0'),
            'export': ('eval-export', '--run', result, '--out', out / 'export'), 'gallery': ('gallery', '--run', result, '--out', out / 'gallery', '--images', '4', '--num-workers', '0', '--show-names'),
            'card': ('card', '--run', result, '--out', out / 'card'),
            'baselines': ('embeddings-baselines', '--embeddings-dir', out / 'emb', '--outdir', out / 'base', '--folds', '2', '--repeats', '1', '--n-boot', '20', '--num-workers', '0'),
            'validate': ('validate', '--run', result, *DATA, '--out', out / 'other', '--allow-overlap', '--n-boot', '20', '--num-workers', '0', '--min-readable', '0.5'),
            'cv': ('train-density', *DATA, '--outdir', out / 'cv', *SMALL, *FIT[:-2], '--cv-folds', '2', *more)}


QUICKLY = ('embed', 'train', 'predict', 'gradcam', 'export', 'gallery')


@pytest.fixture(scope='module')
def said(planted):
    "A run over the planted files, as it is by default."
    spoil(planted)
    return told(planted, *(lines(planted / 'out', '--min-readable', '0.5')[n] for n in QUICKLY))


def test_no_artefact_log_or_figure_names_anybody(said, planted):
    refused = json.loads((planted / 'out/run/results/data_manifest.json').read_text())
    assert sum(refused['audit']['counts'].get(r, 0) for r in ('unreadable', 'not_eligible')) >= 5, 'files had to fail on the way'
    assert 'ACC' in (planted / 'out/run/results/val_predictions.csv').read_text()
    assert len([p for p in (planted / 'out').rglob('*') if p.is_file()]) > 60
    assert leaks(planted / 'out', said) == []


@pytest.mark.slow
def test_no_other_command_names_anybody_either(said, planted):
    "What the quick test leaves out, cross-validation too."
    more = told(planted, *(l for n, l in lines(planted / 'out', '--min-readable', '0.5').items() if n not in QUICKLY and n != 'validate'))
    assert leaks(planted / 'out', more) == []


NAMES = r'ACC\d\d\d|\d_[LR]_(CC|MLO)\.dcm|short\.dcm|bits\.dcm'


def test_pseudonyms_stand_everywhere_and_lead_back(planted, said, tmp_path):
    "With --pseudonymise no accession number and no name of a file is written, the same names come out of every command, and the key brings them back."
    spoken = told(planted, *(lines(tmp_path, '--min-readable', '0.5', '--pseudonymise')[n] for n in QUICKLY))
    assert leaks(tmp_path, spoken, also=NAMES) == []
    read = lambda p: pd.read_csv(p, dtype=str, keep_default_na=False)
    val, new, emb = (read(tmp_path / p) for p in ('run/results/val_predictions.csv', 'new/predictions.csv', 'emb/joined.csv'))
    assert set(val.sample_id) <= set(new.sample_id) == set(emb.sample_id) | set(new.sample_id[new.status == 'refused'])
    assert set(val.exam_id) <= set(emb.AccessionNumber)
    told(planted, ('reidentify', '--csv', tmp_path / 'run/results/val_predictions.csv', '--known', 'classificacao.csv', 'archive', '--out', tmp_path / 'named.csv'))
    named, plain = read(tmp_path / 'named.csv'), read(planted / 'out/emb/joined.csv')
    assert set(named.sample_id) <= set(plain.sample_id) and set(named.exam_id) <= set(plain.AccessionNumber) and (named.prob_1 == val.prob_1).all()
    os.environ['MAMMO_KEY_FILE'], own = str(tmp_path / 'another.key'), os.environ['MAMMO_KEY_FILE']
    try: told(planted, ('reidentify', '--csv', tmp_path / 'run/results/val_predictions.csv', '--known', 'classificacao.csv', 'archive', '--out', tmp_path / 'not.csv'))
    finally: os.environ['MAMMO_KEY_FILE'] = own
    assert set(read(tmp_path / 'not.csv').exam_id) == set(val.exam_id), 'another key reveals nothing'


@pytest.mark.slow
def test_pseudonyms_in_all_other_commands(planted, said, tmp_path):
    "The rest of the commands after a pseudonymised run."
    todo = lines(tmp_path, '--min-readable', '0.5', '--pseudonymise')
    refused = todo.pop('validate')   # the same patients once more: nobody is left, which is an error
    spoken = told(planted, *todo.values()) + told(planted, refused, code=2)
    assert leaks(tmp_path, spoken, also=NAMES) == []


def test_errors_and_their_tracebacks_name_nobody(said, planted, mammography):
    "Runs that end badly, told by the command line and as Python tells it."
    runs = [mammography('train-density', '--csv', 'classificacao.csv', '--dicom-root', 'archive', '--outdir', planted / 'bad', *SMALL, '--epochs', '1', '--warmup-epochs', '0', '--min-readable', '1', cwd=planted, check=False),
            mammography('predict', '--run', planted / 'out/run/results', '--input', *sorted(planted.rglob('text.dcm')), *sorted(planted.rglob('short.dcm')), '--out', planted / 'bad/p.csv', cwd=planted, check=False)]
    assert [r.returncode != 0 for r in runs] == [True, True]
    assert leaks(planted / 'bad', *(r.stdout + r.stderr for r in runs)) == []


def test_a_reader_that_fails_says_nothing_of_the_patient(said, planted, recwarn):
    "Whatever the reader raises, its text, its context and the warnings of the libraries hold no marker."
    import traceback
    from mammo.dicom import DicomError, read_image
    told = []
    for name in ('short.dcm', 'bits.dcm', 'syntax.dcm', 'text.dcm', 'half.dcm', 'photometric.dcm', 'view.dcm'):
        try: told.append(repr(read_image(next(planted.rglob(name))).header))
        except DicomError as e: told.append(''.join(traceback.format_exception(e)))
    assert leaks(*told, *(str(w.message) for w in recwarn.list)) == []


def test_text_in_the_border_is_masked_for_the_model_and_in_figures(tmp_path):
    "With --mask-text the ink is gone from the stored pixels and from the pictures of figures, and the store knows another recipe."
    from PIL import Image, ImageDraw, ImageFont
    from mammo.breast import Prep
    from mammo.evidence import Pictures
    from mammo.ingest import open_pixels
    y, x = np.mgrid[:512, :400]
    film = Image.fromarray((110 * np.exp(-((y - 260) ** 2 + (x - 200) ** 2) / 2 / 110 ** 2)).astype(np.uint8))
    ImageDraw.Draw(film).text((12, 12), 'SILVA ANA', 255, font=ImageFont.load_default(22))
    film.save(tmp_path / 'film.png')
    manifest = pd.DataFrame({'path': [str(tmp_path / 'film.png')], 'sample_id': ['film']})
    plain, masked = (Prep(size=256, region='full', mask_text=m) for m in (False, True))
    brightest = lambda prep: open_pixels(manifest, prep, 'memory', workers=0, progress=False)[0][:32].max()
    assert brightest(plain) > 180 > 120 > brightest(masked) and plain.hash != masked.hash
    assert Pictures([tmp_path / 'film.png'])[0][:48].max() == 1 and Pictures([tmp_path / 'film.png'], mask_text=True)[0][:48].max() < .5


def test_every_promise_names_a_test_that_exists():
    "The page of promises and SECURITY.md point at tests and files that are there."
    root = Path(__file__).parents[1]
    page = json.loads((root / 'nbs/guides/promises.ipynb').read_text(encoding='utf-8'))
    named = sorted(set(re.findall(r'tests/(\w+\.py)::(\w+)', '\n'.join(''.join(c['source']) for c in page['cells']))) - {('test_private.py', 'test_that_nobody_wrote')})
    assert len(named) > 20
    assert [n for n in named if not re.search(rf'^def {n[1]}\(', (root / 'tests' / n[0]).read_text(encoding='utf-8'), re.M)] == []
    assert [p for p in re.findall(r'nbs/[\w/]+\.ipynb', (root / 'SECURITY.md').read_text(encoding='utf-8')) if not (root / p).is_file()] == []
