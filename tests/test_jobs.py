"Floor 03 with real processes: crashes, kills, hangs, large items, and what is left behind."
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mammo import jobs
from mammo.core import ConfigError, MammoError


def behave(item):
    "Does what the item says."
    kind, *arg = item if isinstance(item, tuple) else (item,)
    if kind == 'segfault': os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 'kill': os.kill(os.getpid(), signal.SIGKILL)
    if kind == 'exit': os._exit(3)
    if kind == 'raise': raise KeyError(*arg)
    if kind == 'ours': raise MammoError('no pixels', 'Look at it.', where='x.dcm')
    if kind == 'odd': raise Odd('a', 'b')
    if kind == 'unpicklable': return lambda: 0
    if kind == 'unreadable': return Unreadable()
    if kind == 'sleep': time.sleep(*arg)
    if kind == 'big': return bytes(len(arg[0]))
    if kind == 'pid': return os.getpid()
    if kind == 'env': return os.environ.get(arg[0])
    if kind == 'nested': return list(jobs.map(behave, [1], workers=1))
    if kind == 'stop-parent-item': time.sleep(60)
    return item


class Odd(Exception):
    "Pickles, and cannot be rebuilt."
    def __init__(self, a, b): super().__init__(a)


def _refuse(): raise ValueError('not to be rebuilt')


class Unreadable:
    def __reduce__(self): return _refuse, ()


def ordered(items, **kw): return sorted(jobs.map(behave, items, progress=False, **kw), key=lambda o: o.index)


def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().split(') ')[1][0] not in 'ZX'
    except OSError: return False


def children():
    "Processes below this one, apart from multiprocessing's own helper."
    pids = subprocess.run(['ps', '-ww', '-o', 'pid=,stat=,args=', '--ppid', str(os.getpid())], capture_output=True, text=True).stdout.splitlines()
    return [p for p in pids if not any(own in p for own in ('resource_tracker', 'forkserver', 'ps -ww'))]


def test_every_item_once_whatever_happens():
    items = [1, 'segfault', 2, 'kill', 'exit', ('raise', 'k'), 3, 'ours', 'odd', 'unpicklable', 'unreadable', ('sleep', 60), *range(20)]
    out = ordered(items, workers=2, timeout=1.5)
    assert [o.index for o in out] == list(range(len(items))) and [o.item for o in out] == items
    errors = {str(o.item): o.error for o in out if not o.ok}
    assert {k: type(v).__name__ for k, v in errors.items()} == {
        'segfault': 'WorkerDied', 'kill': 'WorkerDied', 'exit': 'WorkerDied', "('raise', 'k')": 'KeyError', 'ours': 'MammoError',
        'odd': 'MammoError', 'unpicklable': 'MammoError', 'unreadable': 'MammoError', "('sleep', 60)": 'ItemTimeout'}
    assert 'segfault' in str(errors['segfault']) and 'SIGSEGV' in str(errors['segfault']) and 'status 3' in str(errors['exit'])
    assert errors['ours'].where == 'x.dcm' and 'Odd' in str(errors['odd'])
    assert not children()


def test_a_worker_is_replaced():
    pids = {o.value for o in ordered(['pid', 'pid', 'kill', 'pid', 'pid'], workers=1) if o.ok}
    assert len(pids) == 2


def test_a_worker_killed_from_outside_costs_at_most_one_item():
    seen, run = [], jobs.map(behave, ['pid', *[('sleep', .15)] * 12], workers=2, progress=False)
    for o in run:  # whichever is ready comes first: not always the one whose answer is the worker's number
        seen.append(o)
        if o.item == 'pid': os.kill(o.value, signal.SIGKILL)
    assert sorted(o.index for o in seen) == list(range(13)) and sum(not o.ok for o in seen) <= 1


def test_large_items_and_results_do_not_block_each_other():
    out = ordered([('big', bytes(3_000_000)) for _ in range(12)], workers=2)
    assert all(len(o.value) == 3_000_000 for o in out)


def test_items_are_pulled_lazily():
    pulled = []

    def source():
        for i in range(10_000):
            pulled.append(i)
            yield i
    run = jobs.map(behave, source(), workers=2, progress=False)
    for _ in range(10): next(run)
    time.sleep(.3)
    assert len(pulled) <= 10 + 2 * 2 + 1 + 4
    run.close()
    assert not children()


def test_items_that_cannot_be_sent_and_an_iterable_that_fails():
    out = ordered([1, lambda: 0, 2], workers=1)
    assert [o.ok for o in out] == [True, False, True] and 'cannot be sent' in str(out[1].error)

    def source():
        yield 1
        raise OSError('gone')
    with pytest.raises(OSError, match='gone'): list(jobs.map(behave, source(), workers=1, progress=False))
    assert not children()


def test_one_thread_each_and_no_more_workers_than_items():
    before = os.environ.get('OMP_NUM_THREADS')
    assert [o.value for o in ordered([('env', 'OMP_NUM_THREADS')], workers=8)] == ['1']
    assert os.environ.get('OMP_NUM_THREADS') == before
    run = jobs.map(behave, [('sleep', .5), ('sleep', .5)], workers=16, progress=False)
    next(run)
    assert len(children()) <= 2
    run.close()


def test_empty_and_inline():
    assert ordered([], workers=3) == [] and ordered([], workers=0) == []
    assert [type(o.error).__name__ for o in ordered([1, ('raise', 'k')], workers=0)] == ['NoneType', 'KeyError']


def test_exceptions_carry_the_workers_traceback():
    error = ordered([('raise', 'k')], workers=1)[0].error
    assert 'in behave' in error.__notes__[0]


SCRIPT = textwrap.dedent('''
    import sys, time, tests_path
    from mammo import jobs
    from test_jobs import behave
    {guard}
    for o in jobs.map(behave, {items}, workers=2, progress=False): print(o.value, flush=True)
''')


def start_script(tmp_path, items, guard="if __name__ == '__main__':", **kw):
    body = SCRIPT.format(items=items, guard=guard).replace('import sys, time, tests_path', f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})')
    lines = body.strip().splitlines()
    lines[-1] = ('    ' if guard.startswith('if') else '') + lines[-1]
    (tmp_path / 'script.py').write_text('\n'.join(lines))
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs with SIGINT ignored, and children inherit that
    return subprocess.Popen([sys.executable, str(tmp_path / 'script.py')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed, **kw)


def gone_within(pids, seconds):
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end: time.sleep(.05)
    return not any(map(alive, pids))


@pytest.mark.skipif(not Path('/proc').exists(), reason='reads /proc')
def test_workers_end_with_a_killed_parent(tmp_path):
    p = start_script(tmp_path, "['pid', 'pid', 'stop-parent-item', 'stop-parent-item']")
    pids = [int(p.stdout.readline()) for _ in range(2)]
    assert all(map(alive, pids))
    p.kill()
    p.wait()
    assert gone_within(set(pids), 10)


@pytest.mark.skipif(not Path('/proc').exists(), reason='reads /proc')
def test_ctrl_c_ends_workers_with_one_traceback(tmp_path):
    p = start_script(tmp_path, "['pid', 'pid', 'stop-parent-item', 'stop-parent-item']", start_new_session=True)
    pids = [int(p.stdout.readline()) for _ in range(2)]
    time.sleep(.3)
    os.killpg(p.pid, signal.SIGINT)
    _, err = p.communicate(timeout=20)
    assert p.returncode != 0 and err.count('Traceback') == 1 and 'KeyboardInterrupt' in err
    assert gone_within(set(pids), 5)


def test_a_script_without_a_guard_is_told_so(tmp_path):
    p = start_script(tmp_path, '[1, 2]', guard='pass')
    _, err = p.communicate(timeout=60)
    assert p.returncode != 0 and "__name__ == '__main__'" in err and 'ConfigError' in err


def test_a_function_without_an_address_is_refused():
    with pytest.raises(ConfigError, match='Define it in a module'): jobs.map(lambda x: x, [1], workers=1)


def test_a_worker_starts_no_workers():
    assert isinstance(ordered(['nested'], workers=1)[0].error, ConfigError)


def test_jobs_loads_neither_numpy_nor_torch():
    code = "import sys; import mammo.jobs; print({'numpy', 'torch', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'set()'
