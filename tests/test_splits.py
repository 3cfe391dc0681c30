"Splits over many random manifests, and on mini-MIAS."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mammo.core import ConfigError, DataError, stable_hash
from mammo.splits import LeakError, assign_roles, group_folds, rows, split_proof, subset, without_test

KEY = b'a fixed key for all of the tests'
DATA = Path(__file__).parents[1].parent / 'shared' / 'data'
SEEDS = range(24)


def random_manifest(seed, key='k'):
    "2 to 120 patients, 2 to 5 classes of any rarity, 1 to 9 images a patient, now and then with differing labels."
    rng = np.random.default_rng(seed)
    k, out = int(rng.integers(2, 6)), []
    p = rng.dirichlet(np.full(k, .7))
    for patient in range(int(rng.integers(2, 121))):
        base = int(rng.choice(k, p=p))
        for i in range(int(rng.integers(1, 10))):
            target = int(rng.integers(k)) if rng.random() < .05 else base
            exam = f'E{stable_hash([seed, patient, i // 4], 6)}'
            out.append(dict(sample_id=f'{exam}_{i}', patient_key='P' + stable_hash([key, seed, patient]), exam_id=exam, file_hash=stable_hash([seed, patient, i]),
                            target=target, label='ABCDE'[target], role=''))
    return pd.DataFrame(out)


def strata(m):
    votes = m.groupby('patient_key').target.agg(lambda t: max(t.value_counts()[lambda c: c == c.max()].index))
    return votes


def shares_of(seed):
    rng = np.random.default_rng([seed, 1])
    return dict(val=float(rng.choice([0, .1, .2, .25])), test=float(rng.choice([0, .1, .2, .3])), cal=float(rng.choice([0, .1, .2])))


@pytest.mark.parametrize('seed', SEEDS)
def test_every_image_has_one_role_and_no_patient_two(seed):
    m, shares = random_manifest(seed), shares_of(seed)
    dealt = assign_roles(m, **shares)
    assert dealt.drop(columns='role').equals(m.drop(columns='role')) and (m.role == '').all()
    assert (dealt.groupby('patient_key').role.nunique() == 1).all()
    proof = split_proof(dealt)
    assert proof['disjoint'] and sum(r['images'] for r in proof['roles'].values()) == len(m)
    assert sum(r['patients'] for r in proof['roles'].values()) == m.patient_key.nunique()
    assert set(proof['roles']) <= {'train'} | {r for r, s in shares.items() if s}


@pytest.mark.parametrize('seed', SEEDS)
def test_shares_and_classes(seed):
    m, shares = random_manifest(seed), shares_of(seed)
    wanted = [r for r, s in shares.items() if s]
    people = assign_roles(m, **shares).drop_duplicates('patient_key').set_index('patient_key').role
    for s, who in strata(m).groupby(strata(m)).groups.items():
        n = people[who].value_counts()
        assert n.get('train', 0) >= 1, 'each class is trained on'
        if len(who) > len(wanted):
            for r in wanted: assert n.get(r, 0) >= 1 and (abs(n[r] - shares[r] * len(who)) < 1 or len(who) <= 8)
        else: assert sum(n) == len(who) and all(v == 1 for v in n)
    big = strata(m).value_counts().min() > 8
    for r in wanted:
        if big: assert abs((people == r).sum() - shares[r] * len(people)) <= .5 + 1e-9


@pytest.mark.parametrize('seed', SEEDS)
def test_neither_key_nor_order_nor_later_roles_move_anybody(seed):
    m = random_manifest(seed)
    by_id = lambda frame: frame.set_index('sample_id').role.sort_index()
    one = by_id(assign_roles(m, .2, .1))
    assert one.equals(by_id(assign_roles(random_manifest(seed, key='other'), .2, .1)))
    assert one.equals(by_id(assign_roles(m.sample(frac=1, random_state=seed), .2, .1)))
    assert one.equals(by_id(assign_roles(m.assign(index=5).set_index('index'), .2, .1)))
    plain, held_out = by_id(assign_roles(m, .2)), by_id(assign_roles(m, .2, .2, .1))
    small = strata(m).value_counts().min() <= 8
    if not small: assert set(plain.index[plain == 'val']) == set(held_out.index[held_out == 'val'])
    assert set(held_out.index[held_out == 'train']) <= set(plain.index[plain == 'train']) or small


def test_a_new_exam_leaves_the_order_of_the_others():
    m = random_manifest(3)
    more = pd.concat([m, m.head(1).assign(sample_id='ZZZ_0', patient_key='new', exam_id='ZZZ', file_hash='new')])
    a, b = (assign_roles(f).set_index('sample_id').role for f in (m, more))
    assert (a != b.reindex(a.index)).sum() <= 9, 'at most one patient moves'


def test_seeds_differ_and_are_fair():
    m = random_manifest(7)
    hits = sum((assign_roles(m, seed=s).drop_duplicates('patient_key').set_index('patient_key').role == 'val').astype(int) for s in range(60))
    assert .02 < hits.min() / 60 and hits.max() / 60 < .6 or strata(m).value_counts().min() <= 8
    assert len({split_proof(assign_roles(m, seed=s))['hash'] for s in range(20)}) == 20


@pytest.mark.parametrize('seed', SEEDS)
def test_folds(seed):
    m = random_manifest(seed)
    k = int(min(5, strata(m).value_counts().min()))
    if k < 2:
        with pytest.raises(DataError, match='folds'): group_folds(m, 2)
        return
    folds = group_folds(m, k)
    assert sorted(np.concatenate([v for _, v in folds])) == list(range(len(m)))
    for a, b in folds:
        assert set(m.patient_key.iloc[a]).isdisjoint(m.patient_key.iloc[b]) and len(a) + len(b) == len(m)
    names = lambda f: [sorted(f.sample_id.iloc[v]) for _, v in group_folds(f, k)]
    assert names(m) == names(random_manifest(seed, key='other')) == names(m.sample(frac=1, random_state=1))


@pytest.mark.parametrize('seed', SEEDS)
def test_subset(seed):
    m = assign_roles(random_manifest(seed), .2, .1)
    n = len(m) // 2
    part = subset(m, n)
    whole = m[m.patient_key.isin(part.patient_key)]
    assert len(whole) == len(part) and set(part.role) == set(m.role)
    assert set(subset(m, n // 2).sample_id) <= set(part.sample_id)
    other = subset(assign_roles(random_manifest(seed, key='other'), .2, .1).sample(frac=1, random_state=2), n)
    assert sorted(other.sample_id) == sorted(part.sample_id)
    split_proof(part)


def test_held_out_rows_stay_out():
    m = assign_roles(random_manifest(5), .2, .2, .1)
    left = without_test(m)
    assert set(left.role) == {'train', 'val'} and set(left.sample_id).isdisjoint(rows(m, 'test').sample_id) and set(left.sample_id).isdisjoint(rows(m, 'cal').sample_id)
    with pytest.raises(DataError): without_test(m.assign(role=''))


def test_findings():
    rng = np.random.default_rng(0)
    m = pd.DataFrame([dict(sample_id=f's{p:03}_{i}', patient_key=f'P{p}', exam_id=f'e{p}', file_hash=f'{p}.{i}', label='', role='', Mass=float(p % 10 == 0), Nodule=rng.choice([0, 1, np.nan]))
                      for p in range(60) for i in range(3)])
    dealt = assign_roles(m, .2, .2, labels=('Mass', 'Nodule'))
    assert (dealt[dealt.Mass == 1].groupby('role').patient_key.nunique() >= 1).all() and set(dealt[dealt.Mass == 1].role) == {'train', 'val', 'test'}
    assert len(group_folds(m, 3, labels=('Mass', 'Nodule'))) == 3
    with pytest.raises(DataError, match='no column target'): assign_roles(m)


def test_leaks_are_found():
    m = assign_roles(random_manifest(5))
    with pytest.raises(LeakError, match='patient_key'): split_proof(m.assign(role=np.where(np.arange(len(m)) % 2, 'train', 'val')))
    twin = m.copy()
    twin.loc[twin.role == 'val', 'file_hash'] = twin.file_hash[twin.role == 'train'].iloc[0]
    with pytest.raises(LeakError, match='file_hash'): split_proof(twin)
    for bad in (dict(val=-.1), dict(val=1), dict(val=.4, test=.6), dict(test=float('nan'))):
        with pytest.raises(ConfigError): assign_roles(m, **bad)


@pytest.mark.skipif(not (DATA / 'mini-mias').is_dir(), reason='needs ../shared/data/mini-mias')
def test_mini_mias():
    from mammo.manifest import mini_mias
    m = assign_roles(mini_mias(DATA / 'mini-mias/density.csv', key=KEY, workers=0).manifest)
    proof = split_proof(m)
    assert {r: (v['patients'], v['images']) for r, v in proof['roles'].items()} == {'train': (65, 130), 'val': (16, 32)}
    assert proof['roles']['val']['labels'] == {'D': 12, 'F': 10, 'G': 10} and proof['gaps'] == []
    other = assign_roles(mini_mias(DATA / 'mini-mias/density.csv', key=b'x' * 32, workers=0).manifest)
    assert split_proof(other)['hash'] == proof['hash']
    assert [len(v) for _, v in group_folds(m, 5)] and min(len(v) for _, v in group_folds(m, 5)) >= 28
