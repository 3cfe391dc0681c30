"Seeds, external validation, model card and reporting sheet as people run them: real short trainings on phantoms, through the command line."
import json
import shutil

import numpy as np
import pandas as pd
import pytest

SMALL = ['--arch', 'resnet18', '--weights', 'none', '--no-train-backbone', '--img-size', '48', '--epochs', '1', '--warmup-epochs', '0', '--lr', '1e-3', '--n-boot', '50', '--num-workers', '0', '--precision', 'fp32', '--device', 'cpu',
         '--feature-cache', '1', '--test-split', '.25']
QUICK = ['--n-boot', '50', '--num-workers', '0', '--precision', 'fp32', '--device', 'cpu', '--folds', '3']


def run(*argv):
    from mammo.cli import main
    return main([str(a) for a in argv])


def read(path): return json.loads(path.read_text())


@pytest.fixture(scope='module')
def trained(study, tmp_path_factory):
    "Three seeds on the same roles, with a calibration set, and one on other roles."
    folder = tmp_path_factory.mktemp('trained')
    data = ['--csv', study / 'classificacao.csv', '--dicom-root', study / 'archive', '--outdir', folder / 'runs', *SMALL]
    for more in (['--seed', 42], ['--seed', 43], ['--seed', 44], ['--seed', 42, '--split-seed', 7]): assert run('train-density', *data, *more) == 0
    return folder / 'runs'


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
    "Another hospital: phantoms with patient numbers of its own and two makers, one file that is no image, and an exam without a label."
    import pydicom
    from mammo.phantom import write_study
    folder = tmp_path_factory.mktemp('elsewhere')
    write_study(folder, n_exams=16, seed=9, rows=96, columns=80, workers=0, progress=False)
    for i, exam in enumerate(sorted((folder / 'archive').iterdir())):
        for file in exam.glob('*.dcm'):
            ds = pydicom.dcmread(file)
            ds.PatientID, ds.Manufacturer = f'AWAY-{ds.PatientID}', ('ALPHA', 'BETA')[i % 2]
            ds.save_as(file)
    (exam / 'broken.dcm').write_bytes(b'no image')
    return folder


def three(trained): return [trained / n for n in ('results', 'results_1', 'results_2')]


def test_table_of_seeds_equals_the_artefacts(trained, tmp_path, capsys):
    assert run('seeds', '--runs', *three(trained), '--out', tmp_path / 's', '--n-boot', 200) == 0
    said, table = read(tmp_path / 's/seeds.json'), pd.read_csv(tmp_path / 's/seeds.csv').set_index('run')
    assert said['role'] == 'test' and [r['seed'] for r in said['runs']] == [42, 43, 44]
    for f in ('accuracy', 'balanced_accuracy', 'kappa_quadratic', 'macro_f1', 'auroc_macro'):
        own = [read(r / 'metrics/test_metrics.json')[f] for r in three(trained)]
        assert table[f].iloc[:3].tolist() == pytest.approx(own) and table[f]['sd'] == pytest.approx(np.std(own, ddof=1)) and table[f]['mean'] == pytest.approx(np.mean(own))
        assert [table[f]['lowest'], table[f]['highest']] == pytest.approx([min(own), max(own)])
    answers = [pd.read_csv(r / 'test_predictions.csv', dtype=str).sort_values('sample_id').pred_label.to_numpy() for r in three(trained)]
    assert said['agreement']['identical']['value'] == pytest.approx(np.mean((answers[0] == answers[1]) & (answers[0] == answers[2])))
    text = (tmp_path / 's/seeds.md').read_text()
    assert 'must not be added' in text and '± ' in text and (tmp_path / 's/figures/seeds.png').stat().st_size > 10_000
    assert not any(k in text for k in pd.read_csv(trained / 'results/test_predictions.csv').patient_key)
    assert '± ' in capsys.readouterr().out


def test_what_does_not_belong_together(trained, tmp_path, capsys):
    other, out = trained / 'results_3', ['--out', tmp_path / 's', '--n-boot', 20]
    assert run('seeds', '--runs', *three(trained)[1:], other, *out) == 2
    assert '--allow-different-data' in capsys.readouterr().err and not (tmp_path / 's').exists()
    assert run('seeds', '--runs', *three(trained)[1:], other, *out, '--allow-different-data') == 0
    said = read(tmp_path / 's/seeds.json')
    assert said['figures'] == {} and said['agreement'] is None and any('training images' in r or '--split-seed' in r for r in said['remarks'])
    assert run('seeds', '--runs', *three(trained), *out) == 2  # another table lies there
    assert '--overwrite' in capsys.readouterr().err


def test_one_bad_run_does_not_stop_the_table(trained, tmp_path):
    bad = {}
    for name in ('unfinished', 'no_predictions', 'forged', 'garbled'): bad[name] = shutil.copytree(trained / 'results_2', tmp_path / name)
    (bad['unfinished'] / 'summary.json').unlink()
    (bad['no_predictions'] / 'test_predictions.csv').unlink()
    metrics = read(bad['forged'] / 'metrics/test_metrics.json')
    (bad['forged'] / 'metrics/test_metrics.json').write_text(json.dumps(metrics | {'accuracy': .99}))
    (bad['garbled'] / 'summary.json').write_text('{')
    assert run('seeds', '--role', 'test', '--runs', *three(trained)[:2], *bad.values(), three(trained)[0], '--out', tmp_path / 's', '--n-boot', 20) == 0
    reasons = {r['run']: r['reason'] for r in read(tmp_path / 's/seeds.json')['runs'][2:]}
    assert all(word in reasons[name] for name, word in {'unfinished': 'not finished', 'no_predictions': 'cannot be read', 'forged': 'differ in accuracy', 'garbled': 'no JSON', 'results': 'stands twice'}.items())
    assert len([r for r in read(tmp_path / 's/seeds.json')['runs'] if r['status'] == 'used']) == 2


def test_validation_is_what_predict_says(trained, elsewhere, tmp_path):
    flags = ['--csv', elsewhere / 'classificacao.csv', '--dicom-root', elsewhere / 'archive']
    assert run('validate', '--run', trained / 'results', *flags, '--out', tmp_path / 'v', *QUICK) == 0
    said, table = read(tmp_path / 'v/validation.json'), pd.read_csv(tmp_path / 'v/validation_predictions.csv', dtype={'exam_id': str})
    assert run('predict', '--run', trained / 'results', '--input', elsewhere / 'archive', '--out', tmp_path / 'p.csv', '--num-workers', 0, '--precision', 'fp32', '--device', 'cpu') == 0
    predicted = pd.read_csv(tmp_path / 'p.csv').query('status == "ok"')
    probs = [f'prob_{i}' for i in (1, 2, 3, 4)]
    assert len(predicted) == len(table) == said['flow']['images'] and said['flow']['refused']
    np.testing.assert_allclose(np.sort(predicted[probs].to_numpy(), 0), np.sort(table[probs].to_numpy(), 0), atol=1e-4)
    assert said['image']['accuracy'] == pytest.approx((table.true_label == table.pred_label).mean())
    groups = pd.read_csv(tmp_path / 'v/per_vendor.csv').set_index('group')
    for vendor in ('ALPHA', 'BETA'):
        own = table[table.manufacturer == vendor]
        assert groups.n[vendor] == len(own) and groups.accuracy[vendor] == pytest.approx((own.true_label == own.pred_label).mean())
    assert said['endpoint']['threshold']['chosen_on'] == 'val' and said['unlike_training']['n'] == len(table)
    assert (tmp_path / 'v/figures/reliability.png').exists() and (tmp_path / 'v/figures/per_vendor.png').exists()


def test_recalibration_never_sees_its_own_images(trained, elsewhere, tmp_path):
    "Each part's temperature is the one that the patients of the other parts ask for, to the bit, and no patient is in two parts."
    from mammo.calibration import fit_temperature, temper
    from mammo.manifest import DENSITY
    from mammo.validation import with_and_without
    assert run('validate', '--run', trained / 'results', '--csv', elsewhere / 'classificacao.csv', '--dicom-root', elsewhere / 'archive', '--out', tmp_path / 'v', *QUICK) == 0
    t, said = pd.read_csv(tmp_path / 'v/validation_predictions.csv'), read(tmp_path / 'v/validation.json')['calibration']
    target, probs, columns = t.true_label.to_numpy() - 1, t[[f'prob_{i}' for i in (1, 2, 3, 4)]].to_numpy(), [f'prob_{i}_recalibrated' for i in (1, 2, 3, 4)]
    probs = probs / probs.sum(1, keepdims=True)
    _, after, used = with_and_without(DENSITY, target, probs, t.patient_key, 3, 0)
    assert used.groupby(t.patient_key).fold.nunique().max() == 1 and set(used.fold) == {1, 2, 3} and said['folds'] == 3
    for fold in (1, 2, 3):
        own = (used.fold == fold).to_numpy()
        alone = fit_temperature(DENSITY, probs[~own], target[~own], t.patient_key[~own])['temperature']
        np.testing.assert_array_equal(after[own], temper(DENSITY, probs[own], alone))
    np.testing.assert_allclose(after, t[columns], atol=2e-3)  # the table's probabilities have 6 digits
    assert said['change_of_log_loss']['value'] == pytest.approx(said['recalibrated']['log_loss'] - said['delivered']['log_loss'])


def test_patients_of_the_run_are_refused_and_dropped(trained, study, elsewhere, tmp_path, capsys):
    folder = tmp_path / 'mixed'
    shutil.copytree(elsewhere, folder)
    known = next(s for s in read(trained / 'results/data_manifest.json')['roles']['train']).split('_')[0]
    guests = list((study / 'archive' / known).glob('*.dcm'))
    shutil.copytree(study / 'archive' / known, folder / 'archive/GUEST')
    with open(folder / 'classificacao.csv', 'a') as f: f.write('GUEST,2\n')
    command = ['validate', '--run', trained / 'results', '--csv', folder / 'classificacao.csv', '--dicom-root', folder / 'archive', '--out', tmp_path / 'v', *QUICK]
    assert run(*command) == 2
    err = capsys.readouterr().err
    assert f'{len(guests)} files byte for byte' in err and '--allow-overlap' in err and '--csv' in err and not (tmp_path / 'v').exists()
    assert run(*command, '--allow-overlap') == 0
    said, table = read(tmp_path / 'v/validation.json'), pd.read_csv(tmp_path / 'v/validation_predictions.csv', dtype=str)
    assert said['overlap']['same_files'] == len(guests) and 'GUEST' not in set(table.exam_id) and 'dropped' in (tmp_path / 'v/validation.md').read_text()


def test_the_run_on_its_own_data_is_no_validation(trained, study, tmp_path, capsys):
    assert run('validate', '--run', trained / 'results', '--csv', study / 'classificacao.csv', '--dicom-root', study / 'archive', '--out', tmp_path / 'v', *QUICK) == 2
    assert 'both sides' in capsys.readouterr().err


def test_other_labels_are_refused(trained, elsewhere, tmp_path, capsys):
    table = pd.DataFrame({'path': [str(p) for p in sorted((elsewhere / 'archive').rglob('*.dcm'))][:6], 'label': ['benign', 'malignant'] * 3})
    table.to_csv(tmp_path / 'other.csv', index=False)
    assert run('validate', '--run', trained / 'results', '--csv', tmp_path / 'other.csv', '--dicom-root', elsewhere / 'archive', '--out', tmp_path / 'v', *QUICK) == 2
    assert 'benign' in capsys.readouterr().err


def test_no_report_names_a_patient(trained, elsewhere, tmp_path):
    assert run('validate', '--run', trained / 'results', '--csv', elsewhere / 'classificacao.csv', '--dicom-root', elsewhere / 'archive', '--out', tmp_path, *QUICK) == 0
    assert run('card', '--run', trained / 'results', '--out', tmp_path) == 0
    table = pd.read_csv(tmp_path / 'validation_predictions.csv', dtype=str)
    names = {*table.patient_key, *table.sample_id, *(s for part in read(trained / 'results/data_manifest.json')['roles'].values() for s in part), 'AWAY-', str(elsewhere)}
    reports = [p for p in tmp_path.iterdir() if p.is_file() and p.name != 'validation_predictions.csv']
    assert len(reports) == 6 and not [(p.name, n) for p in reports for n in names if n in p.read_text()]


def test_sheet_is_filled_or_marked(trained, tmp_path):
    from mammo.card import AUTHORS, in_text
    assert run('card', '--run', trained / 'results', '--out', tmp_path) == 0
    sheet = pd.read_csv(tmp_path / 'claim_tripod.csv', dtype=str, keep_default_na=False)
    assert sheet.groupby('guide').size().to_dict() == {'CLAIM 2024': 44, 'TRIPOD+AI': 52}
    filled = sheet.status == 'filled'
    assert ((sheet.value == AUTHORS) == ~filled).all() and ((sheet.source == '') == ~filled).all() and not sheet[filled].value.str.contains(AUTHORS).any() and (sheet.value.str.strip() != '').all()
    for r in sheet[filled].itertuples():
        for place in r.source.split():
            file, path = place.split(':')
            value = read(trained / 'results' / file)
            for key in path.split('.'): value = value[key]
            assert in_text(value) in r.value, place
    claim = sheet[sheet.guide == 'CLAIM 2024'].set_index('item')
    m, s = read(trained / 'results/metrics/test_metrics.json'), read(trained / 'results/summary.json')
    assert f'kappa quadratic: {m["kappa_quadratic"]:.4g}' in claim.value['37'] and f'patients: {m["n_patients"]}' in claim.value['37'] and f'total parameters: {s["total_parameters"]}' in claim.value['22'] and 'arch: resnet18' in claim.value['22']
    card = (tmp_path / 'model_card.md').read_text()
    assert card.count('\n## ') == 9 and f'kappa quadratic: {m["kappa_quadratic"]:.4g}' in card and AUTHORS in card


@pytest.mark.parametrize('argv,flag', [(['seeds'], '--runs'), (['seeds', '--runs', 'nowhere'], '--runs'), (['validate', '--run', 'nowhere'], '--csv'), (['validate', '--run', 'nowhere', '--csv', 'x.csv'], '--run'),
                                       (['card', '--run', 'nowhere'], '--run'), (['card', '--rum', 'x'], '--run')])
def test_mistakes_name_the_flag(argv, flag, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*argv) == 2 and flag in capsys.readouterr().err


@pytest.mark.parametrize('command', ['seeds', 'validate', 'card'])
def test_help_imports_no_torch(mammography, command):
    done = mammography(command, '--help')
    assert '--' in done.stdout
