"""Chest and spine: trees written from the publishers' documentation, with the defects that the real ones have.

NIH ChestX-ray14 (Wang 2017, nihcc.app.box.com/v/ChestXray-NIHCC): Data_Entry_2017.csv has the header below with unquoted commas in two names and a trailing comma, which
makes twelve columns of which the last has no name; Data_Entry_2017_v2020.csv has no trailing comma and calls the sex `Patient Sex` in some copies. Ages were `058Y` at first, and some are
above 120 (414 among them). Images lie in images_001/images/ … images_012/images/. A few hundred PNG are RGBA. train_val_list.txt and test_list.txt hold a file name a line.

VinDr-SpineXR 1.0.0 (physionet.org/content/vindr-spinexr; doi 10.13026/q45h-5h59; layout and use of the columns in github.com/vinbigdata-medical/vindr-spinexr, data/README.md and
spine/classification/cls_dataset_dict.py): annotations/train.csv and test.csv with a row a box, train_images/<image_id>.dicom, `No finding` without a box.
"""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation as DX, ExplicitVRLittleEndian, generate_uid

from mammo.breast import Prep
from mammo.core import ConfigError, DataError
from mammo.ingest import open_pixels
from mammo.manifest import patient_unknown, select_readable
from mammo.splits import LeakError, deal, split_proof
from mammo.twins import group_files
from mammo.xray import CHEST, SPINE, chest_dataset, chest_images, nih_chestxray14, spine_dataset, spine_images, vindr_spinexr

HOW = {'key': b'a fixed key for all of the tests', 'workers': 0, 'progress': False}
HEADER = 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n'


def png(path, seed=0, mode='L'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 32), dtype=np.uint8)).convert(mode).save(path)
    return path


def spine_dicom(path, seed, **elements):
    "A de-identified spine radiograph as in VinDr-SpineXR: DX or CR, age and sex kept, the patient taken out."
    path.parent.mkdir(parents=True, exist_ok=True)
    meta, uid = FileMetaDataset(), generate_uid(entropy_srcs=[str(seed)])
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = DX, uid, ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b'\0' * 128)
    base = dict(SOPClassUID=DX, SOPInstanceUID=uid, Modality='DX', PatientID='', PatientAge='058Y', PatientSex='F', BodyPartExamined='LSPINE', ViewPosition='LAT', Laterality='L', Rows=24, Columns=16,
                SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2', BitsAllocated=16, BitsStored=12, HighBit=11, PixelRepresentation=0,
                PixelData=np.random.default_rng(seed).integers(0, 4096, (24, 16), dtype=np.uint16).tobytes())
    for k, v in (base | elements).items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)


NIH_ROWS = ('00000001_000.png,Cardiomegaly,0,1,58,M,PA,2682,2749,0.143,0.143,', '00000001_001.png,Cardiomegaly|Emphysema,1,1,059Y,M,PA,2894,2729,0.143,0.143,',
            '00000002_000.png,No Finding,0,2,414,M,PA,2500,2048,0.171,0.171,', '00000003_000.png,Hernia,0,3,081Y,F,PA,2582,2991,0.143,0.143,',
            '00000003_001.png,Mass|Nodule,1,3,74,F,AP,2582,2991,0.143,0.143,', '00000004_000.png,No Finding|Mass,0,4,006M,F,PA,2582,2991,0.143,0.143,',
            '00000005_000.png,Infiltration,0,5,7,F,AP,2582,2991,0.143,0.143,', '00000006_000.png,Effusion|Atelectasis|Pneumonia|Pneumothorax,0,6,8,F,AP,2582,2991,0.143,0.143,',
            '00000007_000.png,no finding,0,7,40,M,PA,2582,2991,0.143,0.143,', '00000008_000.png,,0,8,40,M,PA,2582,2991,0.143,0.143,')


@pytest.fixture
def nih(tmp_path):
    (tmp_path / 'Data_Entry_2017.csv').write_text(HEADER + '\n'.join(NIH_ROWS) + '\n')
    for i, row in enumerate(NIH_ROWS):
        name = row.split(',')[0]
        if name != '00000007_000.png': png(tmp_path / f'images_{1 + i // 5:03d}/images/{name}', i, 'RGBA' if i == 4 else 'L')
    png(tmp_path / 'images_002/images/00000099_000.png', 99)
    (tmp_path / 'images_002/images/00000005_000.png').write_bytes(b'\x89PNG and then nothing')
    (tmp_path / 'train_val_list.txt').write_text('00000001_000.png\n00000001_001.png\n00000002_000.png\n00000004_000.png\n00000005_000.png\n00000007_000.png\n00000008_000.png')
    (tmp_path / 'test_list.txt').write_text('00000003_000.png\r\n00000003_001.png\r\n00000006_000.png\r\n00012345_000.png\r\n')
    return tmp_path


def test_nih_loads_as_published(nih):
    data = nih_chestxray14(nih / 'Data_Entry_2017.csv', nih, **HOW)
    m = data.manifest.set_index('sample_id')
    assert data.task == CHEST and list(m.index) == ['00000001_000', '00000001_001', '00000002_000', '00000003_000', '00000003_001', '00000006_000']
    assert m.label.tolist() == ['Cardiomegaly', 'Cardiomegaly', 'no finding', 'no finding', 'Mass|Nodule', 'Atelectasis|Effusion|Pneumonia|Pneumothorax']
    assert (m.loc[['00000002_000', '00000003_000'], list(CHEST.labels)] == 0).all(axis=None), 'No Finding, and findings that are none of the eight'
    assert m.role.tolist() == ['', '', '', 'test', 'test', 'test'] and m.patient_key.nunique() == 4 and not patient_unknown(data.manifest).any()
    assert m.age.fillna(-1).tolist() == [58, 59, -1, 81, 74, 8] and m.sex.tolist() == ['M', 'M', 'M', 'F', 'F', 'F'] and set(m['view']) == {'PA', 'AP'}
    assert data.reasons == {'label_conflict': 1, 'unknown_label': 1, 'odd_value': 1, 'list_unknown': 1, 'unlisted_file': 1, 'missing_file': 1, 'unreadable': 1}
    lost = {r['reason']: r['path'] for r in data.audit}
    assert lost['label_conflict'].endswith('00000004_000.png') and lost['missing_file'].endswith('00000007_000.png') and lost['unreadable'].endswith('00000005_000.png')
    with pytest.raises(DataError, match='only 6 of 8 files'): select_readable(data, classes=False)
    assert open_pixels(data.manifest, Prep(size=32, region='full'), 'memory', workers=0, progress=False).report.frame.ok.all()


def test_nih_roles_are_kept_and_patients_disjoint(nih):
    with open(nih / 'Data_Entry_2017.csv', 'a') as f: f.write('00000010_000.png,Cardiomegaly,0,10,44,M,PA,2500,2048,0.168,0.168,\n00000011_000.png,No Finding,0,11,44,M,PA,2500,2048,0.168,0.168,\n')
    with open(nih / 'train_val_list.txt', 'a') as f: f.write('\n00000010_000.png\n00000011_000.png\n')
    for i in (10, 11): png(nih / f'images_001/images/{i:08d}_000.png', i)
    data = nih_chestxray14(nih / 'Data_Entry_2017.csv', nih, **HOW)
    dealt = deal(data.manifest, val=.5, labels=CHEST.labels)
    assert split_proof(dealt)['disjoint'] and set(dealt.sample_id[dealt.role == 'test']) == {'00000003_000', '00000003_001', '00000006_000'}
    assert set(dealt.role[dealt.role != 'test']) == {'train', 'val'}
    with pytest.raises(ConfigError, match='--test-split'): deal(data.manifest, test=.2, labels=CHEST.labels)
    with open(nih / 'test_list.txt', 'a') as f: f.write('00000001_001.png\n')
    with pytest.raises(LeakError, match='1 patients'): nih_chestxray14(nih / 'Data_Entry_2017.csv', nih, **HOW)


def test_films_in_no_list_are_left_out(nih):
    "With the list of training films there and the test list gone, test films are not trained on."
    (nih / 'test_list.txt').unlink()
    data = nih_chestxray14(nih / 'Data_Entry_2017.csv', nih, **HOW)
    listed = {Path(n).stem for n in (nih / 'train_val_list.txt').read_text().split()}
    assert set(data.manifest.sample_id) <= listed and set(data.manifest.role) == {''}
    assert any('neither list' in r['detail'] for r in data.audit)


def test_nih_in_its_other_shapes(nih):
    "v2020 without the trailing comma and with Patient Sex; one images/ folder; no lists."
    flat = nih / 'flat'
    (nih / 'v2020.csv').write_text(HEADER.replace('y],', 'y]').replace('Gender', 'Sex') + '\n'.join(r.rstrip(',') for r in NIH_ROWS[:3]) + '\n')
    for i in range(3): png(flat / 'images' / NIH_ROWS[i].split(',')[0], i)
    data = chest_dataset('', nih / 'v2020.csv', flat, **HOW)
    assert data.name == 'nih' and len(data.manifest) == 3 and set(data.manifest.sex) == {'M'}
    assert (data.manifest.role == 'test').sum() == 0, 'the lists beside the table name none of these as test'
    (nih / 'flat' / 'only.csv').write_text((nih / 'v2020.csv').read_text())
    assert set(chest_dataset('nih', flat / 'only.csv', flat / 'images', **HOW).manifest.role) == {''}
    with pytest.raises(ConfigError, match='Patient ID'): nih_chestxray14(_write(nih / 'x.csv', 'Image Index,Finding Labels\na.png,Mass\n'), flat, **HOW)
    with pytest.raises(ConfigError, match='has no setting labels'): chest_dataset('nih', nih / 'v2020.csv', flat, labels=('a', 'b'))


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


COLUMNS = 'study_id,series_id,image_id,rad_id,lesion_type,xmin,ymin,xmax,ymax\n'


@pytest.fixture
def vindr(tmp_path):
    train = ['s1,r1,a1,rad1,No finding,,,,', 's1,r2,a2,rad1,Osteophytes,1.5,2,8,9', 's1,r2,a2,rad1,Osteophytes,3,3,9,9', 's1,r2,a2,rad1,Disc space narrowing,3,3,9,9',
             's2,r3,b1,rad2,no Finding,,,,', 's3,r4,c1,rad2,Other lesions,4,4,4,4', 's4,r5,d1,rad1,No finding,,,,', 's4,r5,d1,rad1,Vertebral collapse,1,1,5,5', 's5,r6,e1,rad1,No finding,,,,']
    test = ['t1,r9,z1,rad3,Surgical implant,1,1,9,9', 't1,r9,z2,rad3,No finding,,,,']
    _write(tmp_path / 'annotations/train.csv', COLUMNS + '\n'.join(train))
    _write(tmp_path / 'annotations/test.csv', COLUMNS + '\n'.join(test))
    for i, name in enumerate(('a1', 'a2', 'b1', 'c1', 'd1')): spine_dicom(tmp_path / f'train_images/{name}.dicom', i, **({'Modality': 'CR', 'PhotometricInterpretation': 'MONOCHROME1'} if i == 2 else {}))
    for i, name in enumerate(('z1', 'z2')): spine_dicom(tmp_path / f'test_images/{name}.dicom', 10 + i, ViewPosition='AP')
    return tmp_path


@pytest.mark.parametrize('csv', ['annotations/train.csv', 'annotations', '.'])
def test_vindr_loads_as_published(vindr, csv):
    data = spine_dataset('', vindr / csv, vindr, **HOW)
    m = data.manifest.set_index('sample_id')
    assert data.name == 'vindr-spinexr' and data.task == SPINE and list(m.index) == ['a1', 'a2', 'b1', 'c1', 'z1', 'z2']
    assert m.label.tolist() == ['no_finding', 'pathology', 'no_finding', 'pathology', 'pathology', 'no_finding'] and m.target.tolist() == [0, 1, 0, 1, 1, 0]
    assert m.role.tolist() == [''] * 4 + ['test'] * 2 and m.patient_key.nunique() == 4 and m.patient_key['a1'] == m.patient_key['a2']
    assert data.reasons == {'label_conflict': 1, 'missing_file': 1}
    assert set(m.laterality) == {''} and set(m['view']) == {'LAT', 'AP'} and set(m.age) == {58} and set(m.sex) == {'F'}
    dealt = deal(data.manifest, val=.4)
    assert split_proof(dealt)['disjoint'] and set(dealt.sample_id[dealt.role == 'test']) == {'z1', 'z2'} and {'train', 'val'} < set(dealt.role)
    assert open_pixels(data.manifest, Prep(size=32, region='full'), 'memory', workers=0, progress=False).report.frame.ok.all()


def test_vindr_parts_and_leaks(vindr):
    assert set(vindr_spinexr(vindr / 'annotations/test.csv', vindr, **HOW).manifest.role) == {'test'}
    assert spine_dataset('', None, vindr, **HOW).name == 'vindr-spinexr'
    (vindr / 'test_images').rename(vindr / 'later')
    without = vindr_spinexr(vindr / 'annotations', vindr, **HOW)
    assert set(without.manifest.role) == {''} and without.reasons['missing_folder'] == 1 and len(select_readable(without, min_readable=.8).manifest) == 4
    (vindr / 'later').rename(vindr / 'test_images')
    with open(vindr / 'annotations/test.csv', 'a') as f: f.write('\ns1,r9,z3,rad3,No finding,,,,\n')
    with pytest.raises(LeakError, match='1 studies'): vindr_spinexr(vindr / 'annotations', vindr, **HOW)
    with pytest.raises(ConfigError, match='lesion_type'): vindr_spinexr(_write(vindr / 'x.csv', 'image_id,label\na1,1\n'), vindr, **HOW)
    with pytest.raises(ConfigError, match='no annotations'): vindr_spinexr(None, vindr / 'train_images', **HOW)


def test_spine_tables_and_folders(tmp_path):
    for i in range(6): png(tmp_path / f'img/{i}.png', i)
    both = _write(tmp_path / 'both.csv', 'file,label,finding\n' + '\n'.join(f'img/{i}.png,{int(i > 2)},scoliosis' for i in range(6)))
    assert spine_images(both, **HOW).manifest.target.tolist() == [0, 0, 0, 1, 1, 1], 'the column of 0 and 1 wins'
    words = ('No_Finding', 'normal', 'NEGATIVE', 'scoliosis', 'Fracture', '')
    named = spine_dataset('', _write(tmp_path / 'named.csv', 'path,diagnosis,patient\n' + '\n'.join(f'img/{i}.png,{w},{i // 2}' for i, w in enumerate(words))), **HOW)
    assert named.manifest.target.tolist() == [0, 0, 0, 1, 1] and named.reasons == {'unknown_label': 1} and named.manifest.patient_key.nunique() == 3
    for i, folder in enumerate(('normal', 'normal', 'scoliosis', 'fracture/17')): png(tmp_path / f'classes/{folder}/x{i}.png', i)
    folders = spine_dataset('', None, tmp_path / 'classes', **HOW)
    assert folders.manifest.target.tolist() == [0, 0, 1, 1] and patient_unknown(folders.manifest).tolist() == [True] * 3 + [False]
    (tmp_path / 'classes/normal').rename(tmp_path / 'classes/aaa')
    with pytest.raises(ConfigError, match='exactly one folder'): spine_images(None, tmp_path / 'classes', **HOW)
    with pytest.raises(ConfigError, match='needs a column'): spine_images(_write(tmp_path / 'x.csv', 'path,side\nimg/0.png,L\n'), **HOW)


def test_chest_tables(tmp_path):
    for i in range(3): png(tmp_path / f'{i}.png', i)
    rows = ['file,patient,' + ','.join(CHEST.labels), '0.png,1,1,0,0,0,0,0,0,-1', '1.png,1,0,0,0,,0,0,0,0', '2.png,2,0,0,0,0,0,0,1,1.0']
    data = chest_dataset('', _write(tmp_path / 'c.csv', '\n'.join(rows)), tmp_path, **HOW)
    assert data.task == CHEST and data.manifest.Pneumothorax.isna().tolist() == [True, False, False] and data.manifest.Infiltration.isna().tolist() == [False, True, False]
    some = chest_images(_write(tmp_path / 'd.csv', 'file,' + ','.join(l for l in CHEST.labels if l not in ('Nodule', 'Pneumonia')) + '\n0.png,1,0,0,0,1,0\n'), **HOW)
    assert some.task.labels == tuple(l for l in CHEST.labels if l not in ('Nodule', 'Pneumonia')) and 'Nodule, Pneumonia' in some.audit[-1]['detail']
    with pytest.raises(ConfigError, match='no such data set. Known are nih, chest-images'): chest_dataset('mimic')


def test_real_images(shared):
    spine = spine_dataset('', shared / 'data/spine/labels.csv', shared / 'data/spine', **HOW)
    assert (spine.name, len(spine.manifest), spine.manifest.target.value_counts().to_dict()) == ('spine-images', 99, {1: 60, 0: 39}) and patient_unknown(spine.manifest).all()
    chest = chest_dataset('', shared / 'data/nih-64/labels.csv', **HOW)
    assert (chest.name, len(chest.manifest), chest.manifest.patient_key.nunique()) == ('chest-images', 573, 134) and not chest.manifest[list(CHEST.labels)].isna().any(axis=None)
    assert split_proof(deal(chest.manifest, .2, .2, labels=CHEST.labels))['disjoint']


def test_real_dicom_of_other_body_parts_is_let_in(shared, tmp_path):
    "A chest CR in MONOCHROME1 and a DX image: nothing has to be waived."
    names = ('gdcm-CR-MONO1-10-chest.dcm', 'dx_image.dcm')
    rows = ''.join(f'{shared / "data/dicom" / n},{i},0,0,0,0,0,0,1\n' for i, n in enumerate(names))
    data = chest_dataset('', _write(tmp_path / 't.csv', f'path,{",".join(CHEST.labels)}\n{rows}'), shared / 'data/dicom', **HOW)
    assert len(data.manifest) == 2 and set(data.manifest.laterality) == {''} and set(data.reasons) <= {'patient_unknown'}
    assert open_pixels(data.manifest, Prep(size=32, region='full'), 'memory', workers=0, progress=False).report.frame.ok.all()


def test_a_copy_of_a_real_image_follows_its_original(shared, tmp_path):
    "Twelve spine images, three of them saved again as JPEG, smaller or brighter: whatever the seed, a copy has the role of its original."
    names = [f'spine_{i:03d}.png' for i in range(0, 96, 8)]
    for n in names: (tmp_path / n).write_bytes((shared / 'data/spine' / n).read_bytes())
    rows = [(tmp_path / n, int(i >= 6)) for i, n in enumerate(names)]
    for (p, label), change in zip(rows[4:7], (lambda im: im, lambda im: im.resize((200, 400)), lambda im: im.point(lambda v: min(255, int(v * 1.2))))):
        change(Image.open(p).convert('L')).save(tmp_path / f'{p.stem}_again.jpg', quality=60)
        rows.append((tmp_path / f'{p.stem}_again.jpg', label))
    data = spine_images(_write(tmp_path / 't.csv', 'path,label\n' + ''.join(f'{p},{l}\n' for p, l in rows)), **HOW)
    grouped = group_files(data, workers=0, progress=False)
    assert (data.manifest.patient_key.nunique(), grouped.manifest.patient_key.nunique()) == (15, 12) and grouped.audit[-1]['detail'].startswith('3 groups with 6 of 15 images; labels differ in 0')
    for seed in range(20):
        m = deal(grouped.manifest, .3, .3, seed=seed)
        assert (m.groupby(m.sample_id.str.removesuffix('_again')).role.nunique() == 1).all()
    apart = [(m.groupby(m.sample_id.str.removesuffix('_again')).role.nunique() > 1).any() for m in (deal(data.manifest, .3, .3, seed=s) for s in range(20))]
    assert any(apart), 'without groups the copies would not have been torn apart, so that this test proves nothing'


def test_the_real_spine_images_hold_no_copies(shared):
    data = spine_dataset('', shared / 'data/spine/labels.csv', **HOW)
    assert group_files(data, workers=0, progress=False) is data
