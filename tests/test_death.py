"""Sudden death: `kill -9` at any moment of any command, then the same command again, ends as if nothing had happened, and leaves nothing half written.
Two kills a command here, 25 in `make test-all`. And gentler ends: a full disk, a folder that may not be written, Ctrl-C, another process in the same place."""
import ctypes
import io
import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from forked import Forked, command

TRAIN = ['--csv', 'classificacao.csv', '--dicom-root', 'archive', '--arch', 'resnet18', '--weights', 'none', '--img-size', '48', '--epochs', '3', '--lr', '1e-3', '--n-boot', '20', '--precision', 'fp32', '--device', 'cpu', '--num-workers', '0']
COMMANDS = {  # name → command line, what a rerun adds, the artefacts that have to be the same
    'embed': (['embed', '--csv', 'classificacao.csv', '--dicom-root', 'archive', '--arch', 'resnet18', '--weights', 'none', '--img-size', '48', '--pca', '--cluster', '--device', 'cpu', '--num-workers', '2', '--outdir', 'OUT/e'], [], ('e/features.npy', 'e/joined.csv', 'e/projections/pca_2d.csv')),
    'train': (['train-density', *TRAIN, '--outdir', 'OUT/t'], ['--resume'], ('t/results/val_predictions.csv', 't/results/embeddings_val.npy', 't/results/metrics/confusion_matrix.npy')),
    'phases': (['train-density', *TRAIN, '--phases', 'a:train_backbone=no,epochs=1', 'b:epochs=1', '--outdir', 'OUT/p'], ['--resume'], ('p/results/val_predictions.csv', 'p/results/phase_1/val_predictions.csv')),
    'cv': (['train-density', *TRAIN, '--cv-folds', '2', '--epochs', '1', '--outdir', 'OUT/c'], [], ('c/cv/fold_1/results/test_predictions.csv', 'c/cv/fold_2/results/test_predictions.csv')),
    'tune': (['tune', *TRAIN, '--epochs', '1', '--trials', '2', '--fixed', 'augment', '--outdir', 'OUT/s'], [], ('s/trials.csv',)),
    'report-pack': (['report-pack', '--run', 'RUN', '--assets-dir', 'OUT/Article/assets', '--num-workers', '0', '--device', 'cpu'], [], ('Article/sections/density_model.tex', 'Article/assets/density_train_seed42.png', 'Article/assets/density_gradcam_seed42.png')),
}


def _without_rights() -> None:
    "As root too, the rights of a folder hold from here on."
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


def limited(words: list[str], largest: int, powerless: bool) -> None:
    "The command where no file may grow beyond so many bytes, or without root's rights."
    if largest: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    if powerless: _without_rights()
    command(words)


class Command(Forked):
    "A command line that runs beside the test."
    def __init__(self, line, study: Path, out: Path, run: Path = Path('none'), largest: int = 0, powerless: bool = False):
        out.mkdir(exist_ok=True)
        super().__init__(limited, [w.replace('OUT', str(out)).replace('RUN', str(run)) for w in line], largest, powerless, cwd=study, env=os.environ | {'OMP_NUM_THREADS': '1'})

    def end(self) -> tuple[int, str]: return self.wait(600), ''.join(self.said())

    def finish(self) -> None:
        code, said = self.end()
        assert code == 0, said[-3000:]

    def killed(self, after: float) -> bool:
        "Whether it was still alive to be killed."
        time.sleep(after)
        alive = self.poll() is None
        self.kill()
        return alive


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Path:
    from mammo.phantom import write_study
    Forked(os.getpid).wait()   # the imports shall not count as a command's time
    folder = tmp_path_factory.mktemp('tiny')
    write_study(folder, n_exams=16, seed=5, rows=96, columns=80, workers=0, progress=False)
    return folder


@pytest.fixture(scope='module')
def whole(tiny, tmp_path_factory):
    "Name → seconds of the undisturbed command and its artefacts; and the run that reports are made of."
    out, found = tmp_path_factory.mktemp('whole'), {}

    def of(name: str) -> tuple[float, dict[str, bytes], Path]:
        if name not in found:
            line, _, files = COMMANDS[name]
            if name == 'report-pack': of('train')
            clock = time.perf_counter()
            Command(line, tiny, out / name, out / 'train/t/results').finish()
            found[name] = time.perf_counter() - clock, {f: (out / name / f).read_bytes() for f in files}
        return *found[name], out / 'train/t/results'
    return of


def same_trials(whole: bytes, risen: bytes) -> bool:
    "A search tries a killed trial once more under a new number, and gives it up when it dies again: the settings are drawn as by a search that nobody killed, what was finished has the same value, and nothing still runs."
    (a, b), settings = (pd.read_csv(io.BytesIO(t)) for t in (whole, risen)), ['lr', 'backbone_lr', 'batch_size', 'dropout', 'weight_decay']
    both = b[b.state == 'COMPLETE'].merge(a, on=settings, suffixes=('', '_whole'))
    draws = b.loc[b.retry_of.isna(), settings].head(len(a)).reset_index(drop=True)
    return draws.equals(a[settings]) and (both.value == both.value_whole).all() and set(b.state) <= {'COMPLETE', 'FAIL'} and set(b.error[b.state == 'FAIL']) <= {'its process ended'}


def nothing_half_written(folder: Path) -> None:
    left = [p for p in folder.rglob('.*.tmp') if '/cache/' not in str(p)]
    assert not left, f'half written: {left}'
    for p in folder.rglob('*.json'): json.loads(p.read_text())


def dies_and_rises(name: str, tiny: Path, whole, out: Path, kills: int, seed: int) -> int:
    "How often it was killed while alive."
    (seconds, expected, run), (line, again, _), rng, hit = whole(name), COMMANDS[name], random.Random(f'{name}{seed}'), 0
    for k in range(kills): hit += Command([*line, *(again if k else [])], tiny, out, run).killed(rng.uniform(.1, .8 if k == 0 else .5) * seconds)   # what a command has behind it, it need not do again
    Command([*line, *again], tiny, out, run).finish()
    for f, content in expected.items(): assert (out / f).read_bytes() == content if name != 'tune' else same_trials(content, (out / f).read_bytes()), f'{name}: {f} is another'
    nothing_half_written(out)
    return hit


@pytest.mark.parametrize('name', ['embed', 'cv', 'report-pack'])   # training: test_resume.py
def test_killed_twice(name, tiny, whole, tmp_path): assert dies_and_rises(name, tiny, whole, tmp_path / 'out', 2, 1) >= 1


@pytest.mark.slow
@pytest.mark.parametrize('name', list(COMMANDS))
def test_killed_25_times(name, tiny, whole, tmp_path):
    hit = sum(dies_and_rises(name, tiny, whole, tmp_path / str(i), 5, i) for i in range(5))
    assert hit >= 15, f'only {hit} of 25 came before the end'


@pytest.mark.parametrize('largest, where', [(200_000, '.pth'), (100_000, 'e/'), (30_000, 'Article')])
def test_a_full_disk_is_one_line(largest, where, tiny, whole, tmp_path):
    "No file may grow beyond so many bytes, as where a disk is full: one line that names the file, status 1, nothing that looks finished; with room again it goes on."
    if not hasattr(resource, 'RLIMIT_FSIZE'): pytest.skip('no limit of file sizes here')
    name = {'.pth': 'train', 'e/': 'embed', 'Article': 'report-pack'}[where]
    (_, expected, run), (line, again, _), out = whole(name), COMMANDS[name], tmp_path / 'out'
    code, said = Command(line, tiny, out, run, largest=largest).end()
    assert code == 1 and 'Traceback' not in said and 'Logging error' not in said, said[-3000:]
    last = said.strip().splitlines()[-1]
    assert last.startswith('mammography: ') and where in last and 'too large' in last and 'free some room' in last, said
    nothing_half_written(out)
    assert not any((out / f).exists() for f in expected if f.endswith(('.npy', 'predictions.csv')))
    Command([*line, *again], tiny, out, run).finish()
    assert all((out / f).read_bytes() == content for f, content in expected.items())


@pytest.mark.parametrize('name', ['train', 'embed', 'report-pack'])
def test_a_folder_that_may_not_be_written(name, tiny, whole, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    out.chmod(0o555)
    code, said = Command(COMMANDS[name][0], tiny, out, whole(name)[2], powerless=True).end()
    out.chmod(0o755)
    assert code in (1, 2) and 'Traceback' not in said and str(out) in said.strip().splitlines()[-1] and not list(out.iterdir()), said[-3000:]


def test_a_right_that_is_lost_on_the_way(tiny, whole, tmp_path):
    "The run's folder is closed after the first epoch: one line; opened again, the run goes on to the same end."
    (_, expected, _), (line, again, _), out = whole('train'), COMMANDS['train'], tmp_path / 'out'
    running, folder = Command(line, tiny, out, powerless=True), out / 't/results'
    while running.poll() is None and not (folder / 'last.pth').exists(): time.sleep(.005)
    folder.chmod(0o555)
    code, said = running.end()
    folder.chmod(0o755)
    assert code == 1 and 'Traceback' not in said and 'Permission denied' in said.strip().splitlines()[-1], said[-3000:]
    Command([*line, *again], tiny, out).finish()
    assert all((out / f).read_bytes() == content for f, content in expected.items())


def test_control_c_is_130(tiny, whole, tmp_path):
    "One line and status 130; the run can be taken up again."
    (_, expected, _), (line, again, _), out = whole('train'), COMMANDS['train'], tmp_path / 'out'
    running = Command(line, tiny, out)
    while running.poll() is None and not (out / 't/results/last.pth').exists(): time.sleep(.005)
    running.send_signal(signal.SIGINT)
    code, said = running.end()
    assert code == 130 and 'Traceback' not in said and said.rstrip().endswith('interrupted'), said[-3000:]
    Command([*line, *again], tiny, out).finish()
    assert [p.name for p in (out / 't').iterdir()] == ['results'] and all((out / f).read_bytes() == content for f, content in expected.items())


def test_two_processes_share_a_store_and_no_folder(tiny, whole, tmp_path):
    "Two trainings at once in one --outdir: two runs, one pixel store, both whole. Two embeds into one folder: one works, the other says that it is taken or finds it done."
    out = tmp_path / 'out'
    for p in [Command(COMMANDS['train'][0], tiny, out) for _ in range(2)]: p.finish()
    runs = sorted((out / 't').iterdir())
    assert [r.name for r in runs] == ['results', 'results_1']
    for r in runs: assert r.joinpath('val_predictions.csv').read_bytes() == whole('train')[1]['t/results/val_predictions.csv']
    ends = sorted(p.end() for p in [Command(COMMANDS['embed'][0], tiny, out) for _ in range(2)])
    assert [c for c, _ in ends] in ([0, 0], [0, 1], [0, 2]) and all('Traceback' not in s for _, s in ends), ends
    assert (out / 'e/features.npy').read_bytes() == whole('embed')[1]['e/features.npy']
