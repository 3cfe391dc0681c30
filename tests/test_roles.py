"The test role is out of reach: whatever stands in its images, training, selection and validation come out the same."
import json
import shutil

import pandas as pd
import pytest

FLAGS = ['train-density', '--arch', 'resnet18', '--weights', 'none', '--img-size', 64, '--epochs', 2, '--lr', '1e-3', '--n-boot', 0, '--test-split', '.2', '--num-workers', 0]


def test_nothing_sees_the_test_images(study, mammography, tmp_path):
    here = tmp_path / 'study'
    shutil.copytree(study, here)
    mammography(*FLAGS, '--outdir', tmp_path / 'a', cwd=here)
    manifest = json.loads((tmp_path / 'a/results/data_manifest.json').read_text())
    held = set(manifest['roles']['test'])
    exams = {s.split('_')[0] for s in held}
    assert len(held) >= 8 and not held & set(manifest['roles']['train'] + manifest['roles']['val'])
    flipped = 0
    for f in sorted(p for e in exams for p in (here / 'archive' / e).glob('*.dcm')):  # turn each held-out picture into another one
        flipped += overwrite(f)
    assert flipped >= len(held)
    mammography(*FLAGS, '--outdir', tmp_path / 'b', cwd=here)
    a, b = tmp_path / 'a/results', tmp_path / 'b/results'
    for name in ('val_predictions.csv', 'embeddings_val.npy'): assert (a / name).read_bytes() == (b / name).read_bytes(), name
    columns = [c for c in pd.read_csv(a / 'test_predictions.csv') if c.startswith('prob_')]
    assert not pd.read_csv(a / 'test_predictions.csv')[columns].equals(pd.read_csv(b / 'test_predictions.csv')[columns]), 'the change did not reach the test images'


def overwrite(path) -> bool:
    "The same header around darker, upside-down pixels."
    import pydicom
    ds = pydicom.dcmread(path)
    if ds.file_meta.TransferSyntaxUID.is_compressed: ds.decompress()
    top = 2 ** ds.BitsStored - 1
    ds.PixelData = (ds.pixel_array[::-1] // 2 + top // 4).astype('uint16').tobytes()
    ds.save_as(path)
    return True


def test_seeds_share_their_validation_images(study, mammography, tmp_path):
    names = []
    for seed in (42, 43):
        mammography('train-density', '--arch', 'resnet18', '--weights', 'none', '--img-size', 64, '--epochs', 1, '--n-boot', 0, '--num-workers', 0, '--seed', seed,
                    '--outdir', tmp_path / 'o', cwd=study)
    for run in ('results', 'results_1'): names.append(pd.read_csv(tmp_path / 'o' / run / 'val_predictions.csv'))
    assert list(names[0].sample_id) == list(names[1].sample_id)
    assert not names[0].prob_1.equals(names[1].prob_1)


def test_a_patient_shared_by_train_and_test_is_refused(study, tmp_path):
    "Roles that come with the data are believed only where they keep patients apart; nothing is trained otherwise."
    from mammo.config import ImageConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
    from mammo.datasets import load_dataset
    from mammo.manifest import DataSet
    from mammo.pipeline import train
    from mammo.splits import LeakError, assign_roles
    data = load_dataset(csv=study / 'classificacao.csv', dicom_root=study / 'archive', key=b'k' * 32, workers=0)
    m = assign_roles(data.manifest, .2, .2, 0., 42)
    own = m.index[m.patient_key == m.patient_key[m.role == 'train'].iloc[0]]
    assert len(own) > 1
    m.loc[own[0], 'role'] = 'test'
    cfg = TrainConfig(image=ImageConfig(img_size=64), model=ModelConfig(arch='resnet18', weights='none'), optim=OptimConfig(epochs=1), run=RunConfig(outdir=tmp_path / 'o', n_boot=0, num_workers=0, device='cpu', precision='fp32'))
    with pytest.raises(LeakError, match='patient_key in more than one role'): train(DataSet(data.name, data.task, m, data.audit), cfg)
    assert not list((tmp_path / 'o').rglob('*.pth')) and not list((tmp_path / 'o').rglob('summary.json'))
