"Manifests: real data, several processes, hostile and odd sources."
import hashlib
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as MG, ExplicitVRLittleEndian, generate_uid

from mammo import manifest as mf
from mammo import scan as sc
from mammo.core import ConfigError, DataError, pseudonym
from mammo.datasets import load_dataset
from mammo.manifest import density_classificacao, image_csv, manifest_record, scan, select_readable, unlabelled

KEY = b'a fixed key for all of the tests'
DATA = Path(__file__).parents[1].parent / 'shared' / 'data'
needs_mias = pytest.mark.skipif(not (DATA / 'mini-mias').is_dir(), reason='needs ../shared/data/mini-mias')
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason='needs ../shared/data')


def dicom(path, patient='', side='L', view='CC', seed=0, **elements):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    uid = generate_uid(entropy_srcs=[str((patient, side, view, seed))])
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = MG, uid, ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b'\0' * 128)
    base = dict(SOPClassUID=MG, SOPInstanceUID=uid, Modality='MG', PatientID=patient, ImageLaterality=side, ViewPosition=view, Rows=16, Columns=12, SamplesPerPixel=1,
                PhotometricInterpretation='MONOCHROME2', BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0,
                PixelData=np.random.default_rng(seed).integers(0, 4096, (16, 12), dtype=np.uint16).tobytes())
    for k, v in (base | elements).items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)
    return path


def grey(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    return path


def table(path, text, encoding='utf-8'):
    path.write_text(text, encoding=encoding)
    return path


@pytest.fixture
def archive(tmp_path):
    for i, acc in enumerate(('0001', '0002', '0003', '0004')):
        for side in 'LR': dicom(tmp_path / 'archive' / acc / f'{side}.dcm', f'SECRET-{i // 2}', side, seed=i)
    table(tmp_path / 'classificacao.csv', 'AccessionNumber,Classification\n0001,A\n0002,2\n0003,3.0\n0004,4\n', 'utf-8-sig')
    return tmp_path


@needs_mias
def test_mini_mias():
    data = load_dataset(csv=DATA / 'mini-mias/density.csv', key=KEY, workers=0)
    m = data.manifest
    assert data.name == 'mini-mias' and data.task.labels == ('F', 'G', 'D') and data.audit == []
    assert (len(m), m.patient_key.nunique(), m.exam_id.nunique()) == (162, 81, 81)
    assert m.label.value_counts().to_dict() == {'F': 46, 'G': 54, 'D': 62}
    assert m.target.tolist() == [('F', 'G', 'D').index(l) for l in m.label]
    assert set(m['view']) == {'MLO'} and m.laterality.value_counts().to_dict() == {'L': 81, 'R': 81}
    assert (m.groupby('patient_key').target.nunique() == 1).all()
    assert list(m.sample_id[:2]) == ['mdb001', 'mdb002'] and (m['rows'] == 1024).all()
    assert len(select_readable(data).manifest) == 162


@needs_data
def test_real_files_of_every_kind():
    data = unlabelled([DATA / 'dicom', DATA / 'density-jpg'], key=KEY)
    assert len(data.manifest) + len(data.audit) == 21
    assert {r['reason'] for r in data.audit} <= {'not_eligible', 'unreadable'}
    assert data.manifest.sample_id.is_unique and (data.manifest.target == -1).all()
    chest = image_csv(DATA / 'nih-64/labels.csv', findings=['Mass', 'Nodule'], key=KEY, workers=0)
    assert (len(chest.manifest), chest.manifest.patient_key.nunique(), chest.task.kind) == (573, 134, 'multilabel')
    assert set(chest.manifest['view']) <= {'PA', 'AP', ''}


def test_usual_places_and_leading_zeros(archive, monkeypatch):
    monkeypatch.chdir(archive)
    data = load_dataset(key=KEY)
    assert data.name == 'classificacao' and list(data.manifest.exam_id.unique()) == ['0001', '0002', '0003', '0004']
    assert data.manifest.target.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data.manifest.sample_id[0] == '0001_L_CC' and data.manifest.patient_key[0] == pseudonym('SECRET-0', KEY)
    assert data.manifest.patient_key.nunique() == 2
    (archive / 'archive').rename(archive / 'elsewhere')
    with pytest.raises(ConfigError, match='--dicom-root'): load_dataset(key=KEY)
    assert len(load_dataset(key=KEY, dicom_root='elsewhere').manifest) == 8


def test_nothing_is_lost_without_a_reason(archive):
    root = archive / 'archive'
    (root / '0005').mkdir()
    (root / 'spare').mkdir()
    dicom(root / '0001/other.dcm', 'SECRET-9', 'R', 'MLO', seed=77)
    table(archive / 'classificacao.csv', 'AccessionNumber;BI-RADS\n0001;1\n0002;2\n0002;3\n0003;3\n0003;C\n0004;9\n0005;1\n0006;1\n../0001;2\n0004;5\n')
    data = density_classificacao(archive / 'classificacao.csv', root, key=KEY)
    assert data.reasons == {'bad_accession': 1, 'unknown_label': 1, 'label_conflict': 1, 'repeated_row': 1, 'empty_folder': 1, 'missing_folder': 1,
                            'unlisted_folder': 1, 'class_5': 1, 'patient_conflict': 3}
    assert list(data.manifest.sample_id) == ['0003_L_CC', '0003_R_CC']
    with pytest.raises(DataError, match='class 1 and 2 and 4 has no image'): select_readable(data)
    text = json.dumps(manifest_record(data), allow_nan=False)
    assert 'SECRET' not in text and str(archive) not in text


def test_patient_of_the_table_comes_first(archive):
    table(archive / 'classificacao.csv', 'AccessionNumber,BI-RADS,PatientID\n0001,1,X\n0002,2,X\n0003,3,Y\n0004,4,\n')
    m = density_classificacao(archive / 'classificacao.csv', archive / 'archive', key=KEY).manifest
    assert m.groupby('exam_id').patient_key.first().tolist() == [pseudonym(p, KEY) for p in ('X', 'X', 'Y', 'Y')]  # 0004 has the DICOM patient of 0003, whom the table calls Y


def test_one_known_patient_speaks_for_the_exam(archive):
    dicom(archive / 'archive/0004/anonymous.dcm', '', 'L', 'MLO', seed=9)
    m = density_classificacao(archive / 'classificacao.csv', archive / 'archive', key=KEY).manifest
    assert m[m.exam_id == '0004'].patient_key.nunique() == 1


def test_no_image_left(tmp_path):
    (tmp_path / 'archive').mkdir()
    csv = table(tmp_path / 'c.csv', 'AccessionNumber,BI-RADS\n1,1\n2,2\n')
    with pytest.raises(DataError, match='2 missing_folder'): density_classificacao(csv, tmp_path / 'archive', key=KEY)
    data = image_csv(table(tmp_path / 'i.csv', 'file,density\nx.png,A\ny.png,B\n'), key=KEY) if grey(tmp_path / 'x.png') else None
    with pytest.raises(DataError, match='only 1 of 2 files'): select_readable(data)


def test_class_5(archive):
    table(archive / 'classificacao.csv', 'AccessionNumber,BI-RADS\n0001,1\n0002,2\n0003,3\n0004,5\n')
    dropped = load_dataset('', archive / 'classificacao.csv', archive / 'archive', key=KEY, include_class_5=False)
    kept = load_dataset('', archive / 'classificacao.csv', archive / 'archive', key=KEY, include_class_5=True)
    assert dropped.audit == [mf.audit_row('class_5', detail='images: 2, exams: 1')] and len(dropped.manifest) == 6
    assert kept.task.labels == ('1', '2', '3', '4', '5') and len(kept.manifest) == 8 and kept.audit == []


def test_the_order_of_the_table_does_not_matter(archive):
    lines = ['0001,1', '0002,2', '0003,3', '0004,4']
    frames = []
    for seed in range(3):
        random.Random(seed).shuffle(lines)
        csv = table(archive / 'c.csv', 'AccessionNumber,BI-RADS\n' + '\n'.join(lines) + '\n')
        frames.append(density_classificacao(csv, archive / 'archive', key=KEY).manifest)
    pd.testing.assert_frame_equal(frames[0], frames[1])
    pd.testing.assert_frame_equal(frames[0], frames[2])


def test_image_tables_are_recognised(archive):
    csv = table(archive / 'images.csv', 'AccessionNumber,BI-RADS,File,Laterality\n0001,B,archive/0001/L.dcm,Left\n0002,D,archive\\0002\\R.dcm,R\n')
    data = load_dataset(csv=csv, key=KEY)
    assert (data.name, data.manifest.label.tolist(), data.manifest.sample_id.tolist()) == ('image-csv', ['2', '4'], ['0001_L_CC', '0002_R_CC'])
    csv = table(archive / 'notes.csv', 'AccessionNumber,BI-RADS,File\n0001,B,scan 17\n0002,D,scan 18\n')
    assert load_dataset(csv=csv, dicom_root=archive / 'archive', key=KEY).name == 'classificacao'
    with pytest.raises(ConfigError, match='columns are a, b'): load_dataset(csv=table(archive / 'x.csv', 'a,b\n1,2\n'))


def test_same_path_twice(tmp_path):
    for i in range(3): grey(tmp_path / f'{i}.png', i)
    csv = table(tmp_path / 'i.csv', 'file,label\n0.png,a\n0.png,a\n1.png,a\n1.png,b\n2.png,b\n')
    data = image_csv(csv, key=KEY)
    assert data.manifest.rel_path.tolist() == ['0.png', '2.png']
    assert data.reasons == {'duplicate': 1, 'duplicate_conflict': 2, 'patient_unknown': 1}


def test_cache_answers_only_for_the_same_file_key_and_options(archive, monkeypatch):
    paths, calls = sorted((archive / 'archive').rglob('*.dcm')), []
    real = sc._scan_one
    monkeypatch.setattr(sc, '_scan_one', lambda path, key, options: calls.append(path) or real(path, key, options))
    monkeypatch.setattr(sc, 'partial', lambda f, **kw: lambda path: sc._scan_one(path, **kw))
    def times(key=KEY, **kw):
        calls.clear()
        frame = scan(paths, archive, key=key, cache=archive / 'cache', **kw)
        return len(calls), frame
    n, first = times()
    again, second = times()
    assert (n, again) == (8, 0)
    pd.testing.assert_frame_equal(first, second)
    old = paths[0].stat()
    dicom(paths[0], 'SECRET-0', 'L', seed=99)
    os.utime(paths[0], ns=(old.st_atime_ns, old.st_mtime_ns))
    n, changed = times()
    assert n == 1 and changed.file_hash[0] != first.file_hash[0] and changed.file_hash[0] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert times(key=b'another key of thirty-two letters')[0] == 8
    assert times()[0] == 8, 'another key empties the cache'
    assert times(options=sc.ReadOptions(keep=('implant',)))[0] == 8
    stored = (archive / 'cache/scan.sqlite').read_bytes()
    assert b'SECRET' not in stored and str(archive).encode() not in stored
    (archive / 'cache/scan.sqlite').write_bytes(b'not a database at all' * 100)
    assert times()[0] == 8 and times()[0] == 0
    damaged = bytearray((archive / 'cache/scan.sqlite').read_bytes())
    damaged[4096:4200] = b'\xff' * 104
    (archive / 'cache/scan.sqlite').write_bytes(damaged)
    pd.testing.assert_frame_equal(times()[1], times()[1])


def test_failures_are_not_cached(tmp_path):
    bad = tmp_path / 'a/b.dcm'
    bad.parent.mkdir()
    bad.write_bytes(b'x')
    assert scan([bad], key=KEY, cache=tmp_path / 'c').reason[0] == 'unreadable'
    dicom(bad, 'P')
    assert scan([bad], key=KEY, cache=tmp_path / 'c').reason[0] == ''


def test_worker_processes_give_the_same(archive):
    (archive / 'archive/0001/bad.dcm').write_bytes(b'x')
    paths = sorted((archive / 'archive').rglob('*.dcm')) + [archive / 'gone.dcm']
    inline, processes = (scan(paths, archive, workers=n, key=KEY, progress=False) for n in (0, 2))
    pd.testing.assert_frame_equal(inline.drop(columns='stamp'), processes.drop(columns='stamp'))
    assert list(inline.reason[inline.reason != '']) == ['unreadable', 'missing_file']


def test_predict_never_stops_for_a_bad_file(archive, tmp_path):
    root = archive / 'archive'
    (root / 'zero.dcm').write_bytes(b'')
    (root / 'cut.dcm').write_bytes((root / '0001/L.dcm').read_bytes()[:200])
    (root / 'noise').write_bytes(b'\x08\0' + bytes(range(256)))
    (root / 'gone.png').symlink_to(archive / 'nowhere.png')
    data = unlabelled(root, key=KEY)
    assert len(data.manifest) == 8 and set(data.reasons) == {'unreadable', 'missing_file', 'behind_link'}
    copies = unlabelled([root / '0001/L.dcm', grey(tmp_path / 'q/L.png'), grey(tmp_path / 'r/L.png')], key=KEY).manifest
    assert len(copies) == 3 and copies.sample_id.is_unique


def test_relative_paths_hold_no_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grey(tmp_path / 'x.png')
    assert scan(['x.png', tmp_path / 'x.png'], tmp_path, key=KEY).rel_path.tolist() == ['x.png', 'x.png']
    assert scan(['x.png'], key=KEY).rel_path[0] == f'{tmp_path.name}/x.png'
    assert unlabelled('x.png', key=KEY).manifest.rel_path[0] == 'x.png'


def test_names_are_unique_and_safe():
    rng = random.Random(0)
    for _ in range(50):
        rows = [dict(sample=rng.choice(['', '', 'a,b', 'A/b']), exam=rng.choice(['', '1', '1_L', 'é']), laterality=rng.choice(['', 'L']), view=rng.choice(['', 'CC', 'CC_2']),
                     rel_path=f'{rng.choice("ab")}/{rng.choice(["x", "X", "L_CC", "..", "x_2"])}.png') for _ in range(30)]
        names = mf._sample_ids(pd.DataFrame(rows))
        assert len({n.casefold() for n in names}) == 30
        assert not any(set(n) & set('/\\,;"\'\n=') or n.startswith('.') for n in names)


def test_select_readable_counts_refusals_apart(archive):
    data = density_classificacao(archive / 'classificacao.csv', archive / 'archive', key=KEY)
    report = pd.DataFrame({'ok': [True] * 8, 'reason': '', 'detail': ''})
    report.loc[0, ['ok', 'reason']] = [False, 'implant']
    kept = select_readable(data, report)
    assert len(kept.manifest) == 7 and kept.reasons == {'not_eligible': 1} and data.audit == []
    report.loc[2, ['ok', 'reason']] = [False, 'undecodable']
    with pytest.raises(DataError, match=r'only 6 of 7 files.*--min-readable \(0.95\)'): select_readable(data, report)
    assert len(select_readable(data, report, .8).manifest) == 6
    report.loc[1, ['ok', 'reason']] = [False, 'implant']
    with pytest.raises(DataError, match='class 1 has no image'): select_readable(data, report, .8)


@pytest.mark.slow
def test_large_tables_take_seconds(tmp_path):
    for i in range(2000): (tmp_path / f'{i}.pgm').write_bytes(b'P5 8 8 255\n' + i.to_bytes(4, 'little') * 16)
    csv = table(tmp_path / 'i.csv', 'file,label\n' + ''.join(f'{i}.pgm,{"ab"[i % 2]}\n' for i in range(2000)))
    start = time.perf_counter()
    assert len(image_csv(csv, key=KEY, cache=tmp_path / 'cache').manifest) == 2000
    first, start = time.perf_counter() - start, time.perf_counter()
    image_csv(csv, key=KEY, cache=tmp_path / 'cache')
    assert time.perf_counter() - start < first  # headers are not read again


@pytest.mark.parametrize('seed', range(12))
def test_a_partly_filled_patient_column_splits_nobody(archive, seed):
    "The table names a patient for some exams only; DICOM knows who the others are. No person may stand in two roles."
    from mammo.splits import assign_roles
    root, rng = archive / 'partly', np.random.default_rng(seed)
    rows = ['AccessionNumber,BI-RADS,PatientID']
    for person in range(10):
        for visit in range(2):
            acc = f'{person:02d}{visit}'
            (root / acc).mkdir(parents=True)
            dicom(root / acc / 'a.dcm', f'SECRET-{person}', 'L', 'CC', seed=100 + 2 * person + visit)
            rows.append(f'{acc},{person % 4 + 1},{f"S{person}" if rng.random() < .4 else ""}')
    table(archive / 'partly.csv', '\n'.join(rows) + '\n')
    m = assign_roles(density_classificacao(archive / 'partly.csv', root, key=KEY).manifest, val=.3, seed=seed)
    assert len(m) == 20 and m.patient_key.nunique() == 10
    assert (m.groupby(m.exam_id.str[:2]).role.nunique() == 1).all()
