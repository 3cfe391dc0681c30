"The transformer among the backbones: it takes every road that the others take, and its maps are rollouts. Roads are walked with three narrow layers under its name; one run has all 86 million weights."
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import VisionTransformer

FLAGS = ['train-density', '--arch', 'vit_b_16', '--weights', 'none', '--img-size', 64, '--epochs', 2, '--lr', '1e-3', '--n-boot', 0, '--num-workers', 0, '--precision', 'fp32', '--device', 'cpu']


@pytest.fixture(scope='module')
def store(tmp_path_factory): return tmp_path_factory.mktemp('store')


@pytest.fixture
def place(study, tmp_path, monkeypatch, store):
    "A folder with the small study in it, whose outputs are its own. What was decoded serves all tests."
    for name in ('classificacao.csv', 'archive'): (tmp_path / name).symlink_to(study / name)
    (tmp_path / 'cache').symlink_to(store)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def narrow(monkeypatch):
    "`vit_b_16` with 3 layers of width 16, made for 32 px."
    from mammo import models
    layers = [(f'encoder.layers.encoder_layer_{i}',) for i in range(3)]
    made = lambda name, weights=None: VisionTransformer(32, 16, 3, 2, 16, 32)
    monkeypatch.setattr(models.tv, 'get_model', made)
    monkeypatch.setitem(models.BACKBONES, 'vit_b_16', models.Backbone('vit_b_16', (('tokens',), *layers[:-1], (*layers[-1], 'encoder.ln')), 16, patch=16))
    return made


def run(*argv):
    from mammo.cli import main
    return main([str(a) for a in argv])


def read(path): return json.loads(path.read_text())


def finished(folder):
    "Learner, validation images and settings of a finished run."
    from mammo.config import TrainConfig, unflat
    from mammo.material import gather
    from mammo.recipes.density import density_data
    from mammo.runs import RunDir, load_config
    from mammo.training import load_learner
    cfg = unflat(TrainConfig, load_config(RunDir(folder)))
    return load_learner(folder / 'best_model.pth', 'cpu', 'fp32')[0], gather(density_data(cfg), cfg).part('val')[0], cfg


def test_each_strategy_and_kept_tokens(place, narrow):
    "Whatever is frozen, tokens kept on disk give the run that tokens made anew give."
    for flags, opened in (['--no-train-backbone'], 0), (['--unfreeze-last-block'], 1), (['--unfreeze-last', 3], 3):
        for out, views in (('kept', 2), ('made', 0)): assert run(*FLAGS, *flags, '--feature-cache', views, '--outdir', f'{out}_{opened}') == 0
        kept, made = (place / f'{out}_{opened}/results' for out in ('kept', 'made'))
        assert f'activations of {4 - opened} frozen stages: 2 views' in (kept / 'run.log').read_text()
        np.testing.assert_allclose(np.load(kept / 'embeddings_val.npy'), np.load(made / 'embeddings_val.npy'), atol=1e-4)
        layer = 12 * 16 ** 2 - 8 * 16 ** 2 + 2 * 16 * 32 + 4 * 16 + 32 + 16 + 4 * 16  # attention, MLP, their biases, two norms
        assert read(kept / 'summary.json')['trainable_parameters'] == opened * layer + bool(opened) * 2 * 16 + 17 * 4
    assert run(*FLAGS, '--outdir', 'all') == 0
    assert read(place / 'all/results/summary.json')['trainable_parameters'] == read(place / 'all/results/summary.json')['total_parameters']


def test_stopped_and_resumed(place, narrow):
    from mammo.pipeline import train
    from mammo.recipes.density import density_data
    assert run(*FLAGS, '--unfreeze-last-block', '--outdir', 'whole') == 0
    cfg = finished(place / 'whole/results')[2]
    cfg = replace(cfg, run=replace(cfg.run, outdir=place / 'again'))
    class Stopped(Exception): pass
    def stop(epoch, row): raise Stopped
    with pytest.raises(Stopped): train(density_data(cfg), cfg, stop)
    assert run(*FLAGS, '--unfreeze-last-block', '--outdir', 'again', '--resume') == 0
    for name in ('val_predictions.csv', 'embeddings_val.npy'): assert (place / 'again/results' / name).read_bytes() == (place / 'whole/results' / name).read_bytes()
    assert [p.name for p in (place / 'again').iterdir()] == ['results']


def test_grey_half_precision_from_a_file(place, narrow):
    "A file of torchvision's weights for one channel in bf16; the body is the file's, the head is not."
    torch.manual_seed(0)
    state = narrow('').state_dict()
    torch.save(state, 'mine.pth')
    flags = [*FLAGS, '--weights', 'mine.pth', '--no-train-backbone']
    assert run(*flags, '--channels', 1, '--precision', 'bf16', '--outdir', 'grey') == 0 and run(*flags, '--outdir', 'three') == 0
    grey, three = (torch.load(place / o / 'results/best_model.pth', weights_only=True)['model'] for o in ('grey', 'three'))
    torch.testing.assert_close(grey['stages.0.0.conv_proj.weight'], state['conv_proj.weight'].sum(1, keepdim=True))
    assert all(torch.equal(three[f'stages.0.0.{k}'], state[v]) for k, v in (('class_token', 'class_token'), ('pos_embedding', 'encoder.pos_embedding')))
    assert torch.equal(three['stages.3.1.weight'], state['encoder.ln.weight'])
    a, b = (np.load(place / o / 'results/embeddings_val.npy') for o in ('grey', 'three'))
    assert a.shape[1] == 16 and np.corrcoef(a.ravel(), b.ravel())[0, 1] > .98  # colours differ a little in mean and deviation


def test_embedded_fused_and_asked(place, narrow):
    "Its features as a table, beside itself in a fused run, and that run asked about new images; rollout of a fused run."
    from mammo.rollout import maps_of
    assert run('embed', '--arch', 'vit_b_16', '--weights', 'none', '--img-size', 48, '--outdir', 'emb', '--device', 'cpu', '--csv', 'classificacao.csv', '--dicom-root', 'archive') == 0
    assert np.load(place / 'emb/features.npy').shape[1] == 16
    assert run(*FLAGS, '--fusion', '--embeddings-dir', 'emb', '--unfreeze-last-block', '--outdir', 'o') == 0
    one = sorted((place / 'archive').iterdir())[0].name
    assert run('predict', '--run', 'o/results', '--input', f'archive/{one}', '--out', 'p.csv', '--num-workers', 0, '--embeddings-dir', 'emb') == 0
    assert (pd.read_csv('p.csv').filter(like='prob').sum(axis=1) - 1).abs().max() < 1e-4
    learner, images, _ = finished(place / 'o/results')
    assert maps_of(learner, images, [0, 1], [0, 0])['final'].shape == (2, 4, 4)


def test_a_size_that_ends_within_a_patch(place, narrow, capsys):
    for command in (FLAGS, ['embed', '--arch', 'vit_b_16', '--weights', 'none', '--device', 'cpu', '--csv', 'classificacao.csv', '--dicom-root', 'archive']):
        assert run(*command, '--img-size', 100, '--outdir', 'o') == 2
        assert '--img-size: is 100, and vit_b_16 cuts images into patches of 16 px. Use a multiple of 16.' in capsys.readouterr().err
        assert not (place / 'o').exists()  # told before anything is decoded


def test_all_its_weights_and_rollout_of_the_run(place):
    "86 million weights: trained head, saved, loaded, and the run's own validation images rolled out."
    from mammo.core import ConfigError
    from mammo.gradcam import heat_maps, layer_names
    from mammo.rollout import maps_of, rollout
    assert run(*FLAGS, '--img-size', 96, '--epochs', 1, '--no-train-backbone', '--subset', 40, '--outdir', 'o') == 0
    folder = place / 'o/results'
    said = read(folder / 'summary.json')
    assert (said['trainable_parameters'], said['total_parameters']) == (769 * 4, 85_798_656 + 769 * 4)
    learner, images, _ = finished(folder)
    table = pd.read_csv(folder / 'val_predictions.csv')
    assert len(images) == len(table)
    few = range(6)
    maps = maps_of(learner, images, few, images.targets[:6].tolist(), layer_names(learner.model), batch_size=4)
    assert list(maps) == [*(f'stages.{i}' for i in range(1, 13)), 'final'] and {m.shape for m in maps.values()} == {(6, 6, 6)}
    sums = np.array([maps[f'stages.{i}'].sum((1, 2)) for i in range(1, 13)])
    assert (np.diff(sums, axis=0) > 0).all() and (sums[-1] < 1).all() and (maps['final'] > 0).all()  # layer by layer less of it is the class token's own
    x = torch.cat(learner.pieces(torch.stack([images[0, i][0] for i in few])))
    np.testing.assert_allclose(maps['final'], rollout(learner.model, x)['final'], rtol=1e-4)
    with pytest.raises(ConfigError, match='attention rollout'): heat_maps(learner, images, [0], [0])
