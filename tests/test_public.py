"""Public mammograms: trees written from the publishers' documentation, with the defects that the real ones have.

RSNA Screening Mammography Breast Cancer Detection (kaggle.com/competitions/rsna-breast-cancer-detection/data; github.com/RSNA/AI-Challenge-Data/wiki): train.csv with the header below,
train_images/<patient_id>/<image_id>.dcm, density A to D "only provided for train"; in the published table 25,236 rows have none (all of site 2), 37 no age, and site 1 knows implants by patient only.

VinDr-Mammo 1.0.0 (physionet.org/content/vindr-mammo, doi 10.13026/br2v-7517; Nguyen 2023, doi 10.1038/s41597-023-02100-7): breast-level_annotations.csv with a row an image, densities written
`DENSITY A`, split `training` or `test`, images/<study_id>/<image_id>.dicom; some images are MONOCHROME1, patients are taken out.

CBIS-DDSM (cancerimagingarchive.net/collection/cbis-ddsm, doi 10.7937/K9/TCIA.2016.7O02S9CY; Lee 2017, doi 10.1038/sdata.2017.177): mass_ and calc_case_description_train_set.csv and _test_set.csv, a
row an abnormality; the density column is `breast_density` in one pair and `breast density` in the other; paths Case/Study/Series/000000.dcm, of which today's downloads keep the case folder only
(…-DDSM-NA-…/1.000000-full mammogram images-…/1-1.dcm); PatientID in the headers is the case, not the patient; some densities are 0; masses and calcifications were split apart from each other,
so that patients stand in training and test. The JPEG edition (kaggle.com/datasets/awsaf49/cbis-ddsm-breast-cancer-image-dataset) has csv/, csv/dicom_info.csv and jpeg/<SeriesInstanceUID>/<name>.jpg.

INbreast 1.0 (Moreira 2012, doi 10.1016/j.acra.2011.09.014): INbreast.csv with semicolons, `removed` for patient and age, one ACR cell of blanks; AllDICOMs/<File Name>_<patient>_MG_<side>_<view>_ANON.dcm.
INbreast.xls has two lines of remarks below its 410 rows.

EMBED Open Data (github.com/Emory-HITI/EMBED_Open_Data, README.md sections IV to VIII; registry.opendata.aws/emory-breast-imaging-dataset-embed; Jeong 2023, doi 10.1148/ryai.220047): tables/
EMBED_OpenData_clinical.csv with a row a finding, EMBED_OpenData_metadata.csv with a row a file, images/cohort_1/<patient>/<exam>/…; anon_dicom_path begins with a place of the publisher's own machine;
tissueden 1 to 4, 5 for a normal male breast; FinalImageType 2D or cview; spot_mag 1 for special views.

mamografias and patches_completo (github.com/ThalesMMS/mammography-pipelines-py, src/mammography/data/csv_loader.py describes the format): featureS.txt with a file name and a class 0 to 3 on lines of their
own, in each folder or at the root; `#` begins a remark, names may lack .png, and a blank before a bracket that the file has.
"""
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as MG, ExplicitVRLittleEndian, generate_uid

from mammo.cli import main
from mammo.core import ConfigError, DataError
from mammo.datasets import DATASETS, load_dataset
from mammo.grey import ReadOptions
from mammo.manifest import DENSITY, patient_unknown
from mammo.public import cbis_ddsm, embed_open_data, feature_lists, inbreast, rsna_screening, vindr_mammo
from mammo.splits import deal, split_proof

HOW = {'key': b'a fixed key for all of the tests', 'workers': 0, 'progress': False}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 32), dtype=np.uint8)).save(path)
    return path


def mammogram(path, seed, **elements):
    "A small mammogram without a name."
    path.parent.mkdir(parents=True, exist_ok=True)
    meta, uid = FileMetaDataset(), generate_uid(entropy_srcs=[str(seed)])
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = MG, uid, ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b'\0' * 128)
    base = dict(SOPClassUID=MG, SOPInstanceUID=uid, Modality='MG', PatientID='', Rows=24, Columns=16, SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2', BitsAllocated=16, BitsStored=12, HighBit=11,
                PixelRepresentation=0, PixelData=np.random.default_rng(seed).integers(0, 4096, (24, 16), dtype=np.uint16).tobytes())
    for k, v in (base | elements).items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)
    return path


# RSNA

RSNA = 'site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,difficult_negative_case\n'
RSNA_ROWS = ('2,10006,462822612,L,CC,61.0,0,0,0,,0,,29,False', '2,10006,1459541791,L,MLO,61.0,0,0,0,,0,,29,False', '1,10025,562340703,L,CC,75.0,0,0,0,,0,C,49,False', '1,10025,1365269360,L,MLO,75.0,0,0,0,,0,C,49,False',
             '1,10025,288394860,R,MLO,75.0,0,0,0,0.0,0,C,49,False', '1,10130,388811999,L,MLO,,0,0,0,,0,A,49,False', '1,10130,613462606,L,CC,,1,1,1,0.0,0,A,49,False', '1,10200,5,R,CC,50,0,0,0,,1,D,48,False',
             '1,10300,6,R,AT,50,0,0,0,1.0,0,D,48,True', '1,10300,7,R,LMO,50,0,0,0,1.0,0,D,48,True')


@pytest.fixture
def rsna(tmp_path):
    write(tmp_path / 'train.csv', RSNA + '\n'.join(RSNA_ROWS) + '\n')
    for i, row in enumerate(RSNA_ROWS):
        _, patient, image, *_ = row.split(',')
        if image != '613462606': mammogram(tmp_path / f'train_images/{patient}/{image}.dcm', i, PatientID=patient, **({'PhotometricInterpretation': 'MONOCHROME1'} if i % 2 else {}))
    return tmp_path


@pytest.mark.parametrize('csv', ['train.csv', None])
def test_rsna_loads_as_published(rsna, csv):
    data = load_dataset('', csv and rsna / csv, rsna, **HOW)
    m = data.manifest.set_index('sample_id')
    assert data.name == 'rsna' and data.task == DENSITY and sorted(m.index) == ['1365269360', '288394860', '388811999', '562340703', '6', '7']
    assert m.label.to_dict() == {'1365269360': '3', '288394860': '3', '388811999': '1', '562340703': '3', '6': '4', '7': '4'}
    assert data.reasons == {'not_eligible': 1, 'unknown_label': 2, 'missing_file': 1}, 'an implant, site 2 without density, a file that is not there'
    assert m['view'].to_dict() | {} == {'1365269360': 'MLO', '288394860': 'MLO', '388811999': 'MLO', '562340703': 'CC', '6': 'AT', '7': 'LMO'}
    assert m.patient_key.nunique() == 3 and m.exam_id.nunique() == 3 and not patient_unknown(data.manifest).any() and m.age['562340703'] == 75 and set(m.role) == {''} and set(m.site) == {'site 1'}


def test_rsna_implants_are_let_in_when_asked(rsna):
    data = rsna_screening(rsna / 'train.csv', rsna, options=ReadOptions(keep=('implant',)), **HOW)
    assert len(data.manifest) == 7 and data.manifest.implant.sum() == 1 and 'not_eligible' not in data.reasons
    with pytest.raises(ConfigError, match='density'): rsna_screening(write(rsna / 'x.csv', 'patient_id,image_id\n1,2\n'), rsna, **HOW)
    with pytest.raises(ConfigError, match='no train.csv'): rsna_screening(None, rsna / 'train_images', **HOW)
    with pytest.raises(ConfigError, match='--dicom-root'): rsna_screening(**HOW)


# VinDr-Mammo

VINDR = 'study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,split\n'


@pytest.fixture
def vindr(tmp_path):
    rows = [f's{s},r{s},i{s}{side}{view},{side},{view},3518,2800,BI-RADS 2,DENSITY {d},{split}' for s, d, split in ((1, 'A', 'training'), (2, 'B', 'training'), (3, 'C', 'training'), (4, 'D', 'test'), (5, 'B', 'test'), (6, 'C', 'training'), (7, 'C', 'training'))
            for side in 'LR' for view in ('CC', 'MLO')]
    rows[3] = rows[3].replace('DENSITY A', 'DENSITY B')   # the densities of two breasts may differ
    write(tmp_path / 'breast-level_annotations.csv', VINDR + '\n'.join(rows))
    write(tmp_path / 'finding_annotations.csv', VINDR.replace('split', 'split,finding_categories,finding_birads,xmin,ymin,xmax,ymax'))
    for i, row in enumerate(rows):
        study, _, image, *_ = row.split(',')
        if image != 'i2LCC': mammogram(tmp_path / f'images/{study}/{image}.dicom', i, **({'PhotometricInterpretation': 'MONOCHROME1'} if i < 4 else {}))
    return tmp_path


def test_vindr_mammo_keeps_the_publishers_split(vindr):
    data = load_dataset('', vindr / 'breast-level_annotations.csv', vindr, **HOW)
    m = data.manifest.set_index('sample_id')
    assert data.name == 'vindr-mammo' and len(m) == 27 and data.reasons == {'missing_file': 1}
    assert set(m.role[m.exam_id.isin(('s4', 's5'))]) == {'test'} and set(m.role[~m.exam_id.isin(('s4', 's5'))]) == {''}
    assert m.label['i1LCC'] == '1' and m.label['i1RMLO'] == '2' and m.label['i4LCC'] == '4' and m.patient_key.nunique() == 7
    dealt = deal(data.manifest, val=.34)
    assert split_proof(dealt)['disjoint'] and set(dealt.role) == {'train', 'val', 'test'} and (dealt.role == 'test').sum() == 8
    with pytest.raises(ConfigError, match='--test-split'): deal(data.manifest, test=.2)
    assert load_dataset('', None, vindr, **HOW).name == 'vindr-mammo'
    with pytest.raises(ConfigError, match='split'): vindr_mammo(write(vindr / 'x.csv', 'study_id,image_id,breast_density\n1,2,DENSITY A\n'), vindr, **HOW)
    with pytest.raises(DataError, match='split is .validation.'): vindr_mammo(write(vindr / 'y.csv', VINDR + 's1,r1,i1LCC,L,CC,9,9,BI-RADS 1,DENSITY A,validation\n'), vindr, **HOW)


# CBIS-DDSM

CALC = 'patient_id,breast density,left or right breast,image view,abnormality id,abnormality type,calc type,calc distribution,assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path\n'
MASS = CALC.replace('breast density', 'breast_density').replace('calc type', 'mass shape').replace('calc distribution', 'mass margins')
UID = '1.3.6.1.4.1.9590.100.1.2.'


def case_row(kind, part, patient, density, side, view, abnormality=1):
    case = f'{kind.title()}-{"Training" if part == "train" else "Test"}_{patient}_{side}_{view}'
    series = f'{UID}{abs(hash((case,))) % 10**9}'
    return f'{patient},{density},{side},{view},{abnormality},{kind},X,Y,4,BENIGN,4,{case}/{UID}7/{series}/000000.dcm,"{case}_{abnormality}/{UID}8/{UID}9/000001.dcm\n","{case}_{abnormality}/{UID}8/{UID}9/000000.dcm\n"', case, series


CASES = {('mass', 'train'): (('P_00001', 3, 'LEFT', 'CC'), ('P_00001', 3, 'LEFT', 'CC', 2), ('P_00001', 3, 'LEFT', 'MLO'), ('P_00004', 1, 'RIGHT', 'CC'), ('P_00009', 2, 'RIGHT', 'MLO')),
         ('mass', 'test'): (('P_00016', 4, 'LEFT', 'CC'), ('P_00017', 2, 'LEFT', 'CC')),
         ('calc', 'train'): (('P_00005', 0, 'RIGHT', 'CC'), ('P_00009', 2, 'RIGHT', 'MLO'), ('P_00016', 4, 'LEFT', 'CC'), ('P_00020', 2, 'LEFT', 'CC'), ('P_00020', 3, 'LEFT', 'CC', 2)),
         ('calc', 'test'): (('P_00038', 2, 'LEFT', 'CC'),)}


@pytest.fixture(params=['classic', 'named', 'jpeg'])
def cbis(request, tmp_path):
    "Three ways in which the same images come: paths as in the tables, folders with names (NBIA Data Retriever), JPEG."
    tables, info, seen = tmp_path / ('csv' if request.param == 'jpeg' else ''), ['file_path,image_path,Modality,PatientID,SeriesDescription,SeriesInstanceUID'], set()
    for n, ((kind, part), rows) in enumerate(CASES.items()):
        texts = [case_row(kind, part, *r) for r in rows]
        write(tables / f'{kind}_case_description_{part}_set.csv', (MASS if kind == 'mass' else CALC) + '\n'.join(t for t, *_ in texts) + '\n')
        for k, (_, case, series) in enumerate(texts):
            if case in seen: continue
            seen.add(case)
            place = {'classic': f'CBIS-DDSM/{case}/{UID}7/{series}/000000.dcm', 'named': f'CBIS-DDSM/{case}/07-20-2016-DDSM-NA-74994/1.000000-full mammogram images-24515/1-1.dcm', 'jpeg': f'jpeg/{series}/1-263.jpg'}[request.param]
            if request.param == 'jpeg':
                if kind == 'mass': place = place.replace(series, series + '1')   # the table's series is not always the folder's; dicom_info.csv knows
                picture(tmp_path / place, 10 * n + k)
                info += [f'x,CBIS-DDSM/{place},MG,{case},full mammogram images,{Path(place).parent.name}', f'x,CBIS-DDSM/jpeg/{series}9/2-1.jpg,MG,{case}_1,cropped images,{series}9']
                picture(tmp_path / f'jpeg/{series}9/2-1.jpg', 99)
            else:
                mammogram(tmp_path / place, 10 * n + k, PatientID=case, Modality='MG')
                mammogram(tmp_path / f'CBIS-DDSM/{case}_1/{UID}8/{UID}9/000001.dcm', 500 + 10 * n + k, PatientID=case + '_1')
    if request.param == 'jpeg': write(tables / 'dicom_info.csv', '\n'.join(info) + '\n')
    return tmp_path, request.param


def test_cbis_ddsm_loads_in_three_layouts(cbis):
    root, layout = cbis
    data = load_dataset('', None, root, **HOW)
    m = data.manifest.set_index('sample_id')
    assert data.name == 'cbis-ddsm' and sorted(m.index) == ['Calc-Test_P_00038_LEFT_CC', 'Mass-Test_P_00016_LEFT_CC', 'Mass-Test_P_00017_LEFT_CC', 'Mass-Training_P_00001_LEFT_CC', 'Mass-Training_P_00001_LEFT_MLO',
                                                            'Mass-Training_P_00004_RIGHT_CC', 'Mass-Training_P_00009_RIGHT_MLO']
    assert m.label.to_dict() | {} == dict(zip(sorted(m.index), '2423312')) and set(m.role[m.index.str.contains('Test')]) == {'test'} and set(m.role[m.index.str.contains('Training')]) == {''}
    assert m.patient_key['Mass-Training_P_00001_LEFT_CC'] == m.patient_key['Mass-Training_P_00001_LEFT_MLO'] and m.patient_key.nunique() == 6, 'PatientID of the headers is the case'
    assert set(m.laterality) == {'L', 'R'} and set(m['view']) == {'CC', 'MLO'}
    assert data.reasons == {'label_conflict': 1, 'duplicate': 1, 'split_conflict': 1, 'unknown_label': 1, 'other_edition': 1}
    said = {r['reason']: r for r in data.audit}
    assert "label '0'" in said['unknown_label']['detail'] and 'P_00020' in said['label_conflict']['path'] and 'P_00016' in said['split_conflict']['path'] and '4th edition' in said['other_edition']['detail']
    assert split_proof(deal(data.manifest, val=.34))['disjoint']


def test_cbis_ddsm_single_tables_and_mistakes(cbis):
    root, layout = cbis
    tables = root / ('csv' if layout == 'jpeg' else '')
    one = cbis_ddsm(tables / 'mass_case_description_test_set.csv', root, **HOW)
    assert set(one.manifest.role) == {'test'} and len(one.manifest) == 2
    (tables / 'calc_case_description_test_set.csv').unlink()
    assert 'Calc-Test_P_00038_LEFT_CC' not in set(cbis_ddsm(None, root, **HOW).manifest.sample_id)
    with pytest.raises(ConfigError, match='image file path'): cbis_ddsm(write(root / 'mass_case_description_train_set_2.csv', 'patient_id,breast_density\nP_1,2\n'), root, **HOW)
    with pytest.raises(ConfigError, match='case_description'): cbis_ddsm(None, write(root / 'empty/x.txt', '').parent, **HOW)
    with pytest.raises(ConfigError, match='train or test'): cbis_ddsm(write(root / 'cases.csv', MASS + 'P_00001,3,LEFT,CC,1,mass,X,Y,4,BENIGN,4,a/b/c/d.dcm,,\n'), root, **HOW)


# INbreast

INBREAST = 'Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads\n'
INBREAST_ROWS = (('22678622', 'R', 'CC', '4', '4a', '61b13c59bcba149e'), ('22678646', 'L', 'CC', '4', '1', '61b13c59bcba149e'), ('22580015', 'R', 'MLO', '1', '2', '4f2ab1c3'), ('22579730', 'L', 'FB', '2', '6', '4f2ab1c4'),
                 ('20586908', 'L', 'CC', '     ', '3', '4f2ab1c5'), ('20586934', 'R', 'MLO', '3', '5', '4f2ab1c6'))


@pytest.fixture
def breasts(tmp_path):
    root = tmp_path / 'INbreast Release 1.0'
    write(root / 'INbreast.csv', INBREAST + ''.join(f'removed;removed;{side};{view};201001;{name};{acr};{b}\n' for name, side, view, acr, b, _ in INBREAST_ROWS))
    for i, (name, side, view, *_, patient) in enumerate(INBREAST_ROWS):
        if name != '20586934': mammogram(root / f'AllDICOMs/{name}_{patient}_MG_{side}_{"ML" if view == "MLO" else view}_ANON.dcm', i, PatientID='removed')
    write(root / 'AllDICOMs/readme.txt', 'x')
    return root


def test_inbreast_loads_as_published(breasts):
    data = load_dataset('', breasts / 'INbreast.csv', **HOW)
    m = data.manifest.set_index('sample_id')
    assert data.name == 'inbreast' and sorted(m.index) == ['22579730', '22580015', '22678622', '22678646'] and m.label.loc[['22579730', '22580015', '22678622']].tolist() == ['2', '1', '4']
    assert m.patient_key.nunique() == 3 and m.patient_key['22678622'] == m.patient_key['22678646'] and m.exam_id.nunique() == 3, 'patients come from the file names, `removed` is none'
    assert m['view'].to_dict()['22580015'] == 'MLO' and data.reasons == {'unknown_label': 1, 'missing_file': 1, 'other_edition': 1}
    assert load_dataset('', None, breasts.parent, **HOW).name == 'inbreast', 'the folder above the release'
    with pytest.raises(ConfigError, match='ACR'): inbreast(write(breasts / 'x.csv', 'File Name;View\n1;CC\n'), breasts, **HOW)


def test_inbreast_reads_the_excel_table(breasts):
    xlwt = pytest.importorskip('xlwt', reason='xlwt, which writes the fixture, is not installed')
    pytest.importorskip('xlrd', reason='xlrd is not installed')
    book = xlwt.Workbook()
    sheet = book.add_sheet('Sheet1')
    for c, name in enumerate((*INBREAST.strip().split(';'), 'Mass ', 'Micros')): sheet.write(0, c, name)
    for r, (name, side, view, acr, b, _) in enumerate(INBREAST_ROWS, 1):
        for c, v in enumerate(('removed', 'removed', side, view, 201001., float(name), float(acr) if acr.strip() else acr, b)): sheet.write(r, c, v)
    sheet.write(8, 0, 'a remark below the table')
    book.save(breasts / 'INbreast.xls')
    (breasts / 'INbreast.csv').rename(breasts / 'kept.csv')
    from_excel, from_csv = inbreast(None, breasts, **HOW), inbreast(breasts / 'kept.csv', breasts, **HOW)
    assert from_excel.manifest.drop(columns='stamp').equals(from_csv.manifest.drop(columns='stamp')) and from_excel.reasons == from_csv.reasons
    write(breasts / 'INbreast.xls', 'no Excel at all')
    with pytest.raises(DataError, match='no Excel table'): inbreast(None, breasts, **HOW)


def test_inbreast_without_xlrd_says_what_to_do(breasts, monkeypatch):
    monkeypatch.setitem(sys.modules, 'xlrd', None)
    with pytest.raises(ConfigError, match='needs xlrd. Give INbreast.csv'): inbreast(write(breasts / 'INbreast.xls', 'x'), breasts, **HOW)


# EMBED

META = ',empi_anon,acc_anon,anon_dicom_path,StudyDescription,SeriesDescription,FinalImageType,ImageLateralityFinal,ViewPosition,spot_mag,num_roi,ROI_coords\n'
CLIN = ',empi_anon,acc_anon,study_date_anon,desc,tissueden,asses,numfind,side,age_at_study\n'
NAS = '/mnt/NAS2/mammo/anon_dicom/'


@pytest.fixture
def embed(tmp_path):
    exams = {'4490795498354092': '60696029', '9558492460692548': '60696029', '1869014640973031': '75922939', '3000000000000001': '11', '3000000000000002': '12', '3000000000000003': '13'}
    path = lambda acc, n: f'cohort_{1 + (acc[0] == "3")}/{exams[acc]}/{acc}/1.2.{acc}.{n}.dcm'
    images = [('4490795498354092', 1, '2D', 'L', 'CC', ''), ('4490795498354092', 2, '2D', 'R', 'MLO', ''), ('4490795498354092', 3, 'cview', 'R', 'MLO', ''), ('9558492460692548', 1, '2D', 'L', 'CC', '1.0'),
              ('9558492460692548', 2, '2D', 'L', 'MLO', '0'), ('1869014640973031', 1, '2D', 'R', 'CC', ''), ('3000000000000001', 1, '2D', 'R', 'CC', ''), ('3000000000000002', 1, '2D', 'R', 'CC', ''), ('3000000000000003', 1, '2D', 'R', 'CC', '')]
    write(tmp_path / 'tables/EMBED_OpenData_metadata.csv', META + ''.join(f'{i},{exams[a]},{a},{NAS}{path(a, n)},MG Screen,{s} {v},{kind},{s},{v},{spot},1,"((1, 2, 3, 4),)"\n' for i, (a, n, kind, s, v, spot) in enumerate(images)))
    clinical = ['60696029,4490795498354092.0,2013-01-01,MG Screening,2.0,A,1,L,50.4', '60696029,4490795498354092.0,2013-01-01,MG Screening,2.0,N,2,R,50.4', '60696029,9558492460692548.0,2015-01-01,MG Diagnostic,3.0,S,1,L,52.1',
                '75922939,1869014640973031.0,2014-02-02,MG Screening,4.0,N,1,,61', '11,3000000000000001.0,2014-02-02,MG Screening,1.0,N,1,,44', '11,3000000000000001.0,2014-02-02,MG Screening,3.0,N,2,L,44', '12,3000000000000002.0,2014-02-02,MG Diagnostic,5.0,N,1,,70']
    write(tmp_path / 'tables/EMBED_OpenData_clinical.csv', CLIN + ''.join(f'{i},{row}\n' for i, row in enumerate(clinical)))
    for i, (a, n, *_) in enumerate(images): mammogram(tmp_path / 'images' / path(a, n), i, PatientID=exams[a], AccessionNumber=a)
    return tmp_path


@pytest.mark.parametrize('csv', ['tables/EMBED_OpenData_metadata.csv', 'tables', None])
def test_embed_joins_its_two_tables(embed, csv):
    data = load_dataset('', csv and embed / csv, embed, **HOW)
    m = data.manifest
    assert data.name == 'embed' and sorted(zip(m.exam_id, m.laterality, m['view'], m.label)) == [('1869014640973031', 'R', 'CC', '4'), ('4490795498354092', 'L', 'CC', '2'), ('4490795498354092', 'R', 'MLO', '2'), ('9558492460692548', 'L', 'MLO', '3')]
    assert m.patient_key.nunique() == 2 and sorted(set(m.age)) == [50.4, 52.1, 61] and all(r.startswith('images/cohort_1/') for r in m.rel_path)
    assert data.reasons == {'not_eligible': 2, 'label_conflict': 1, 'class_5': 1, 'unknown_label': 1}, 'cview, spot view; two densities; a man; an exam without a clinical row'
    assert not any('NAS2' in str(r) for r in data.audit)


def test_embed_spot_views_and_mistakes(embed):
    spots = embed_open_data(embed / 'tables', embed, options=ReadOptions(keep=('spot',)), **HOW)
    assert len(spots.manifest) == 5 and spots.reasons['not_eligible'] == 1
    (embed / 'tables/EMBED_OpenData_clinical.csv').rename(embed / 'gone.csv')
    with pytest.raises(ConfigError, match='EMBED_OpenData_clinical.csv'): embed_open_data(embed / 'tables', embed, **HOW)
    write(embed / 'tables/EMBED_OpenData_clinical.csv', 'acc_anon,x\n1,2\n')
    with pytest.raises(ConfigError, match='tissueden'): embed_open_data(embed / 'tables', embed, **HOW)


# mamografias and patches_completo

def test_feature_lists_by_folder(tmp_path):
    root = tmp_path / 'mamografias'
    write(root / '17/featureS.txt', '# name, then class\nesquerda_cc\n0\ndireita_cc.png\n3\nfalta\n1\n')
    write(root / '18/featureS.txt', '\ufeffd_left_cc(1)\r\n2\r\n\r\nd_left_cc(2)\r\n1\r\n')
    write(root / '19/featureS.txt', 'a\n4\nb\nx\nc\n2\nrest\n')
    for i, name in enumerate(('17/esquerda_cc', '17/direita_cc', '18/d_left_cc (1)', '18/d_left_cc (2)', '19/a', '19/b', '19/c', '20/unlisted')): picture(root / f'{name}.png', i)
    data = load_dataset('mamografias', root, **HOW)
    assert data.manifest[['exam_id', 'label']].apply(tuple, axis=1).tolist() == [('17', '4'), ('17', '1'), ('18', '3'), ('18', '2'), ('19', '3')]
    assert data.manifest.patient_key.nunique() == 3 and data.reasons == {'unknown_label': 2, 'odd_value': 1, 'missing_file': 1, 'unlisted_folder': 1}
    assert load_dataset('', root, **HOW).name == load_dataset('', None, root, **HOW).name == 'mamografias', 'as the seed says it (--csv), and as the others are given'


def test_feature_list_at_the_root(tmp_path):
    root = tmp_path / 'patches_completo'
    write(root / 'featureS.txt', ''.join(f'p ({i}).png\n{i % 4}\n' for i in range(8)) + 'p(3)\n0\n')
    for i in range(8): picture(root / f'p ({i}).png', i)
    data = load_dataset('patches_completo', None, root, **HOW)
    assert len(data.manifest) == 7 and patient_unknown(data.manifest).all() and data.reasons == {'label_conflict': 1, 'patient_unknown': 1}
    assert load_dataset('', None, root, **HOW).name == 'patches_completo'
    with pytest.raises(ConfigError, match='featureS.txt'): feature_lists(None, write(tmp_path / 'empty/x.txt', '').parent, **HOW)
    with pytest.raises(ConfigError, match='featureS.txt'): load_dataset('mamografias', tmp_path / 'nowhere', **HOW)


def test_all_of_them_have_a_name():
    assert {'rsna', 'vindr-mammo', 'cbis-ddsm', 'inbreast', 'embed', 'mini-mias', 'mamografias', 'patches_completo', 'classificacao', 'unlabelled'} <= set(DATASETS)
    with pytest.raises(ConfigError, match='Known are classificacao'): load_dataset('ddsm')


def test_the_commands_take_the_names(tmp_path, capsys):
    "train-density keeps the publisher's test exams, embed takes a folder with lists as the seed did, validate scores a run on another of them."
    rows = [f's{s},r{s},i{s}{view},L,{view},160,128,BI-RADS 1,DENSITY {"ABCD"[s % 4]},{"test" if s > 11 else "training"}' for s in range(16) for view in ('CC', 'MLO')]
    csv = write(tmp_path / 'vindr/breast-level_annotations.csv', VINDR + '\n'.join(rows))
    for k, row in enumerate(rows): mammogram(tmp_path / f'vindr/images/{row.split(",")[0]}/{row.split(",")[2]}.dicom', k)
    for k in range(8): picture(tmp_path / f'lists/{k // 2}/{k}.png', k)
    for k in range(4): write(tmp_path / f'lists/{k}/featureS.txt', f'{2 * k}\n{k}\n{2 * k + 1}\n{k}\n')
    common = ['--arch', 'resnet18', '--weights', 'none', '--img-size', '32', '--num-workers', '0', '--device', 'cpu']
    assert main(['train-density', '--dataset', 'vindr-mammo', '--csv', str(csv), '--outdir', str(tmp_path / 'run'), '--epochs', '1', '--warmup-epochs', '0', '--n-boot', '0', '--region', 'full', '--val-split', '.34', *common]) == 0, capsys.readouterr().err
    roles = json.loads((tmp_path / 'run/results/data_manifest.json').read_text())['roles']
    assert roles['test'] == sorted(f'i{s}{v}' for s in range(12, 16) for v in ('CC', 'MLO')) and roles['train'] and roles['val']
    assert main(['embed', '--dataset', 'mamografias', '--csv', str(tmp_path / 'lists'), '--outdir', str(tmp_path / 'features'), '--region', 'full', *common]) == 0, capsys.readouterr().err
    assert np.load(tmp_path / 'features/features.npy').shape == (8, 512)
    assert main(['validate', '--run', str(tmp_path / 'run/results'), '--dataset', 'mamografias', '--dicom-root', str(tmp_path / 'lists'), '--out', str(tmp_path / 'site'), '--n-boot', '10', '--folds', '2', '--num-workers', '0', '--device', 'cpu']) == 0, capsys.readouterr().err
