"What the notebook cannot show: a light import, quiet and repeatable work in fresh processes, figures without a display."
import hashlib
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mammo import projections as P
from mammo.core import DataError

HEAVY = ('umap', 'numba', 'sklearn', 'scipy', 'matplotlib', 'pandas', 'torch')


def fresh(code: str) -> subprocess.CompletedProcess:
    "A Python of its own, so that nothing imported here counts."
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])


def imagined(n=64, d=96, seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n // 4), 4)
    return (rng.normal(size=(n // 4, d))[group] + .5 * rng.normal(size=(n, d))).astype(np.float32), group % 3, group


def test_the_import_is_light():
    loaded = fresh("import sys, mammo.projections; print(*{m.split('.')[0] for m in sys.modules})").stdout.split()
    assert not set(HEAVY) & set(loaded)


def test_pca_needs_neither_umap_nor_pictures():
    loaded = fresh("import sys, numpy as np\nfrom mammo.projections import pca\npca(np.eye(6))\nprint(*{m.split('.')[0] for m in sys.modules})").stdout.split()
    assert not {'umap', 'numba', 'matplotlib', 'torch'} & set(loaded)


@pytest.mark.parametrize('name', ['pca', 'tsne', pytest.param('umap', marks=pytest.mark.slow)])  # umap compiles for 25 s in each process
def test_another_process_makes_the_same_map_and_no_noise(name):
    x = np.random.default_rng(0).normal(size=(40, 70)).astype('float32')
    code = ("import sys, hashlib, numpy as np\nfrom mammo.projections import project\nx = np.random.default_rng(0).normal(size=(40, 70)).astype('float32')\n"
            f"print(hashlib.sha256(project('{name}', x).coords.tobytes()).hexdigest())")
    other = fresh(code)
    assert other.stdout.strip() == hashlib.sha256(P.project(name, x).coords.tobytes()).hexdigest()
    assert 'arning' not in other.stderr, other.stderr[-2000:]


def test_pca_follows_the_order_of_rows():
    x, _, _ = imagined()
    turned = np.random.default_rng(0).permutation(len(x))
    np.testing.assert_allclose(np.abs(P.pca(x[turned]).coords), np.abs(P.pca(x).coords[turned]), atol=1e-4)


@pytest.mark.parametrize('n', [4, 5, 6, 9])
@pytest.mark.parametrize('dims', [2, 3])
def test_the_smallest_sets(n, dims):
    x = imagined()[0][:n]
    for name, least in (('pca', dims + 1), ('tsne', dims + 2), ('umap', dims + 2)):
        if n < least:
            with pytest.raises(DataError, match='are needed'): P.project(name, x, dims)
        else:
            coords = P.project(name, x, dims).coords
            assert coords.shape == (n, dims) and np.isfinite(coords).all()


def test_duplicate_images_are_no_obstacle():
    x = np.repeat(imagined()[0][:6], 5, 0)
    for name in P.PROJECTIONS: assert np.isfinite(P.project(name, x).coords).all()


def test_metrics_do_not_depend_on_names_of_patients_or_dtype():
    x, y, g = imagined()
    one = P.clustering_metrics(x, y, g, n_boot=50)
    assert one == P.clustering_metrics(x, y.astype(np.int8), [f'p{9999 - i}' for i in g], n_boot=50)
    assert one['clusters']['kmeans'].keys() == one['clusters']['agglomerative'].keys()


def test_every_small_labelling_gives_json():
    x = imagined()[0]
    for n in range(1, 6):
        for marked in combinations(range(n), min(n, 2)):
            y = np.zeros(n, int)
            y[list(marked)] = [1, -1][:len(marked)]
            for k in (None, 2, 5):
                out = P.clustering_metrics(x[:n], y, np.arange(n), k=k, n_boot=20)
                json.dumps(out, allow_nan=False)
                assert (out['silhouette_score'] is None) == (out['why'] is not None)
                for c in out['clusters'].values(): assert c['why'] or None not in (c['silhouette_score'], c['ari'], c['nmi'])


def test_figures_are_saved_without_a_display_and_leave_nothing_open(tmp_path):
    code = (f"import sys, numpy as np\nfrom mammo.projections import *\nx = np.random.default_rng(0).normal(size=(30, 5))\ny = np.arange(30) % 3 - 1\n"
            f"scatter(pca(x), y, ['A', 'B']).savefig(r'{tmp_path / 'a.png'}', dpi=60)\nfigure([pca(x), pca(x, 3)], y, ['A', 'B']).savefig(r'{tmp_path / 'b.png'}', dpi=60)\n"
            "print('matplotlib.pyplot' in sys.modules)")
    assert fresh(code).stdout.strip() == 'False'
    assert all((tmp_path / n).read_bytes()[:4] == b'\x89PNG' for n in ('a.png', 'b.png'))
