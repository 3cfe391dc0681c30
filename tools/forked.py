"""Processes that begin with the libraries imported. To import torch and what belongs to it takes a command six seconds of processor time, and the tests start
hundreds of commands and notebooks. A server process imports once and forks for each; the fork is a process of its own, which may be killed, may fill the disk, and has its own folder, environment and output."""
import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

LIBRARIES = ['torch', 'torchvision', 'lightning_fabric', 'pandas', 'scipy.ndimage', 'scipy.stats', 'sklearn.cluster', 'sklearn.linear_model', 'sklearn.ensemble', 'sklearn.manifold', 'matplotlib.figure', 'pydicom', 'PIL.Image',
             'tyro', 'captum.attr', 'mammo.cli', 'mammo.recipes.all', 'mammo.embeddings', 'mammo.report']
SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(LIBRARIES)


def command(words: list[str]) -> None:
    "`mammography WORDS…`"
    sys.argv = ['mammography', *words]
    from mammo.cli import main
    sys.exit(main(words))


def _begin(call: Callable, args: tuple, folder: str, env: dict[str, str], said: tuple[str, str], method: str) -> None:
    "In a process group of its own, so that its workers can be killed with it; they start as those of the caller would."
    multiprocessing.set_start_method(method, force=True)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place, to in zip(said, (1, 2)):
        f = os.open(place, os.O_WRONLY | os.O_APPEND)
        os.dup2(f, to), os.close(f)
    os.chdir(folder)
    os.environ.clear(), os.environ.update(env)
    import torch
    torch.set_num_threads(int(env.get('OMP_NUM_THREADS', 0)) or torch.get_num_threads())
    try: call(*args)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without
        sys.stdout.flush(), sys.stderr.flush()


class Forked:
    "What `subprocess.Popen` is for a program, for a function of this project. Output goes to files, so that nobody waits for a full pipe."
    def __init__(self, call: Callable, *args, cwd: str | Path = '.', env: dict[str, str] | None = None):
        self._said = tuple(tempfile.mkstemp(prefix='said_')[1] for _ in range(2))
        self._process = SERVER.Process(target=_begin, args=(call, args, os.path.abspath(cwd), dict(os.environ if env is None else env), self._said, multiprocessing.get_start_method()))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None: return self._process.exitcode
    def poll(self) -> int | None: return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f'not ended after {timeout} s')
        return self._process.exitcode

    def said(self) -> tuple[str, str]:
        "Standard output and standard error, so far."
        return tuple(Path(p).read_text(encoding='utf-8', errors='replace') for p in self._said)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.said()

    def send_signal(self, which: int) -> None: os.kill(self.pid, which)

    def kill(self) -> None:
        "With all that it started."
        try: os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        self._process.join()

    def __del__(self):
        for p in getattr(self, '_said', ()): Path(p).unlink(missing_ok=True)
