"Floor 03 on a real local Ray: the same contract as with processes, and a cluster that is left as it was found."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mammo import jobs
from mammo.core import ConfigError
from test_jobs import alive, behave, gone_within

ray = pytest.importorskip('ray')


@pytest.fixture(scope='module')
def cluster():
    "One cluster for all tests of this file."
    with jobs.cluster(cpus=2) as here: yield here


def ordered(items, **kw): return sorted(jobs.map(behave, items, progress=False, engine='ray', **kw), key=lambda o: o.index)


def test_every_item_once_whatever_happens(cluster):
    items = [1, 'segfault', 2, 'kill', 'exit', ('raise', 'k'), 3, 'ours', 'odd', 'unpicklable', 'unreadable', ('sleep', 60), *range(20)]
    out = ordered(items, workers=2, timeout=2)
    assert [o.index for o in out] == list(range(len(items))) and [o.item for o in out] == items
    errors = {str(o.item): o.error for o in out if not o.ok}
    assert {k: type(v).__name__ for k, v in errors.items()} == {
        'segfault': 'WorkerDied', 'kill': 'WorkerDied', 'exit': 'WorkerDied', "('raise', 'k')": 'KeyError', 'ours': 'MammoError',
        'odd': 'MammoError', 'unpicklable': 'MammoError', 'unreadable': 'MammoError', "('sleep', 60)": 'ItemTimeout'}
    assert errors['ours'].where == 'x.dcm' and errors['ours'].fix == 'Look at it.' and 'Odd' in str(errors['odd'])
    assert 'in behave' in errors["('raise', 'k')"].__notes__[0]
    assert ray.is_initialized()


def test_the_work_is_done_by_rays_processes(cluster):
    run = jobs.map(behave, ['pid', ('sleep', 1), 'kill', 'pid', 'pid'], workers=1, progress=False, engine='ray')
    first = next(run).value
    if Path('/proc').exists(): assert 'ray::' in Path(f'/proc/{first}/cmdline').read_text()  # it waits for the second item
    pids = {first} | {o.value for o in run if o.item == 'pid'}
    assert len(pids) == 2 and os.getpid() not in pids
    assert gone_within(pids, 10)  # the workers of a call end with it, the cluster does not


def test_a_worker_killed_from_outside_costs_at_most_one_item(cluster):
    run = jobs.map(behave, ['pid', *[('sleep', .15)] * 12], workers=2, progress=False, engine='ray')
    done = []
    for o in run:  # in the order of completion: others may come first
        done.append(o)
        if o.item == 'pid': os.kill(o.value, signal.SIGKILL)
    assert len(done) == 13 and sum(not o.ok for o in done) <= 1


def test_large_items_and_results(cluster):
    assert all(len(o.value) == 3_000_000 for o in ordered([('big', bytes(3_000_000)) for _ in range(8)], workers=2))


def test_items_are_pulled_lazily_and_closing_ends_the_work(cluster):
    pulled = []

    def source():
        for i in range(10_000):
            pulled.append(i)
            yield i if i < 20 else ('sleep', 60)
    run = jobs.map(behave, source(), workers=2, progress=False, engine='ray')
    for _ in range(10): next(run)
    time.sleep(.3)
    assert len(pulled) <= 10 + 2 + 1
    start = time.monotonic()
    run.close()
    assert time.monotonic() - start < 5
    assert ray.cluster_resources()['CPU'] == 2 and _free_within(10) == 2


def _free_within(seconds):
    "CPUs of the cluster that nobody holds."
    end = time.monotonic() + seconds
    while (free := ray.available_resources().get('CPU', 0)) < 2 and time.monotonic() < end: time.sleep(.1)
    return free


def test_more_workers_than_the_cluster_holds(cluster):
    "Two actors find room, the others never start, and nothing waits for them."
    assert [o.value for o in ordered(range(12), workers=6)] == list(range(12))
    assert _free_within(10) == 2


def test_threads(cluster):
    assert [o.value for o in ordered([('env', 'OMP_NUM_THREADS')], workers=1)] == ['1']
    assert [o.value for o in ordered([('env', 'OMP_NUM_THREADS')], workers=1, threads=2)] == ['2']
    with pytest.raises(ConfigError, match='asks for 3 CPU, the whole cluster has 2'): ordered([1], threads=3)


def test_a_worker_may_start_workers_here(cluster):
    assert [o.value for o in ordered(['nested'], workers=1)[0].value] == [1]


def test_items_that_cannot_be_sent_and_an_iterable_that_fails(cluster):
    out = ordered([1, lambda: 0, 2], workers=1)
    assert [o.ok for o in out] == [True, False, True] and 'cannot be sent' in str(out[1].error)

    def source():
        yield 1
        raise OSError('gone')
    with pytest.raises(OSError, match='gone'): list(jobs.map(behave, source(), workers=1, progress=False, engine='ray'))
    assert ordered([], workers=2) == []


def test_another_address_than_the_one_in_use_is_refused(cluster):
    with pytest.raises(ConfigError, match='--ray-address 10.0.0.1:6379'): list(jobs.map(behave, [1], engine='ray', ray_address='10.0.0.1:6379'))
    assert [o.value for o in ordered([1], ray_address=ray.get_runtime_context().gcs_address)] == [1]


# Folds: the loop, processes, Ray.
@pytest.fixture(scope='module')
def tiny(study, tmp_path_factory):
    "A data set of phantoms, and settings for a training of seconds. Sums are cut into threads in one way everywhere."
    import torch
    from mammo.config import DataConfig, ImageConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
    from mammo.datasets import load_dataset
    out, threads, told = tmp_path_factory.mktemp('folds'), torch.get_num_threads(), os.environ.get('OMP_NUM_THREADS')
    cfg = TrainConfig(data=DataConfig(csv=study / 'classificacao.csv', dicom_root=study / 'archive'), image=ImageConfig(img_size=64, cache_dir=out / 'cache'), model=ModelConfig(arch='resnet18', weights='none'),
                      optim=OptimConfig(epochs=1, batch_size=16, lr=1e-3, warmup_epochs=0, class_weights='none'), run=RunConfig(outdir=out, precision='fp32', device='cpu', n_boot=0, cv_folds=2))
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)
    yield load_dataset(csv=cfg.data.csv, dicom_root=cfg.data.dicom_root, workers=0), cfg
    torch.set_num_threads(threads)
    os.environ.pop('OMP_NUM_THREADS') if told is None else os.environ.update(OMP_NUM_THREADS=told)


def on(cfg, **run):
    from dataclasses import replace
    return replace(cfg, run=replace(cfg.run, **run))


def small_train(parts, cfg):
    "A run without a network. Its second fold is killed the first time."
    import json
    from mammo.config import fingerprint, flat
    from mammo.runs import new_run
    with new_run(cfg.run.outdir, flat(cfg), fingerprint(cfg), cfg.run.resume) as run:
        if run.path.parent.name == 'fold_2' and not (tried := run.path.parent / 'tried').exists():
            tried.write_text('')
            os.kill(os.getpid(), signal.SIGKILL)
        run.write_json('summary', {'pid': os.getpid(), 'roles': json.loads(parts.manifest.role.value_counts().to_json()), 'threads': os.environ['OMP_NUM_THREADS']})
    return run


@pytest.mark.slow
@pytest.mark.parametrize('engine', ['process', 'ray'])
def test_a_killed_fold_costs_itself_and_the_same_call_goes_on(cluster, tiny, tmp_path, engine):
    from mammo.core import RunError
    from mammo.crossval import fold_runs
    data, cfg = tiny
    cfg = on(cfg, engine=engine, fold_workers=2, cv_folds=3)
    with pytest.raises(RunError, match='1 of 3 runs failed: fold 2: WorkerDied.*goes on'): fold_runs(data, cfg, 3, tmp_path, small_train)
    stamps = {f: (tmp_path / f'fold_{f}/results/summary.json').stat().st_mtime_ns for f in (1, 3)}
    runs = fold_runs(data, cfg, 3, tmp_path, small_train)
    assert [r.path for r in runs] == [tmp_path / f'fold_{f}/results' for f in (1, 2, 3)]  # the dead run of fold 2 was taken up
    assert {f: (tmp_path / f'fold_{f}/results/summary.json').stat().st_mtime_ns for f in (1, 3)} == stamps
    said = [r.read_json('summary') for r in runs]
    assert os.getpid() not in {s['pid'] for s in said} and {s['threads'] for s in said} == {'1'} and all(set(s['roles']) == {'train', 'val', 'test'} for s in said)


@pytest.fixture(scope='module')
def plain(tiny, tmp_path_factory):
    from mammo.crossval import cross_validate
    from mammo.pipeline import train
    data, cfg = tiny
    return cross_validate(data, cfg, 2, tmp_path_factory.mktemp('plain'), train)


@pytest.mark.parametrize('engine', [pytest.param('process', marks=pytest.mark.slow), 'ray'])
def test_folds_are_the_same_wherever_they_run(cluster, tiny, plain, tmp_path, engine):
    from mammo.crossval import cross_validate
    from mammo.pipeline import train
    from mammo.runs import RunDir, artefact
    data, cfg = tiny
    cv = cross_validate(data, on(cfg, engine=engine, fold_workers=2), 2, tmp_path / 'cv', train)
    a, b = plain.read_json('cv_summary'), cv.read_json('cv_summary')
    assert a['runs'] == b['runs'] and a['figures'] == b['figures'] and a['exam'] == b['exam']
    files = [artefact(k, r) for k in ('predictions', 'embeddings', 'confusion', 'metrics', 'exams') for r in ('val', 'test')]
    for run in a['runs']:
        one, other = (RunDir(c.path / run).read_json('history') | {'seconds': None} for c in (plain, cv))
        assert one == other
        for f in files: assert (plain.path / run / f).read_bytes() == (cv.path / run / f).read_bytes(), f
        assert RunDir(cv.path / run).read_json('summary')['ingest']['decoded'] == 0  # it was done before the folds
        assert sorted(p.name for p in (plain.path / run).iterdir()) == sorted(p.name for p in (cv.path / run).iterdir())


@pytest.mark.slow
def test_seeds_are_the_same_on_ray(cluster, tiny, tmp_path):
    from mammo.crossval import seed_runs
    from mammo.pipeline import train
    data, cfg = tiny
    cfg = on(cfg, cv_folds=0, seeds=(42, 43))
    here, there = (seed_runs(data, c, tmp_path / name, train) for name, c in (('here', cfg), ('there', on(cfg, engine='ray', fold_workers=2))))
    written = [[r.file('predictions').read_bytes() for r in runs] for runs in (here, there)]
    assert written[0] == written[1] and written[0][0] != written[0][1]
    assert [r.read_json('summary')['seed'] for r in there] == [42, 43] and len({r.read_json('summary')['split_hash'] for r in (*here, *there)}) == 1


def test_ingest_is_the_same_on_ray(cluster, tiny, tmp_path):
    from mammo.breast import Prep
    from mammo.ingest import open_pixels
    data, _ = tiny
    m = data.manifest.head(12)
    here, there = (open_pixels(m, Prep(size=64), 'disk', tmp_path / e, 2, progress=False, engine=e) for e in ('process', 'ray'))
    assert [p.name for p in sorted((tmp_path / 'process').rglob('*.px'))] == [p.name for p in sorted((tmp_path / 'ray').rglob('*.px'))]
    assert there.report.summary() | {'seconds': 0} == here.report.summary() | {'seconds': 0}
    assert all((here[i] == there[i]).all() for i in range(len(m)))
    assert (open_pixels(m, Prep(size=64), 'memory', workers=2, progress=False, engine='ray')[3] == here[3]).all()


@pytest.mark.slow
def test_shards_give_the_same_bytes(cluster, tiny, tmp_path):
    "Whole, in shards of processes and of Ray, and taken up after a shard was lost."
    from mammo.config import EmbedConfig, EmbedImageConfig, EmbedModelConfig, EmbedRunConfig
    from mammo.embeddings import embed_features
    from mammo.runs import artefact
    data, train_cfg = tiny
    cfg = EmbedConfig(data=train_cfg.data, image=EmbedImageConfig(img_size=64, cache_dir=train_cfg.image.cache_dir), model=EmbedModelConfig(arch='resnet18', weights='none'),
                      run=EmbedRunConfig(batch_size=16, device='cpu'))
    made = lambda name, **kw: embed_features(data, on(cfg, outdir=tmp_path / name, **kw))
    whole = made('whole').file('features').read_bytes()
    for engine in ('process', 'ray'):
        run = made(engine, engine=engine, shards=2)
        assert run.file('features').read_bytes() == whole and not list(run.path.glob('*.part*'))
    run.file('summary').unlink()  # as if killed in the middle
    run.file('unfinished').write_bytes(whole[:len(whole) * 5 // 8])
    run.file('features').unlink()
    assert made('ray', engine='ray', shards=2).file('features').read_bytes() == whole
    assert run.read_json('summary')['resumed_at'] % 16 == 0 < run.read_json('summary')['resumed_at'] and not list(run.path.glob(artefact('shard', '*')))

# What follows has clusters of its own.
SCRIPT = '''
import os, signal, sys, time
sys.path.insert(0, {tests!r})
from mammo import jobs
from test_jobs import behave
{body}
'''


def script(body, timeout=150, **kw):
    "A process of its own, and what it printed."
    code = SCRIPT.format(tests=str(Path(__file__).parent), body=body)
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=timeout, **kw)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_cluster_is_left_as_it_was_found():
    "Nothing to do asks for none; one of our own ends with the work, also where two calls overlap; one of somebody else goes on."
    said = script('''
list(jobs.map(behave, [], engine='ray')); import ray; print(ray.is_initialized())
a, b = (jobs.map(behave, [1, 2, 3], workers=1, engine='ray', progress=False) for _ in range(2))
next(a); first = ray.get_runtime_context().gcs_address; next(b); a.close(); print(ray.is_initialized()); print(sorted(o.value for o in b)); print(ray.is_initialized())
ray.init('local', num_cpus=1, include_dashboard=False, log_to_driver=False)
print([o.value for o in jobs.map(behave, [7], engine='ray', progress=False)]); print(ray.is_initialized(), ray.get_runtime_context().gcs_address != first)
''')
    assert [l for l in said if 'raylet' not in l] == ['False', 'True', '[2, 3]', 'False', '[7]', 'True True']


def test_an_address_where_nobody_answers():
    said = script('''
for address in ('127.0.0.1:9', 'here'):
    try: list(jobs.map(behave, [1], engine='ray', ray_address=address))
    except jobs.ConfigError as e: print(e.where)
''')
    assert [l for l in said if l.startswith('--')] == ['--ray-address 127.0.0.1:9', '--ray-address here']


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').exists(), reason='reads /proc')
def test_nothing_is_left_of_a_killed_parent():
    code = SCRIPT.format(tests=str(Path(__file__).parent), body='''
for o in jobs.map(behave, ['pid', 'stop-parent-item'], workers=1, engine='ray', progress=False):
    print(o.value, ' '.join(str(p.pid) for ps in jobs._ray()._private.worker._global_node.all_processes.values() for p in [i.process for i in ps]), flush=True)
''')
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    pids = set(map(int, p.stdout.readline().split()))
    assert len(pids) > 3 and all(map(alive, pids))
    p.kill()
    p.wait()
    assert gone_within(pids, 30)
