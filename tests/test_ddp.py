"Several processes against one, by the command line: real processes, gloo, CPU."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BASE = ['--arch', 'resnet18', '--weights', 'none', '--img-size', '64', '--unfreeze-last-block', '--freeze-bn', 'yes', '--dropout', '0', '--precision', 'fp32', '--device', 'cpu',
        '--epochs', '2', '--optimizer', 'sgd', '--lr', '.1', '--backbone-lr', '.1', '--n-boot', '0', '--num-workers', '0']


def train(study, outdir, devices, *flags):
    line = [Path(sys.executable).parent / 'mammography', 'train-density', '--csv', study / 'classificacao.csv', '--dicom-root', study / 'archive', '--cache-dir', outdir.parent / 'cache', '--outdir', outdir, *BASE, '--devices', devices, *flags]
    return subprocess.run([str(x) for x in line], capture_output=True, text=True, timeout=400, env=os.environ | {'OMP_NUM_THREADS': '1'})


def weights(path): return torch.load(path / 'last.pth', weights_only=True)['model']


@pytest.mark.parametrize('flags', [('--batch-size', '7', '--feature-cache', '0', '--class-weights', '1,2,3,4'),       # parts of 4 and 3
                                   pytest.param(('--batch-size', '45', '--feature-cache', '2', '--loss', 'ordinal', '--accumulate', '2'), marks=pytest.mark.slow)])  # kept activations; the last batch of a step may leave a process without a part
def test_two_processes_are_one(study, tmp_path, flags):
    for n in (1, 2):
        done = train(study, tmp_path / f'of{n}', n, *flags)
        assert done.returncode == 0, done.stderr[-2000:]
        assert [p.name for p in (tmp_path / f'of{n}').iterdir()] == ['results'], 'one process owns the one run directory'
        assert done.stdout.count('best_model.pth') == 1
    one, two = weights(tmp_path / 'of1/results'), weights(tmp_path / 'of2/results')
    assert one.keys() == two.keys()
    assert max((one[k].double() - two[k].double()).abs().max().item() for k in one) < 1e-5  # sums in another order; the weights have moved by far more
    a, b = (json.loads((tmp_path / f'of{n}/results/train_history.json').read_text()) for n in (1, 2))
    for k in a.keys() - {'seconds'}: assert a[k] == pytest.approx(b[k], abs=1e-5), k
    a, b = (json.loads((tmp_path / f'of{n}/results/metrics/val_metrics.json').read_text()) for n in (1, 2))
    assert (a['n'], a['confusion_matrix']) == (b['n'], b['confusion_matrix'])
    assert json.loads((tmp_path / 'of2/results/summary.json').read_text())['processes'] == 2


@pytest.mark.slow
def test_a_mistake_ends_all_processes(study, tmp_path):
    (tmp_path / 'file').write_text('x')
    done = train(study, tmp_path / 'file', 2)
    assert done.returncode == 2 and done.stderr.count('--outdir') == 1 and 'Traceback' not in done.stderr, done.stderr[-2000:]
    assert train(study, tmp_path / 'o', 0).returncode == 2


DIES = """
import os, sys
from mammo.cli import parse
from mammo.config import TrainConfig
from mammo.pipeline import train
from mammo.recipes.density import density_data
cfg = parse(TrainConfig, sys.argv[1:])
train(density_data(cfg), cfg, on_epoch=lambda epoch, row: os._exit(9))
"""


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(study, tmp_path):
    "Dead after its first epoch, taken up by two processes: the same run directory and the same figures."
    flags = ['--batch-size', '7', '--class-weights', 'none']
    assert train(study, tmp_path / 'whole', 1, *flags).returncode == 0
    line = ['--csv', study / 'classificacao.csv', '--dicom-root', study / 'archive', '--cache-dir', tmp_path / 'cache', '--outdir', tmp_path / 'part', *BASE, *flags]
    assert subprocess.run([sys.executable, '-c', DIES, *map(str, line)], capture_output=True, env=os.environ | {'OMP_NUM_THREADS': '1'}, timeout=400).returncode == 9
    assert torch.load(tmp_path / 'part/results/last.pth', weights_only=True)['epoch'] == 1
    done = train(study, tmp_path / 'part', 2, *flags, '--resume')
    assert done.returncode == 0, done.stderr[-2000:]
    assert [p.name for p in (tmp_path / 'part').iterdir()] == ['results']
    one, two = weights(tmp_path / 'whole/results'), weights(tmp_path / 'part/results')
    assert max((one[k].double() - two[k].double()).abs().max().item() for k in one) < 1e-5
