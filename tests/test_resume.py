"Sudden death: `kill -9` at any moment, then the same command with `--resume`, ends as if nothing had happened."
import json
import os
import signal
import time

import pytest

from forked import Forked, command

FLAGS = ['train-density', '--arch', 'resnet18', '--weights', 'none', '--img-size', '64', '--epochs', '5', '--lr', '1e-3', '--n-boot', '0',
         '--precision', 'fp32', '--device', 'cpu']


def start(study, out, *more, workers='0'):
    return Forked(command, [*FLAGS, '--outdir', str(out / 'o'), '--num-workers', workers, *more], cwd=study)


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]


@pytest.fixture(scope='module')
def whole(study, tmp_path_factory):
    "The run that nobody disturbed."
    out = tmp_path_factory.mktemp('whole')
    finish(start(study, out))
    return out / 'o/results'


@pytest.mark.parametrize('epochs_before, workers', [(1, '0'), (3, '1')])
def test_killed_and_resumed(study, tmp_path, whole, epochs_before, workers):
    process = start(study, tmp_path)
    history = tmp_path / 'o/results/train_history.json'
    while process.poll() is None and not (history.exists() and len(json.loads(history.read_text())['epoch']) >= epochs_before): time.sleep(.02)
    assert process.poll() is None, 'it ended before it could be killed'
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'o/results/summary.json').exists()
    finish(start(study, tmp_path, '--resume', workers=workers))
    assert [p.name for p in (tmp_path / 'o').iterdir()] == ['results']
    for name in ('val_predictions.csv', 'embeddings_val.npy', 'metrics/confusion_matrix.npy'):
        assert (tmp_path / 'o/results' / name).read_bytes() == (whole / name).read_bytes(), name
    a, b = (json.loads((r / 'train_history.json').read_text()) for r in (tmp_path / 'o/results', whole))
    assert {k: v for k, v in a.items() if k != 'seconds'} == {k: v for k, v in b.items() if k != 'seconds'}


def test_another_setting_is_another_run(study, tmp_path):
    process = start(study, tmp_path)
    while process.poll() is None and not (tmp_path / 'o/results/last.pth').exists(): time.sleep(.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finish(start(study, tmp_path, '--resume', '--seed', '43'))
    assert sorted(p.name for p in (tmp_path / 'o').iterdir()) == ['results', 'results_1']


def test_a_living_run_is_left_alone(study, tmp_path):
    a = start(study, tmp_path)
    while a.poll() is None and not (tmp_path / 'o/results/last.pth').exists(): time.sleep(.02)
    b = start(study, tmp_path, '--resume')
    finish(b)
    finish(a)
    assert sorted(p.name for p in (tmp_path / 'o').iterdir()) == ['results', 'results_1']
