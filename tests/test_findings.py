"A run of several findings behind the evaluation: every command asks one finding, or all, through the same functions that serve classes. Pictures are generated: a bright square at its place is a finding."
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from mammo.config import CardConfig, DataConfig, EvalExportConfig, EvidenceConfig, GalleryConfig, GradcamConfig, ImageConfig, ModelConfig, OptimConfig, ReportPackConfig, RunConfig, SearchConfig, SeedsConfig, TrainConfig, TuneConfig, TuneRunConfig, ValidateConfig
from mammo.core import ConfigError, Task
from mammo.manifest import image_csv
from mammo.runs import RunDir

LABELS = ('Nodule', 'Mass', 'Effusion')
TASK = Task('chest', LABELS, 'multilabel', monitor='auroc_macro')
PLACES = dict(zip(LABELS, ((8, 8), (8, 44), (44, 26))))


def pictures(folder: Path, people: int, seed: int, name: str = 'p') -> Path:
    "Two pictures a person; an eighth of the truth is not told. Squares are faint, so that a small model errs."
    g, rows = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for i in range(2 * people):
        img, has = 60 + 25 * g.standard_normal((64, 64)), {l: g.random() < share for l, share in zip(LABELS, (.4, .3, .25))}
        for l in (l for l in LABELS if has[l]): img[(r := PLACES[l][0]):r + 12, (c := PLACES[l][1]):c + 12] += 45
        Image.fromarray(np.clip(img, 0, 255).astype(np.uint8)).save(folder / f'{name}{i}.png')
        rows.append({'path': f'{name}{i}.png', 'patient': f'{name}{i // 2}', 'view': ('PA', 'AP')[i % 2], **{l: '' if g.random() < .125 else int(x) for l, x in has.items()}})
    pd.DataFrame(rows).to_csv(folder / 'labels.csv', index=False)
    return folder / 'labels.csv'


def data_of(cfg): return image_csv(cfg.data.csv, cfg.data.dicom_root, task=TASK, key=b'k' * 32, workers=0)


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
    home = tmp_path_factory.mktemp('findings')
    return TrainConfig(data=DataConfig(csv=pictures(home / 'study', 45, 0), classes='chest', test_split=.4, val_split=.2), image=ImageConfig(img_size=64, region='full'), model=ModelConfig(arch='resnet18', weights='none', dropout=0.),
                       optim=OptimConfig(epochs=6, batch_size=16, lr=2e-3, backbone_lr=2e-3, optimizer='adamw', warmup_epochs=0, augment=False, class_weights='none', threshold_grid=(.05, .95, .05)),
                       run=RunConfig(outdir=home / 'runs', precision='fp32', device='cpu', num_workers=0, n_boot=100))


@pytest.fixture(scope='module')
def runs(cfg):
    from mammo.pipeline import train
    return [train(data_of(cfg), replace(cfg, run=replace(cfg.run, seed=s))) for s in (42, 43)]


@pytest.fixture(scope='module')
def known(runs):
    "Truth, answer and probability of the test images of a finding, read from the table without our functions."
    t = pd.read_csv(runs[0].file('predictions', 'test'))
    def of(label):
        own = t[t[f'true_{label}'].notna()].sort_values('sample_id')
        return own[f'true_{label}'].to_numpy(int), own[f'pred_{label}'].to_numpy(int), own[f'prob_{label}'].to_numpy()
    return of


def test_metrics_are_scikit_learns(runs, known):
    m, each = runs[0].read_json('metrics', 'test'), [known(l) for l in LABELS]
    for l, (y, said, p) in zip(LABELS, each):
        assert m['per_class'][l]['auroc'] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
        assert m['per_class'][l]['f1'] == pytest.approx(sk.f1_score(y, said), abs=1e-12)
    assert m['micro_f1'] == pytest.approx(sk.f1_score(np.concatenate([y for y, *_ in each]), np.concatenate([s for _, s, _ in each])), abs=1e-12)
    assert m['weighted_f1'] == pytest.approx(np.average([sk.f1_score(y, s) for y, s, _ in each], weights=[y.sum() for y, *_ in each]), abs=1e-12)
    assert m['auroc_macro'] > .6   # it has learned something


def test_one_finding_is_two_classes(runs, known):
    from mammo.looking import looks_at
    from mammo.seeds import read_training
    for l in looks_at(runs[0].path, data_of, num_workers=0):   # asks the models again
        y, said, p = known(l.t.label)
        assert l.t.table.target.tolist() == y.tolist() and l.t.table.decoded.tolist() == said.tolist()
        assert l.learners[''].objective.decode(l.probs).tolist() == said.tolist()   # the finding's own threshold
        assert l.organ == 'picture' and not l.marker(0).any() and l.mask(0).all()
    with pytest.raises(ConfigError, match='Nodule, Mass, Effusion'): read_training(runs[0], 'test')
    with pytest.raises(ConfigError, match='--label Node: is none'): read_training(runs[0], 'test', 'Node')


def test_gradcam_looks_at_the_square(runs):
    from mammo.heatmaps import gradcam, squares
    from mammo.looking import look
    run, role = gradcam(GradcamConfig(run=tuple(r.path for r in runs), label=('Nodule', 'Effusion'), per=1, images=12, audit_images=3, n_boot=30, num_workers=0), data_of)
    pages = {p.stem: p.read_text() for p in run.file('heat_report', role).parent.glob('*.md')}
    assert set(pages) == {'test', 'test_Nodule', 'test_Effusion'} and '[Nodule](test_Nodule.md)' in pages['test'] and 'Do the runs look at the same place?' in pages['test_Nodule']
    written = [p for p in run.path.glob('gradcam/*') if p.suffix in ('.md', '.csv', '.json')]
    assert not [p.name for p in written if 'breast' in p.read_text() or 'pectoral' in p.read_text()]
    found = look(run.path, data_of, 'test', num_workers=0, label='Nodule')
    at = np.flatnonzero((found.t.table.target == 1) & (found.t.table.decoded == 1))
    heat = squares(found, at, [1] * len(at), 64)
    assert len(at) > 5 and heat[:, :32, :32].sum() > 2 * heat[:, 32:, 32:].sum()   # the quarter with the square against the one across


def test_seeds_report_and_export(runs, cfg, tmp_path, known):
    from mammo.evalexport import eval_export
    from mammo.report import report_pack
    from mammo.seeds import seeds
    out = seeds(SeedsConfig(runs=tuple(r.path for r in runs), out=tmp_path / 'seeds', label=('Mass',), n_boot=100))
    said, values = out.read_json('seeds'), [r.read_json('metrics', 'test')['per_class']['Mass']['auroc'] for r in runs]
    assert said['figures']['auroc_Mass']['seeds']['sd'] == pytest.approx(np.std(values, ddof=1)) and RunDir(out.path / 'Mass').has('seeds_report')
    written = {p.name for p in report_pack(ReportPackConfig(run=(runs[0].path,), assets_dir=tmp_path / 'Article/assets', label=('Mass',), per=1, num_workers=0), data_of)}
    assert {'chest_roc_seed42.png', 'chest_counts_seed42.png', 'chest_cooccurrence_seed42.png', 'chest_gradcam_Mass_seed42.png', 'chest_train_seed42.png'} <= written
    threshold = runs[0].read_json('thresholds')['Mass']['threshold']
    assert f'| Mass | {threshold:.2f} |' in (tmp_path / 'Article/sections/chest_model.md').read_text()
    export = eval_export(EvalExportConfig(run=runs[0].path, out=tmp_path / 'export'))
    assert all((export.path / f'figures/test_{n}.png').is_file() for n in ('roc', 'counts', 'cooccurrence', 'features')) and str(tmp_path) not in (export.path / 'summary.json').read_text()


def test_gallery_evidence_and_card(runs, tmp_path, known):
    from mammo.card import card
    from mammo.evidence import evidence
    from mammo.gallery import gallery
    page = gallery(GalleryConfig(run=runs[0].path, out=tmp_path / 'gallery', label='Mass', size=64, num_workers=0), data_of).file('gallery').read_text()
    y, said, _ = known('Mass')
    assert page.count('<article') == len(y) and page.count('class="right"') == (y == said).sum() and 'Mammogram' not in page
    run = evidence(EvidenceConfig(run=runs[0].path, label=('Mass', 'Nodule'), worst=4, n_boot=30, num_workers=0), data_of, None)
    told = run.read_json('evidence')['findings']
    assert {l: told[l]['errors']['wrong'] for l in told} == {l: int((known(l)[0] != known(l)[1]).sum()) for l in ('Mass', 'Nodule')}
    assert run.has('subgroups', 'test_Mass') and run.has('abstention', 'test_Nodule') and 'role test, Mass' in run.file('evidence_report').read_text()
    with pytest.raises(ConfigError, match='--curve'): evidence(EvidenceConfig(run=runs[0].path, curve=(5, 9)), data_of, None)
    text = card(CardConfig(run=runs[0].path, out=tmp_path / 'card')).file('card').read_text()
    assert f'Mass, AUROC: {runs[0].read_json("metrics", "test")["per_class"]["Mass"]["auroc"]:.4g}' in text and 'Mass threshold: ' in text


def test_validation_at_another_site(runs, tmp_path):
    "With a temperature the probabilities change and no answer does."
    from mammo.validation import validate
    there = ValidateConfig(run=runs[0].path, csv=pictures(tmp_path / 'there', 12, 5, 'q'), out=tmp_path / 'as it is', n_boot=50, num_workers=0)
    plain = validate(there, data_of)
    runs[0].write_json('calibration', {'temperature': 2.})
    try: warm = validate(replace(there, out=tmp_path / 'tempered'), data_of)
    finally: runs[0].file('calibration').unlink()
    a, b = (pd.read_csv(r.file('validation_predictions')) for r in (plain, warm))
    assert all((a[f'pred_{l}'] == b[f'pred_{l}']).all() for l in LABELS) and not np.allclose(a.prob_Mass, b.prob_Mass)
    assert '## By finding' in plain.file('validation_report').read_text() and plain.read_json('validation')['findings'][1]['n'] == a.true_Mass.notna().sum()


def test_cross_validation(cfg, tmp_path):
    from mammo.crossval import cross_validate, out_of_fold
    from mammo.pipeline import train
    from mammo.seeds import read_training, read_whole
    quick = replace(cfg, data=replace(cfg.data, test_split=0.), optim=replace(cfg.optim, epochs=1), run=replace(cfg.run, outdir=tmp_path, n_boot=50))
    cv = cross_validate(data_of(quick), quick, 2, tmp_path / 'cv', train)
    said, folds = cv.read_json('cv_summary'), [RunDir(cv.path / r) for r in cv.read_json('cv_summary')['runs']]
    each = [f.read_json('metrics', 'test') for f in folds]
    assert said['figures']['auroc_Mass']['folds'] == pytest.approx([m['per_class']['Mass']['auroc'] for m in each]) and said['figures']['micro_f1']['mean'] == pytest.approx(np.mean([m['micro_f1'] for m in each]))
    low, high = said['figures']['auroc_macro']['interval']
    assert low < said['figures']['auroc_macro']['mean'] < high
    t = out_of_fold(folds)
    own = t[t.true_Mass.notna()]
    assert read_whole(cv, 'test').figures['auroc_Mass'] == pytest.approx(said['figures']['auroc_Mass']['mean'])   # areas within folds
    assert read_training(cv, 'test', 'Mass').figures['accuracy'] == pytest.approx((own.true_Mass == own.pred_Mass).mean())   # counts pooled


def test_search(cfg, tmp_path):
    from mammo.search import search
    few = TuneConfig(data=cfg.data, image=cfg.image, model=replace(cfg.model, dropout=.2), optim=replace(cfg.optim, epochs=2, lr=1e-3, backbone_lr=None), run=TuneRunConfig(outdir=tmp_path / 'tune', precision='fp32', device='cpu', num_workers=0, n_boot=0), search=SearchConfig(trials=2, startup_trials=1))
    said = search(data_of(few), few).read_json('study')
    assert said['trials']['COMPLETE'] + said['trials']['PRUNED'] == 2 and said['monitor'] == 'val auroc_macro'
    best = RunDir(tmp_path / 'tune' / said['best']['run'])
    assert said['best']['value'] == pytest.approx(max(best.read_json('history')['val_auc']))
