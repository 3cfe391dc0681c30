"The descriptors on real films, and in worker processes: no single notebook can hold these."
from pathlib import Path

import numpy as np
import pytest

from mammo.breast import Prep, prepare
from mammo.descriptors import DESCRIPTORS, breast_region, describe, describe_all, percent_density
from mammo.ingest import open_pixels
from mammo.datasets import load_dataset
from mammo.phantom import phantom

MIAS = Path(__file__).parents[1].parent / 'shared' / 'data' / 'mini-mias'
real = pytest.mark.skipif(not (MIAS / 'density.csv').exists(), reason='needs ../shared/data')


def squares(n, prep=Prep(size=256)):
    views = [('CC', 'MLO')[i % 2] for i in range(n)]
    return [prepare(phantom(1 + i % 4, 'L', v, seed=i, rows=320, columns=256).img, prep, 'L').pixels for i, v in enumerate(views)], views


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    "Every eighth film of mini-MIAS at 512 pixels, in 8 and in 16 bits."
    manifest = load_dataset('mini-mias', csv=MIAS / 'density.csv', workers=0, progress=False).manifest.iloc[::8]
    store = tmp_path_factory.mktemp('store')
    return manifest, *(open_pixels(manifest, Prep(size=512, bits=b), store_dir=store, workers=0, progress=False) for b in (8, 16))


@pytest.mark.parametrize('size', [64, 224, 512, 1024])
def test_any_size_is_described(size):
    pixels, views = squares(2, Prep(size=size))
    table, problems = describe_all(pixels, views, workers=0, progress=False)
    assert not problems and table.shape == (2, len(DESCRIPTORS)) and np.isfinite(table).all()


def test_workers_give_the_same_and_survive_a_bad_image():
    pixels, views = squares(5)
    pixels[2] = np.zeros((256, 256), np.uint8)
    here, there = (describe_all(pixels, views, workers=w, progress=False) for w in (0, 2))
    assert np.array_equal(here[0], there[0], equal_nan=True) and here[1] == there[1]
    assert [p['row'] for p in here[1]] == [2] and np.isnan(here[0][2]).all() and np.isfinite(np.delete(here[0], 2, 0)).all()


@real
def test_films_are_all_described_and_bits_agree(films):
    manifest, eight, sixteen = films
    a, b = (describe_all(p, manifest['view'], workers=0, progress=False) for p in (eight, sixteen))
    assert not a[1] and not b[1] and np.isfinite(a[0]).all()
    spread = a[0].std(0) + 1e-6
    assert np.quantile(np.abs(a[0] - b[0]) / spread, .99) < .1


@real
def test_pixels_travel_to_workers(films):
    manifest, pixels, _ = films
    there, problems = describe_all(pixels.take(range(3)), list(manifest['view'])[:3], workers=1, progress=False)
    assert not problems and np.array_equal(there, [describe(pixels[i], 'MLO') for i in range(3)])


@real
def test_padding_and_muscle(films):
    _, pixels, _ = films
    px = pixels[0]
    assert np.allclose(describe(np.pad(px, ((40, 40), (0, 80))), 'MLO'), describe(px, 'MLO'), rtol=1e-5, atol=1e-6)
    cut = [breast_region(pixels[i], 'MLO') for i in range(len(pixels))]
    assert np.mean([any('left out' in n for n in notes) for _, notes in cut]) > .7
    assert all(0 <= percent_density(pixels[i], m) <= 100 for i, (m, _) in enumerate(cut))


@real
def test_percent_density_follows_the_classes():
    from scipy.stats import spearmanr
    manifest = load_dataset('mini-mias', csv=MIAS / 'density.csv', workers=0, progress=False).manifest.iloc[::2]
    pixels = open_pixels(manifest, Prep(size=256), cache_mode='memory', workers=0, progress=False)
    estimate = [percent_density(pixels[i], breast_region(pixels[i], 'MLO')[0]) for i in range(len(pixels))]
    assert spearmanr(estimate, manifest.target.astype(int))[0] > .4
