"A search as people run it: killed and resumed, several workers, failing trials, other settings, Ray; and the test role out of its reach."
import json
import os
import shutil
import signal
import time

import pandas as pd
import pytest

from forked import Forked, command

SMALL = ['--csv', 'classificacao.csv', '--dicom-root', 'archive', '--arch', 'resnet18', '--weights', 'none', '--no-train-backbone', '--img-size', '64', '--epochs', '2', '--n-boot', '0', '--num-workers', '0',
         '--precision', 'fp32', '--device', 'cpu', '--outdir', 'o/tune', '--startup-trials', '2', '--prune-after', '1']


@pytest.fixture
def place(study, tmp_path, monkeypatch):
    for name in ('classificacao.csv', 'archive'): (tmp_path / name).symlink_to(study / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return tmp_path


def tune(*more):
    from mammo.cli import main
    return main(['tune', *SMALL, *map(str, more)])


def start(*more): return Forked(command, ['tune', *SMALL, *map(str, more)])


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err[-3000:]
    return out, err


def read(path): return json.loads(path.read_text())
def table(place, folder='o/tune'): return pd.read_csv(place / folder / 'trials.csv')
def params(t): return t[[c for c in t if c in ('lr', 'batch_size', 'dropout', 'weight_decay', 'augment')]].to_dict('records')


@pytest.fixture(scope='module')
def undisturbed(study, tmp_path_factory):
    "Four trials that nobody disturbed."
    folder = tmp_path_factory.mktemp('undisturbed')
    for name in ('classificacao.csv', 'archive'): (folder / name).symlink_to(study / name)
    done = Forked(command, ['tune', *SMALL, '--trials', '4', '--no-prune'], cwd=folder, env=os.environ | {'OMP_NUM_THREADS': '1'})
    return folder, finish(done)[0]


def test_each_trial_is_a_run(undisturbed):
    folder, said = undisturbed
    t, study = table(folder), read(folder / 'o/tune/study.json')
    assert t.state.tolist() == ['COMPLETE'] * 4 and study['trials'] == {'COMPLETE': 4, 'PRUNED': 0, 'FAIL': 0, 'RUNNING': 0}
    assert study['best']['value'] == t.value.max() and study['best']['run'] == t.run[t.value.idxmax()]
    for i, r in enumerate(t.itertuples(), 1):
        run = folder / 'o/tune' / r.run
        trial, lines = read(run / 'optuna_trial.json'), [json.loads(l) for l in (run / f'ray_hpo_trial_{i:04d}.jsonl').read_text().splitlines()]
        assert trial['state'] == 'COMPLETE' and trial['value'] == pytest.approx(r.value) and trial['params']['lr'] == pytest.approx(r.lr) and len(lines) == 2
        assert all((run / f).exists() for f in ('best_model.pth', 'val_predictions.csv', 'summary.json', 'train_history.json', 'metrics/val_metrics.json'))
        assert read(run / 'data_manifest.json')['ingest']['decoded'] == 0  # decoded once, before the first of them
        assert read(run / 'config.json')['settings']['dropout'] == r.dropout
    assert (folder / 'o/tune/figures/history.png').stat().st_size > 5_000 and (folder / 'o/tune/figures/parallel.png').exists()
    assert 'train with it' in said and 'too high' in said
    text = (folder / 'o/tune/study.md').read_text()
    assert all(f'--seed {s}' in text for s in (42, 43, 44)) and '4 complete' in text and '10 with different values are needed' in text


@pytest.mark.slow
def test_what_is_found_can_be_trained(undisturbed, tmp_path, monkeypatch):
    "The command line of the page, word for word, trains with the values of the best trial on the same roles."
    import shlex
    from mammo.cli import main
    folder = tmp_path / 'copy'
    shutil.copytree(undisturbed[0], folder, symlinks=True)
    monkeypatch.chdir(folder)
    study = read(folder / 'o/tune/study.json')
    assert main(shlex.split(study['train_with'][0])[1:]) == 0
    own, best = read(folder / 'o/tune/final/results/summary.json'), read(folder / 'o/tune' / study['best']['run'] / 'summary.json')
    assert {k: own[k] for k in study['best']['params']} == {k: best[k] for k in study['best']['params']} == study['best']['params']
    assert own['roles']['val']['hash'] == best['roles']['val']['hash'] and own['ingest']['decoded'] == 0
    assert own['metrics']['val']['bal_acc_adj'] == pytest.approx(study['best']['value'])  # seed 42 is the seed of the trials


def test_killed_and_resumed(undisturbed, place):
    "A dead trial is failed and tried once more; what was finished stays; everything ends as if nothing had happened."
    process = start('--trials', 4, '--no-prune')
    history = place / 'o/tune/trials/trial_0002/results/train_history.json'
    while process.poll() is None and not history.exists(): time.sleep(.005)
    assert process.poll() is None, 'it ended before it could be killed'
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = (place / 'o/tune/trials/trial_0001/results/best_model.pth').stat().st_mtime_ns
    assert tune('--trials', 4, '--no-prune') == 0
    t, whole = table(place), table(undisturbed[0])
    assert (place / 'o/tune/trials/trial_0001/results/best_model.pth').stat().st_mtime_ns == kept
    assert t.state.tolist() == ['COMPLETE', 'FAIL', 'COMPLETE', 'COMPLETE', 'COMPLETE'] and t.error[1] == 'its process ended' and t.retry_of[2] == 2
    assert [p for p, again in zip(params(t), t.retry_of.notna()) if not again] == params(whole) and params(t)[2] == params(t)[1], 'the draws are those of a search that nobody killed'
    assert t.value[[0, 2]].tolist() == whole.value[:2].tolist()
    assert read(place / 'o/tune/study.json')['trials']['RUNNING'] == 0


def test_a_second_death_is_final(place):
    "Two trials are left as a killed process leaves them: begun, with nobody who holds them."
    from mammo.cli import parse
    from mammo.config import TuneConfig
    from mammo.search import claimed, searched, settle
    cfg = parse(TuneConfig, [*SMALL, '--trials', '2', '--fixed', 'augment'])
    for n in range(2):
        run, study = settle(cfg, searched(cfg))
        with claimed(study, run, cfg, searched(cfg)) as trial: assert trial.number == n
    assert tune('--trials', 2, '--fixed', 'augment') == 0
    t = table(place)
    assert t.state.tolist()[:2] == ['FAIL', 'FAIL'] and params(t)[1] == params(t)[0] and all(p != params(t)[0] for p in params(t)[2:])
    assert t.retry_of.notna().sum() == 1 and t.state.isin(['COMPLETE', 'PRUNED']).sum() == 2 and 'augment' not in t


def test_a_half_line_in_the_journal(undisturbed, place):
    shutil.copytree(undisturbed[0] / 'o', place / 'o')
    with open(place / 'o/tune/study_journal.log', 'ab') as f: f.write(b'{"op_code": 4, "wor')
    assert tune('--trials', 5, '--no-prune') == 0
    assert table(place).state.tolist() == ['COMPLETE'] * 5


def test_finished_says_so_and_other_settings_are_refused(undisturbed, place, capsys):
    shutil.copytree(undisturbed[0] / 'o', place / 'o')
    before = {p: p.stat().st_mtime_ns for p in (place / 'o/tune').rglob('*') if p.is_file() and not p.name.endswith('.lock')}
    assert tune('--trials', 4, '--no-prune') == 0
    assert '4 trials are finished' in capsys.readouterr().err
    for more, said in ((['--epochs', 3], '--epochs was 2, now 3'), (['--lr', '2e-4'], '--lr was 0.0001, now 0.0002'), (['--seed', 43], '--seed was 42, now 43'), (['--engine', 'ray'], '--engine was optuna, now ray'),
                       (['--storage', 'sqlite:///x.db'], '--storage'), (['--fixed', 'augment'], '--fixed')):
        assert tune('--trials', 9, '--no-prune', *more) != 0
        assert said in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (place / 'o/tune').rglob('*') if p.is_file() and not p.name.endswith('.lock')} == before


def test_mistakes_end_the_command_before_a_trial(place, capsys):
    for more, said in ((['--weights', 'absent.pth'], 'absent.pth'), (['--lr', '0.5'], '--lr'), (['--cv-folds', 3], '--cv-folds'), (['--view-specific'], '--view-specific'), (['--class-weights', '1,2'], '--class-weights'),
                       (['--storage', 'nonsense://x'], '--storage'), (['--fixed', 'depth'], '--fixed'), (['--ray-address', 'auto'], '--ray-address'), (['--trials', 0], '--trials')):
        assert tune(*more) == 2, more
        assert said in capsys.readouterr().err
    assert not (place / 'o/tune/trials').exists()


def test_another_folder_is_left_alone(place, capsys):
    (place / 'o/tune').mkdir(parents=True)
    (place / 'o/tune/config.json').write_text('{"schema": 1, "settings": {}}')
    assert tune() != 0
    assert 'belongs to a training run' in capsys.readouterr().err


def test_failing_trials(place, monkeypatch, capsys):
    "An exception in a training is a row of the table; five in a row end the search."
    import mammo.training
    plain = mammo.training.train_epoch
    def short_of_memory(learner, loader, optimizer, optim, *more):
        if optim.batch_size in bad: raise MemoryError('no room for the batch')
        return plain(learner, loader, optimizer, optim, *more)
    monkeypatch.setattr(mammo.training, 'train_epoch', short_of_memory)
    bad = (16,)
    assert tune('--trials', 3, '--no-prune') == 0
    t = table(place)
    assert t.state.eq('FAIL').tolist() == t.batch_size.eq(16).tolist() and t.state.eq('COMPLETE').sum() == 3 and t.state[0] == 'FAIL'
    assert t.error[0] == 'MemoryError: no room for the batch' and 'no room for the batch' in (place / 'o/tune/study.md').read_text()
    assert read(place / 'o/tune/trials/trial_0001/results/optuna_trial.json')['state'] == 'FAIL' and t.retry_of.isna().all()
    bad = (8, 16, 32)
    assert tune('--trials', 9, '--no-prune') == 1
    assert '5 trials in a row have failed; the last: MemoryError' in capsys.readouterr().err
    bad = ()
    assert tune('--trials', 4, '--no-prune') == 0  # and it can go on
    assert len(table(place)) == len(t) + 6


def test_pruned_trials_keep_their_files(place, monkeypatch):
    import mammo.training
    plain = mammo.training.quick_metrics
    values = iter([.5, .5, .5, .5, .1, .1, .1, .1])
    monkeypatch.setattr(mammo.training, 'quick_metrics', lambda *a: plain(*a) | {'bal_acc_adj': next(values)})
    assert tune('--trials', 4) == 0
    t = table(place)
    assert t.state.tolist() == ['COMPLETE', 'COMPLETE', 'PRUNED', 'PRUNED'] and t.epochs.tolist() == [2, 2, 1, 1]
    for run in t.run[2:]:
        trial = read(place / 'o/tune' / run / 'optuna_trial.json')
        assert trial['state'] == 'PRUNED' and trial['intermediate_values'] == {'1': .1} and trial['value'] == .1
        assert len(list((place / 'o/tune' / run).glob('ray_hpo_*.jsonl'))) == 1 and not (place / 'o/tune' / run / 'summary.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('storage', [[], ['--storage', 'sqlite:///o.db']])
def test_two_commands_on_one_storage(place, storage):
    "They share the work: every number once, no trial too many, and a killed one leaves its part to the other."
    a = start('--trials', 5, *storage)
    while a.poll() is None and not list(place.glob('o/tune/trials/trial_0001/results')): time.sleep(.01)
    b = start('--trials', 5, *storage)
    while a.poll() is None and b.poll() is None and len(list(place.glob('o/tune/trials/*'))) < 3: time.sleep(.01)
    if not storage and a.poll() is None: os.kill(a.pid, signal.SIGKILL)
    finish(b)
    a.communicate()
    t = table(place)
    assert t.state.isin(['COMPLETE', 'PRUNED']).sum() == 5 and t.state.isin(['COMPLETE', 'PRUNED', 'FAIL']).all()
    assert t.trial.tolist() == list(range(1, len(t) + 1)) and len(t) == 5 + t.state.eq('FAIL').sum() <= 6
    assert all((place / 'o/tune' / r / 'summary.json').exists() for r in t.run[t.state == 'COMPLETE']) and t.run[t.state == 'PRUNED'].notna().all()


@pytest.mark.slow
def test_workers_and_the_death_of_one(place):
    process = start('--trials', 4, '--workers', 2, '--no-prune')
    while process.poll() is None and not list(place.glob('o/tune/trials/trial_0002/results/config.json')): time.sleep(.01)
    held = next(p for p in children(process.pid) if holds(p, place / 'o/tune/trials/trial_0002/.lock'))
    os.kill(held, signal.SIGKILL)
    finish(process)
    t = table(place)
    assert t.state.eq('COMPLETE').sum() == 4 and t.state.eq('FAIL').sum() == 1 and t.error[1] == 'its process ended' and (t.retry_of == 2).sum() == 1


def children(pid): return [int(c) for t in os.listdir(f'/proc/{pid}/task') for c in open(f'/proc/{pid}/task/{t}/children').read().split()]


def holds(pid, path):
    try: return any(os.path.realpath(f'/proc/{pid}/fd/{f}') == str(path.resolve()) for f in os.listdir(f'/proc/{pid}/fd'))
    except OSError: return False


def trials_of(folder):
    "All that a search says of its trials, but for the clock."
    t = pd.read_csv(folder / 'trials.csv').drop(columns='seconds')
    return t.to_csv(), [(folder / r / 'val_predictions.csv').read_bytes() for r in t.run], [{k: v for k, v in read(folder / r / 'train_history.json').items() if k != 'seconds'} for r in t.run]


def test_the_test_role_is_out_of_reach(study, tmp_path):
    "Labels of test dealt anew, its pixels replaced, its rows gone: the trials are the same to the byte. The same done to val changes them."
    from mammo.config import DataConfig, ImageConfig, ModelConfig, OptimConfig, SearchConfig, TuneConfig, TuneRunConfig
    from mammo.datasets import load_dataset
    from mammo.manifest import DataSet
    from mammo.search import reachable, search
    from mammo.splits import assign_roles
    data = load_dataset(csv=study / 'classificacao.csv', dicom_root=study / 'archive', key=b'k' * 32)
    dealt = assign_roles(data.manifest, .2, .25, .15, 42)

    def cfg(name): return TuneConfig(data=DataConfig(min_readable=0), image=ImageConfig(img_size=64), model=ModelConfig(arch='resnet18', weights='none', train_backbone=False), optim=OptimConfig(epochs=2),
                                     run=TuneRunConfig(outdir=tmp_path / name, precision='fp32', device='cpu', n_boot=0, num_workers=0), search=SearchConfig(trials=2, startup_trials=2))

    def spoiled(role):
        rows, m = dealt.role.isin(role), dealt.copy()
        m.loc[rows, 'target'] = (m.target[rows] + 1) % 4
        for i in m.index[rows]:
            other = tmp_path / f'spoiled_{"_".join(role)}_{i}.dcm'
            shutil.copy(m.path[m.role == 'train'].iloc[i % 10], other)
            m.loc[i, 'path'] = str(other)
        return m.drop(columns='file_hash', errors='ignore')
    tables = {'plain': dealt.drop(columns='file_hash', errors='ignore'), 'spoiled': spoiled(['test', 'cal']), 'without': dealt[~dealt.role.isin(['test', 'cal'])].drop(columns='file_hash', errors='ignore').reset_index(drop=True), 'val': spoiled(['val'])}
    for name, m in tables.items(): search(DataSet(data.name, data.task, m, []), cfg(name))
    said = {name: trials_of(tmp_path / name) for name in tables}
    assert said['plain'] == said['spoiled'] == said['without']
    assert said['plain'] != said['val']
    assert not list(tmp_path.rglob('test_*')) and not list(tmp_path.rglob('cal_*'))
    seen = reachable(DataSet(data.name, data.task, dealt, []), cfg('plain'))
    assert set(seen.manifest.sample_id).isdisjoint(dealt.sample_id[dealt.role.isin(['test', 'cal'])]) and len(seen.manifest) == dealt.role.isin(['train', 'val']).sum()


def test_names_of_the_seed(place):
    assert tune('--trials', 1, '--optuna-trial-id', 'hpo_trial', '--ray-trial-name', 'lr', '--ray-logdir', 'logs') == 0
    run = place / 'o/tune/trials/trial_0001/results'
    assert read(run / 'optuna_trial.json')['trial_id'] == 'hpo_trial_0001'
    assert (place / 'logs/ray_hpo_lr_0001.jsonl').read_bytes() == (run / 'ray_hpo_lr_0001.jsonl').read_bytes()


RAY = ['--engine', 'ray', '--workers', 2]


@pytest.mark.slow
def test_a_real_ray(place):
    "The same artefacts from actors of Ray; an actor that is killed costs its trial; the same command goes on."
    pytest.importorskip('ray')
    process = start('--trials', 3, '--no-prune', *RAY)
    while process.poll() is None and not list(place.glob('o/tune/trials/trial_0002/results/config.json')): time.sleep(.02)
    held = next(int(p) for p in os.listdir('/proc') if p.isdigit() and holds(p, place / 'o/tune/trials/trial_0002/.lock'))
    assert held != process.pid
    os.kill(held, signal.SIGKILL)
    finish(process)
    t = table(place)
    assert t.state.eq('COMPLETE').sum() == 3 and t.state.eq('FAIL').sum() == 1 and t.error[1] == 'its process ended' and (t.retry_of == 2).sum() == 1
    assert {'lr': 1e-4, 'batch_size': 16, 'dropout': .2, 'weight_decay': 0., 'augment': True} in params(t)[:2]  # two actors begin at once
    for i, r in t[t.state == 'COMPLETE'].iterrows():
        trial = read(place / 'o/tune' / r.run / 'optuna_trial.json')
        assert trial['state'] == 'COMPLETE' and trial['value'] == pytest.approx(r.value) and (place / 'o/tune' / r.run / f'ray_hpo_trial_{i + 1:04d}.jsonl').exists()
    finish(start('--trials', 4, '--no-prune', *RAY))
    assert table(place).state.eq('COMPLETE').sum() == 4 and table(place).run[:len(t)].tolist() == t.run.tolist()
    assert 'Engine ray' in (place / 'o/tune/study.md').read_text()


@pytest.mark.slow
def test_ray_trains_what_optuna_trains(place, undisturbed):
    "The first trial has the same values in both, and ends in the same predictions."
    pytest.importorskip('ray')
    finish(start('--trials', 1, '--no-prune', '--engine', 'ray'))
    a, b = (f / 'o/tune/trials/trial_0001/results' for f in (place, undisturbed[0]))
    assert (a / 'val_predictions.csv').read_bytes() == (b / 'val_predictions.csv').read_bytes()
    assert read(a / 'optuna_trial.json') == read(b / 'optuna_trial.json')
