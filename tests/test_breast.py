"The breast floor on real films, full-field images and phantoms; no single notebook can hold these."
import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mammo.breast import Prep, breast_mask, chest_side, map_back, pectoral_mask, prepare, to_model, to_stored
from mammo.phantom import phantom

DATA = Path(__file__).parents[1].parent / 'shared' / 'data'
MIAS = DATA / 'mini-mias'
real = pytest.mark.skipif(not (MIAS / 'density.csv').exists(), reason='needs ../shared/data')
VIEWS = [(side, view) for side in 'LR' for view in ('CC', 'MLO')]
SIDE = {'L': 'left', 'R': 'right'}


def grey(path): return np.asarray(Image.open(path).convert('L'), dtype=np.float32) / 255
def iou(a, b): return (a & b).sum() / (a | b).sum()
def films(step=1): return list(csv.DictReader((MIAS / 'density.csv').open()))[::step]


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('side,view', VIEWS)
def test_phantom_outline_side_and_marker(side, view, seed):
    ph, bare = (phantom(seed + 1, side, view, seed=seed, marker=m) for m in (True, False))
    mask = breast_mask(ph.img)
    assert iou(mask, ph.breast) > .95
    assert chest_side(mask)[0] == SIDE[side]
    a, b = prepare(ph.img, laterality=side), prepare(bare.img, laterality=side)
    assert not [n for n in a.notes if 'film border' not in n] and a.flipped == (side == 'R')
    assert a.box == b.box and (np.abs(a.pixels.astype(int) - b.pixels) > 1).mean() < .005


@pytest.mark.parametrize('prep', [Prep(size=256), Prep(size=300, fit='stretch'), Prep(size=256, bits=16), Prep(size=256, stretch=True)])
def test_flip_gives_the_same_square(prep):
    for seed, (side, view) in enumerate(VIEWS):
        img = phantom(2, side, view, seed=seed).img
        a, b = prepare(img, prep), prepare(np.ascontiguousarray(img[:, ::-1]), prep)
        assert a.flipped != b.flipped
        top = 2 ** prep.bits - 1
        assert (np.abs(a.pixels.astype(int) - b.pixels) > .005 * top).mean() < 1e-4


def test_gain_border_and_inversion_keep_the_mask():
    img = phantom(3, 'L', 'MLO', seed=5).img
    mask = breast_mask(img)
    framed = np.pad(img, 12, constant_values=1.)
    assert iou(breast_mask(framed)[12:-12, 12:-12], mask) > .97
    assert iou(breast_mask(np.pad(img, 30))[30:-30, 30:-30], mask) > .97
    assert iou(breast_mask((img * .6 + .1).astype(np.float32)), mask) > .97
    assert iou(breast_mask((1 - (1 - img)).astype(np.float32)), mask) > .99
    assert iou(breast_mask(1 - img), mask) > .9


def test_points_and_maps_find_their_way_back():
    img = phantom(2, 'R', 'CC', seed=3).img
    p = prepare(img, Prep(size=200))
    pts = np.random.default_rng(0).uniform(0, 500, (50, 2))
    np.testing.assert_allclose(to_stored(to_model(pts, p.affine), p.affine), pts, atol=1e-9)
    assert iou(map_back(p.mask, p.affine, img.shape) > .5, breast_mask(img)) > .98


@pytest.mark.parametrize('img', [np.zeros((60, 50), 'f4'), np.ones((8, 4000), 'f4'), np.random.default_rng(0).random((300, 200), dtype='f4') * .005 + .4])
def test_nothing_to_see_falls_back_with_a_note(img):
    p = prepare(img, Prep(size=64))
    assert p.notes[-1] == 'the whole picture is used' and p.box == (0, 0, img.shape[1], img.shape[0])


@real
def test_every_film_has_a_breast_on_its_side():
    wrong, share = [], []
    for row in films():
        p = prepare(grey(MIAS / row['file']), Prep(size=128), laterality=row['side'])
        share.append((p.box[2] - p.box[0]) * (p.box[3] - p.box[1]) / 1024**2)
        if any('no breast' in n or 'orientation' in n or 'brighter' in n for n in p.notes): wrong.append((row['id'], p.notes))
    assert not wrong
    assert min(share) > .08 and max(share) < .95


@real
def test_films_are_invariant():
    for row in films(step=12):
        img = grey(MIAS / row['file'])
        mask = breast_mask(img)
        assert iou(breast_mask(np.ascontiguousarray(img[:, ::-1]))[:, ::-1], mask) > .995, row['id']
        assert iou(breast_mask(img * np.float32(.7) + np.float32(.1)), mask) > .97, row['id']
        assert prepare(img).pixels.tobytes() == prepare(img).pixels.tobytes()


@real
def test_labels_of_full_field_images_are_gone():
    for name, side in (('A1', 'right'), ('A2', 'left'), ('B1', 'right'), ('B2', 'right'), ('C1', 'left'), ('C2', 'right'), ('D1', 'right'), ('D2', 'right')):
        img = grey(DATA / 'density-jpg' / f'sample_{name}.jpg')
        mask = breast_mask(img)
        assert chest_side(mask)[0] == side, name
        assert .05 < mask.mean() < .7, name
        corner = np.s_[:img.shape[0] // 8, :img.shape[1] // 8] if side == 'right' else np.s_[:img.shape[0] // 8, -img.shape[1] // 8:]
        assert not mask[corner].any(), name


@real
def test_muscle_is_found_where_films_show_it():
    "Outlines were looked at; here only that the estimate is steady and of a sensible size."
    for name in ('mdb001', 'mdb010', 'mdb022', 'mdb045'):
        img = grey(MIAS / 'pgm' / f'{name}.pgm')
        mask = breast_mask(img)
        muscle, sure = pectoral_mask(img, mask)
        assert sure > .7 and .03 < muscle.sum() / mask.sum() < .4, name
        assert img[muscle].mean() > img[mask & ~muscle].mean() * .95, name
