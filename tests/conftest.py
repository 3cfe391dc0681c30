"Shared pieces: a phantom study, torch's cache with random weights, and the command line in a process of its own."
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))
from forked import Forked, command
SHARED = ROOT.parent / 'shared'


LONG = ('test_density', 'test_report', 'test_cli', 'test_search', 'test_ray', 'test_vit', 'test_embed', 'test_validation', 'test_recipes', 'test_findings', 'test_ensemble', 'test_resume')


def pytest_collection_modifyitems(items):
    "Files of few and long tests begin first, or one core waits for them at the end."
    items.sort(key=lambda i: LONG.index(i.path.stem) if i.path.stem in LONG else len(LONG))


@pytest.fixture(scope='session')
def shared():
    "Real images, where they are."
    if not (SHARED / 'data').is_dir(): pytest.skip('../shared/data is not there')
    return SHARED


@pytest.fixture(scope='session', autouse=True)
def patient_key(tmp_path_factory):
    "Tests neither use nor make the user's own key."
    os.environ['MAMMO_KEY_FILE'] = str(tmp_path_factory.mktemp('key') / 'patient.key')


@pytest.fixture(scope='session')
def study(tmp_path_factory):
    "A folder with classificacao.csv and archive/, as the seeds' command lines expect it: 24 exams of phantoms."
    from mammo.phantom import write_study
    folder = tmp_path_factory.mktemp('study')
    write_study(folder, n_exams=24, seed=3, rows=192, columns=160, workers=0, progress=False)
    return folder


@pytest.fixture(scope='session')
def torch_home(tmp_path_factory):
    "torch's cache with random state dicts under the published names, so that `--weights default` works offline."
    import torch
    from torchvision.models import get_model
    from mammo.models import BACKBONES, weights_cache
    home = tmp_path_factory.mktemp('torch')
    old = os.environ.get('TORCH_HOME')
    os.environ['TORCH_HOME'] = str(home)
    for name in ('efficientnet_b0', 'resnet18', 'resnet50', 'mobilenet_v2'):
        torch.manual_seed(0)
        path = weights_cache(BACKBONES[name])
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(get_model(name, weights=None).state_dict(), path)
    os.environ.pop('TORCH_HOME') if old is None else os.environ.__setitem__('TORCH_HOME', old)
    return home


@pytest.fixture(scope='session')
def mammography(torch_home):
    "`mammography('train-density', …, cwd=folder)` in a process of its own."
    def run(*args, cwd=ROOT, check=True, **env):
        process = Forked(command, [str(a) for a in args], cwd=cwd, env=os.environ | {'TORCH_HOME': str(torch_home)} | env)
        out, err = process.communicate()
        done = subprocess.CompletedProcess(args, process.returncode, out, err)
        if check: assert done.returncode == 0, done.stderr[-3000:]
        return done
    return run
