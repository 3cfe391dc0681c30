"Floor 15 with real processes and hostile files: kills, damage, races, duplicates, and what the store does not say."
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammo import ingest as ing
from mammo.breast import Prep
from mammo.core import DataError, hash_file
from mammo.ingest import CACHE_MODES, PixelStore, Source, ingest, open_pixels
from mammo.phantom import phantom, write_phantom

PREP = Prep(size=128)
REAL = Path(__file__).parents[1].parent / 'shared' / 'data' / 'dicom'
PATIENT, ACCESSION = 'SECRET-PATIENT-7', 'SECRET-EXAM-9'


def listed(paths):
    return pd.DataFrame({'sample_id': [f'S{i}' for i in range(len(paths))], 'path': [str(p) for p in paths],
                         'file_hash': [hash_file(p) if Path(p).is_file() else '' for p in paths]})


def contents(folder):
    "Every entry of a store, by name."
    return {p.name: p.read_bytes() for p in Path(folder).rglob('*.pix')}


def run(manifest, store, **kw): return ingest(manifest, PREP, store, **{'workers': 2, 'progress': False, **kw})


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "Ten phantoms as DICOM."
    root = tmp_path_factory.mktemp('study')
    return [write_phantom(root / f'{i}.dcm', phantom(1 + i % 4, 'LR'[i % 2], ('CC', 'MLO')[i // 2 % 2], seed=i, rows=320, columns=256), PATIENT, ACCESSION) for i in range(10)]


@pytest.fixture(scope='module')
def clean(study, tmp_path_factory):
    "The store that an undisturbed run makes."
    folder = tmp_path_factory.mktemp('clean')
    report = run(listed(study), folder)
    assert report.frame.ok.all() and report.workers == 2 and report.summary()['decoded'] == 10
    return folder


def test_a_second_run_decodes_nothing(study, clean):
    before = {p: p.stat().st_mtime_ns for p in clean.rglob('*.pix')}
    report = run(listed(study), clean)
    s = report.summary()
    assert (s['decoded'], s['from_store'], s['workers'], s['readable']) == (0, 10, 0, 1.0)
    assert before == {p: p.stat().st_mtime_ns for p in clean.rglob('*.pix')} and len(before) == 10


def test_processes_and_workers_do_not_change_an_entry(study, clean, tmp_path):
    run(listed(study), tmp_path, workers=0)
    assert contents(tmp_path) == contents(clean)


def test_cache_modes_agree_bit_for_bit(study, tmp_path):
    manifest = listed(study[:4]).assign(laterality=list('LRLR'))
    images = {m: open_pixels(manifest, PREP, m, tmp_path if m == 'disk' else None, workers=2, progress=False) for m in CACHE_MODES}
    for i in range(4):
        a, b, c = (images[m][i] for m in CACHE_MODES)
        assert a.dtype == np.uint8 and a.shape == (128, 128) and (a == b).all() and (b == c).all()
        assert not any(x.flags.writeable for x in (a, b, c))
    for m in CACHE_MODES: assert (pickle.loads(pickle.dumps(images[m].take([2, 0])))[1] == images['disk'][0]).all()


def test_sixteen_bits(study, tmp_path):
    pixels = open_pixels(listed(study[:1]), Prep(size=128, bits=16), 'disk', tmp_path, workers=0)[0]
    assert pixels.dtype == np.uint16 and pixels.max() > 255


def test_an_image_at_512_is_below_300_kb(study, tmp_path):
    ingest(listed(study[:1]), Prep(), tmp_path, workers=0)
    assert max(map(len, contents(tmp_path).values())) < 300_000


@pytest.mark.parametrize('damage', ['bit', 'cut', 'empty', 'foreign', 'garbage'])
def test_a_damaged_entry_is_made_anew(study, clean, tmp_path, damage):
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    one, other = sorted(tmp_path.rglob('*.pix'))[:2]
    data = bytearray(one.read_bytes())
    data[5000] ^= 1
    one.write_bytes({'bit': data, 'cut': data[:9000], 'empty': b'', 'foreign': other.read_bytes(), 'garbage': os.urandom(len(data))}[damage])
    report = run(listed(study), tmp_path, workers=0)
    assert (report.summary()['rebuilt'], report.summary()['decoded'], int(report.frame.rebuilt.sum())) == (1, 1, 1)
    assert any('damaged' in n for n in report.frame.notes[report.frame.rebuilt].iloc[0])
    assert contents(tmp_path) == contents(clean)


SCRIPT = '''
import sys
sys.path.insert(0, {tests!r})
from test_ingest import PREP, listed, run
if __name__ == '__main__':
    print(run(listed({paths!r}), {store!r}, workers={workers}).summary()['decoded'], flush=True)
'''


def start(tmp_path, name, paths, store, workers=1):
    script = tmp_path / f'{name}.py'
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), paths=[str(p) for p in paths], store=str(store), workers=workers))
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_in_the_middle_and_run_again(study, clean, tmp_path):
    store = tmp_path / 'store'
    p = start(tmp_path, 'killed', study, store)
    end = time.monotonic() + 60
    while len(contents(store)) < 3 and time.monotonic() < end: time.sleep(.005)
    p.send_signal(signal.SIGKILL)
    p.wait()
    time.sleep(.5)
    done = contents(store)
    assert 3 <= len(done) <= 10 and all(clean_entry == contents(clean)[k] for k, clean_entry in done.items())
    assert run(listed(study), store).summary()['decoded'] == 10 - len(done)
    assert contents(store) == contents(clean)


def test_two_processes_at_once(study, clean, tmp_path):
    store = tmp_path / 'store'
    both = [start(tmp_path, f'p{i}', study if i else study[::-1], store) for i in range(2)]
    outs = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], outs
    assert contents(store) == contents(clean)
    assert 10 <= sum(int(out) for out, _ in outs) <= 20


def test_hostile_files_are_rows(study, tmp_path):
    bad = tmp_path / 'bad'
    bad.mkdir()
    data = study[0].read_bytes()
    files = {'empty.dcm': b'', 'cut.dcm': data[:len(data) // 3], 'header.dcm': data[:132], 'noise.dcm': os.urandom(5000), 'text.csv': b'a,b\n1,2\n',
             'half.png': b'\x89PNG\r\n\x1a\n' + os.urandom(99)}
    for name, raw in files.items(): (bad / name).write_bytes(raw)
    (bad / 'folder.dcm').mkdir()
    os.mkfifo(bad / 'pipe.dcm')
    paths = [study[0], *(bad / n for n in files), bad / 'folder.dcm', bad / 'pipe.dcm', bad / 'gone.dcm', study[1]]
    report = run(listed(paths), tmp_path / 'store')
    f = report.frame
    assert f.ok.tolist() == [True] + [False] * (len(paths) - 2) + [True]
    assert (f.reason[~f.ok] != '').all() and (f.detail[~f.ok] != '').all() and f.reason.iloc[-2] == 'missing'
    assert not any(str(tmp_path) in d for d in f.detail)
    again = run(listed(paths), tmp_path / 'store')
    assert again.frame.reason.tolist() == f.reason.tolist() and again.summary()['from_store'] == 2 + len(files)
    with pytest.raises(DataError, match='row 1'): open_pixels(listed(paths), PREP, 'disk', tmp_path / 'store', workers=0)[1]


def test_a_changed_file_is_not_stored_under_the_old_name(study, tmp_path):
    path = tmp_path / 'x.dcm'
    shutil.copy(study[0], path)
    manifest = listed([path])
    shutil.copy(study[1], path)
    report = run(manifest, tmp_path / 'store', workers=0)
    assert report.frame.reason.tolist() == ['changed'] and not contents(tmp_path / 'store')
    assert run(listed([path]), tmp_path / 'store', workers=0).frame.ok.all()


def test_copies_share_an_entry_and_one_good_copy_is_enough(study, tmp_path):
    a, b = tmp_path / 'a.dcm', tmp_path / 'b.dcm'
    shutil.copy(study[0], a)
    shutil.copy(study[0], b)
    manifest = listed([a, b])
    a.unlink()
    report = run(manifest, tmp_path / 'store', workers=0)
    assert report.frame.ok.all() and report.summary()['contents'] == 1 and len(contents(tmp_path / 'store')) == 1


def test_the_manifests_index_is_kept(study, clean):
    manifest = listed(study).set_index(pd.Index([7] * 10)).iloc[::-1]
    report = run(manifest, clean)
    assert report.frame.index.equals(manifest.index) and report.frame.sample_id.tolist() == manifest.sample_id.tolist()
    assert ingest(manifest.iloc[:0], PREP, clean).summary()['images'] == 0


def test_the_store_knows_no_patient_and_no_path(clean, study):
    for raw in contents(clean).values():
        for secret in (PATIENT, ACCESSION, str(study[0].parent), 'SECRET', 'PHANTOM'): assert secret.encode() not in raw


def test_old_rubbish_is_swept_and_young_is_left(study, clean, tmp_path):
    shutil.copytree(clean, tmp_path, dirs_exist_ok=True)
    folder = next(tmp_path.rglob('*.pix')).parent
    old, young = folder / '.x.pix.1.aa.tmp', folder / '.x.pix.2.bb.tmp'
    for p in (old, young): p.write_bytes(b'half')
    os.utime(old, (0, 0))
    run(listed(study), tmp_path, workers=0)
    assert not old.exists() and young.exists()


@dataclass(frozen=True)
class Deadly:
    "Dies over some files, each time or only the first time."
    log: str

    def __call__(self, source):
        with open(self.log, 'a') as f: f.write(source.where + '\n')
        tries = Path(self.log).read_text().splitlines().count(source.where)
        if source.where == 'always' or source.where == 'once' and tries == 1: os.kill(os.getpid(), signal.SIGKILL)
        if source.where == 'hangs': time.sleep(60)
        return {'key': source.key, 'reason': '', 'detail': ''}, None, False


def test_a_file_that_kills_its_worker_gets_one_more_try(tmp_path):
    names = ['fine', 'always', 'once', 'hangs', 'good']
    sources = [Source(f'{i:064x}', '', (n,)) for i, n in enumerate(names)]
    records = {key: record for key, record, _, _ in ing._decode_all(sources, Deadly(str(tmp_path / 'log')), 2, 2., False)}
    assert {s.where: records[s.key]['reason'] for s in sources} == {'fine': '', 'always': 'worker-died', 'once': '', 'hangs': 'timeout', 'good': ''}
    tries = (tmp_path / 'log').read_text().splitlines()
    assert {n: tries.count(n) for n in names} == {'fine': 1, 'always': 2, 'once': 2, 'hangs': 2, 'good': 1}


def test_ingest_loads_no_torch():
    code = "import sys, mammo.ingest; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'False'


@pytest.mark.skipif(not REAL.is_dir(), reason='no real DICOM files beside the project')
def test_real_files_are_images_or_rows(tmp_path):
    paths = sorted(p for p in REAL.rglob('*') if p.is_file() and not p.name.startswith('.') and p.suffix.lower() not in ('.md', '.txt', '.csv', '.json'))
    report = run(listed(paths), tmp_path)
    f = report.frame
    assert len(f) == len(paths) and f.ok.any()
    assert set(f.reason[~f.ok]) <= set(ing.dicom.NOT_ELIGIBLE) | set(ing.dicom.BROKEN), f[~f.ok][['sample_id', 'reason', 'detail']]
    store = PixelStore(tmp_path, PREP)
    for key in f.key[f.ok]: assert store.get(key).shape == (128, 128)
    assert run(listed(paths), tmp_path).summary()['decoded'] == 0
