"""Sudden death: `kill -9` at any moment of any command, then the same command again, ends as if nothing had happened, and leaves nothing half written.
Two kills a command here, 25 in `make test-all`."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = ['--csv', 'classificacao.csv', '--dicom-root', 'archive', '--arch', 'resnet18', '--weights', 'none', '--img-size', '48', '--epochs', '3', '--lr', '1e-3', '--n-boot', '20', '--precision', 'fp32', '--device', 'cpu', '--num-workers', '0']
COMMANDS = {  # name → command line, what a rerun adds, the artefacts that have to be the same
    'embed': (['embed', '--csv', 'classificacao.csv', '--dicom-root', 'archive', '--arch', 'resnet18', '--weights', 'none', '--img-size', '48', '--pca', '--cluster', '--device', 'cpu', '--num-workers', '2', '--outdir', 'OUT/e'], [], ('e/features.npy', 'e/joined.csv', 'e/projections/pca_2d.csv')),
    'train': (['train-density', *TRAIN, '--outdir', 'OUT/t'], ['--resume'], ('t/results/val_predictions.csv', 't/results/embeddings_val.npy', 't/results/metrics/confusion_matrix.npy')),
    'phases': (['train-density', *TRAIN, '--phases', 'a:train_backbone=no,epochs=1', 'b:epochs=1', '--outdir', 'OUT/p'], ['--resume'], ('p/results/val_predictions.csv', 'p/results/phase_1/val_predictions.csv')),
    'cv': (['train-density', *TRAIN, '--cv-folds', '2', '--epochs', '1', '--outdir', 'OUT/c'], [], ('c/cv/fold_1/results/test_predictions.csv', 'c/cv/fold_2/results/test_predictions.csv')),
    'tune': (['tune', *TRAIN, '--epochs', '1', '--trials', '2', '--fixed', 'augment', '--outdir', 'OUT/s'], [], ('s/trials/trial_0001/results/val_predictions.csv', 's/trials/trial_0002/results/val_predictions.csv')),
    'report-pack': (['report-pack', '--run', 'RUN', '--assets-dir', 'OUT/Article/assets', '--num-workers', '0', '--device', 'cpu'], [], ('Article/sections/density_model.tex', 'Article/assets/density_train_seed42.png', 'Article/assets/density_gradcam_seed42.png')),
}


def start(line: list[str], study: Path, out: Path, run: Path) -> subprocess.Popen:
    "The command in a process group of its own, so that its workers die with it."
    words = [w.replace('OUT', str(out)).replace('RUN', str(run)) for w in line]
    command = [sys.executable, '-c', 'import sys; from mammo.cli import main; sys.exit(main())', *words]
    return subprocess.Popen(command, cwd=study, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {'OMP_NUM_THREADS': '1'})


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Path:
    from mammo.phantom import write_study
    folder = tmp_path_factory.mktemp('tiny')
    write_study(folder, n_exams=16, seed=5, rows=96, columns=80, workers=0, progress=False)
    return folder


@pytest.fixture(scope='module')
def done(tiny, tmp_path_factory):
    "Name → seconds of the undisturbed command and its artefacts; and a finished run to report on."
    out, found = tmp_path_factory.mktemp('whole'), {}
    finish(start(COMMANDS['train'][0], tiny, out, out))

    def whole(name: str) -> tuple[float, dict[str, bytes]]:
        if name not in found:
            line, _, files = COMMANDS[name]
            clock = time.perf_counter()
            finish(start(line, tiny, out / name, out / 't/results'))
            found[name] = time.perf_counter() - clock, {f: (out / name / f).read_bytes() for f in files}
        return found[name]
    return whole, out / 't/results'


def kill_at(process: subprocess.Popen, seconds: float) -> bool:
    "Whether it was still alive to be killed."
    time.sleep(seconds)
    alive = process.poll() is None
    try: os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError: pass
    process.wait()
    return alive


def dies_and_rises(name: str, tiny: Path, done, tmp_path: Path, kills: int, seed: int) -> int:
    "How often it was killed while alive."
    (whole, run), (line, again, files), rng, hit = done, COMMANDS[name], random.Random(f'{name}{seed}'), 0
    seconds, expected = whole(name)
    for k in range(kills): hit += kill_at(start([*line, *(again if k else [])], tiny, tmp_path, run), rng.uniform(.25, .95) * seconds)
    finish(start([*line, *again], tiny, tmp_path, run))
    for f, content in expected.items(): assert (tmp_path / f).read_bytes() == content, f'{name}: {f} is another'
    left = [p for p in tmp_path.rglob('.*.tmp') if '/cache/' not in str(p)]
    assert not left, f'half written: {left}'
    for p in tmp_path.rglob('*.json'): json.loads(p.read_text())
    return hit


@pytest.mark.parametrize('name', ['embed', 'cv', 'report-pack'])
def test_killed_twice(name, tiny, done, tmp_path): assert dies_and_rises(name, tiny, done, tmp_path, 2, 1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize('name', list(COMMANDS))
def test_killed_25_times(name, tiny, done, tmp_path):
    hit = sum(dies_and_rises(name, tiny, done, tmp_path / str(i), 5, i) for i in range(5))
    assert hit >= 15, f'only {hit} of 25 came before the end'


def test_a_full_disk_is_one_line(tiny, tmp_path):
    "/dev/full refuses every byte: a clear line, status 1, nothing that looks finished."
    if not Path('/dev/full').exists(): pytest.skip('no /dev/full')
    line = ['predict', '--run', 'absent', '--input', str(tiny / 'archive'), '--out', '/dev/full/x.csv']
    done = subprocess.run([sys.executable, '-c', 'import sys; from mammo.cli import main; sys.exit(main())', *line], capture_output=True, text=True)
    assert done.returncode in (1, 2) and done.stderr.count('\n') == 1


def test_control_c_is_130(tiny, tmp_path):
    "Ctrl-C ends with status 130 and one line; the run can be taken up again."
    process = start(COMMANDS['train'][0], tiny, tmp_path, tmp_path)
    while process.poll() is None and not (tmp_path / 't/results/last.pth').exists(): time.sleep(.02)
    assert process.poll() is None, 'it ended before it could be interrupted'
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in err and err.rstrip().endswith('interrupted')
    finish(start([*COMMANDS['train'][0], '--resume'], tiny, tmp_path, tmp_path))
    assert [p.name for p in (tmp_path / 't').iterdir()] == ['results']


def test_two_processes_share_a_store_and_no_folder(tiny, tmp_path):
    "Two trainings at once in one --outdir: two runs, one pixel store, both whole. Two embeds into one folder: one works, the other says that it is taken or finds it done."
    both = [start(COMMANDS['train'][0], tiny, tmp_path, tmp_path) for _ in range(2)]
    for p in both: finish(p)
    runs = sorted(p for p in (tmp_path / 't').iterdir())
    assert [r.name for r in runs] == ['results', 'results_1']
    assert runs[0].joinpath('val_predictions.csv').read_bytes() == runs[1].joinpath('val_predictions.csv').read_bytes()
    embeds = [start(COMMANDS['embed'][0], tiny, tmp_path, tmp_path) for _ in range(2)]
    said = [p.communicate(timeout=300)[1] for p in embeds]
    codes = sorted(p.returncode for p in embeds)
    assert codes in ([0, 0], [0, 1], [0, 2]) and all('Traceback' not in s for s in said)
    shutil.rmtree(tmp_path / 'e')
