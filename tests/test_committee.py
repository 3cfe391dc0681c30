"The film preset by its two commands: on phantoms drawn as films for every machine, and on mini-MIAS where it is at hand."
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mammo.cli import parse
from mammo.config import PredictConfig, TrainConfig
from mammo.core import ConfigError
from mammo.phantom import phantom

FILM = Path(__file__).parents[2] / 'shared/data/mini-mias'
WEIGHTS = Path(__file__).parents[2] / 'shared/weights/mobilenet_v2_imagenet.pth'


def films(folder: Path, patients: int = 18, first: int = 1) -> Path:
    "A table as mini-MIAS has it, and its PGM files."
    (folder / 'pgm').mkdir(parents=True, exist_ok=True)
    rows = []
    for p in range(patients):
        for s, side in enumerate('RL'):
            name, c = f'mdb{first + 2 * p + s:03d}', p % 3
            img = phantom((1, 2, 4)[c], side, 'MLO', seed=first + p, rows=256, columns=208).img
            Image.fromarray((img * 255).astype(np.uint8)).save(folder / f'pgm/{name}.pgm')
            rows.append({'id': name, 'file': f'pgm/{name}.pgm', 'density_FGD': 'FGD'[c], 'patient': first + p, 'side': side, 'abnormality': 'NORM', 'severity': ''})
    pd.DataFrame(rows).to_csv(folder / 'density.csv', index=False)
    return folder / 'density.csv'


def test_a_preset_is_settings_that_flags_change():
    own = parse(TrainConfig, ['--preset', 'film', '--seed', '43', '--sizes', '224', '256'])
    assert (own.run.preset, own.model.head, own.model.arch, own.model.descriptors, own.image.img_size) == ('film', 'committee', 'mobilenet_v2', True, 512)
    assert (own.run.seed, own.model.sizes, own.data.classes) == (43, (224, 256), 'density')
    assert parse(TrainConfig, ['--preset=ffdm']).image.store_bits == 16
    assert parse(TrainConfig, []).model.head == 'linear'
    with pytest.raises(ConfigError, match='--preset'): parse(TrainConfig, ['--preset', 'flim'])


def test_what_does_not_go_together_is_refused():
    for argv, said in ((['--head', 'committee', '--unfreeze-last-block'], '--unfreeze-last-block and --head committee'), (['--logistic-c', '0'], '--logistic-c'), (['--trees', '-1'], '--trees')):
        with pytest.raises(ConfigError, match=said): parse(TrainConfig, argv)


def test_the_two_commands(tmp_path, mammography):
    csv, new = films(tmp_path / 'known'), films(tmp_path / 'new', 4, 201).parent / 'pgm'
    (new / 'letter.pgm').write_text('no picture')
    done = mammography('train-density', '--dataset', 'mini-mias', '--csv', csv, '--outdir', tmp_path / 'run', '--preset', 'film', '--seed', 42, '--weights', 'none', '--img-size', 128, '--sizes', 64, '--trees', 40, '--n-boot', 50)
    assert 'Held out' in done.stdout
    run = tmp_path / 'run/results'
    done = mammography('predict', '--run', run, '--input', new, '--out', tmp_path / 'predictions.csv')
    t = pd.read_csv(tmp_path / 'predictions.csv')
    ok = t[t.status == 'ok']
    assert {'sample_id', 'pred_label', 'prob_F', 'prob_G', 'prob_D', 'percent_density', 'reason'} <= set(t) and ok.sample_id.tolist() == [f'mdb{i}' for i in range(201, 209)]
    assert np.allclose(ok[['prob_F', 'prob_G', 'prob_D']].sum(axis=1), 1) and set(ok.pred_label) <= set('FGD')
    assert t[t.status == 'refused'].reason.tolist() == ['unreadable']
    said = json.loads((run / 'summary.json').read_text())
    assert (said['preset'], said['head']) == ('film', 'committee') and set(said['checkpoints']) == {'best_model.pth', 'final_model.pth'}
    roles = json.loads((run / 'data_manifest.json').read_text())['roles']
    pair = lambda name: (int(name[3:6]) + 1) // 2   # both breasts of a woman
    assert not {pair(n) for n in roles['train']} & {pair(n) for n in roles['val']}
    own = pd.read_csv(run / 'val_predictions.csv').set_index('sample_id')
    done = mammography('predict', '--run', run, '--input', csv.parent / 'pgm', '--out', tmp_path / 'known.csv')
    both = own.merge(pd.read_csv(tmp_path / 'known.csv').set_index('sample_id'), left_index=True, right_index=True, suffixes=('', '_final'))
    assert len(both) == len(own) and (both.prob_F - both.prob_F_final).abs().max() > 1e-3   # the figures are of the model that has not seen them
    broken = run / 'final_model.pth'
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(bytes(data))
    assert 'SHA-256' in mammography('predict', '--run', run, '--input', new, '--out', tmp_path / 'again.csv', check=False).stderr


@pytest.mark.slow
@pytest.mark.skipif(not FILM.is_dir(), reason='mini-MIAS is not at ../shared/data')
def test_mini_mias_within_the_time_that_is_promised(tmp_path, mammography):
    start = time.monotonic()
    done = mammography('train-density', '--dataset', 'mini-mias', '--csv', FILM / 'density.csv', '--outdir', tmp_path / 'run', '--preset', 'film', '--seed', 42, '--weights', WEIGHTS)
    done = mammography('predict', '--run', tmp_path / 'run/results', '--input', FILM / 'pgm', '--out', tmp_path / 'predictions.csv')
    assert time.monotonic() - start < 1200
    metrics = json.loads((tmp_path / 'run/results/metrics/val_metrics.json').read_text())
    assert metrics['n'] == 32 and metrics['kappa_quadratic'] > .5   # 16 patients: a floor, no claim
    assert len(pd.read_csv(tmp_path / 'predictions.csv')) == 162


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.exists(), reason='the weights are not at ../shared/weights')
def test_onnx_of_a_committee_for_any_number_of_images(tmp_path, mammography):
    pytest.importorskip('onnxruntime')
    mammography('train-density', '--dataset', 'mini-mias', '--csv', films(tmp_path), '--outdir', tmp_path / 'run', '--preset', 'film', '--weights', WEIGHTS, '--img-size', 128, '--sizes', 64, 96, '--trees', 40, '--n-boot', 0)
    done = mammography('export', '--run', tmp_path / 'run/results', '--out', tmp_path / 'model.onnx', '--format', 'onnx')
    assert float(done.stdout.split()[-1]) < 1e-4   # five images, traced with two
