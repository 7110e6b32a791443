"""Tests of cached features of a frozen backbone: the training is the same as without, on any number of devices."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from trainer import assert_near

from pneumojax import parallel, steps
from pneumojax.config import config_from_dict
from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.run import open_run
from pneumojax.models import split_frozen
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import AXIS, put
from pneumojax.training.features import make_extract_split
from pneumojax.training.fit import fit
from pneumojax.training.plan import TrainingPlan

VGG = {
    "model": "vgg16",
    "vgg_width": 2,
    "vgg_dense_widths": [6],
    "frozen": ["stage1", "stage2", "stage3", "stage4", "stage5"],
}
CNN = {"model": "cnn", "cnn_widths": [4, 8], "frozen": ["conv1", "norm1", "conv2", "norm2"]}
STILL = dict.fromkeys(
    ("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma", "erase_probability", "mixup_alpha"), 0.0
)
PLAIN = {"crop_min_area": 1.0, "dropout": 0.0, "optimizer": "sgd", "learning_rate": 0.05, "warmup": 0.0, **STILL}


def train_steps(config, devices=8, num_steps=4):
    """Returns (state, metrics, features or None) after some steps, as numpy arrays."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    data = load_split(config.data, "train")
    graph, tx = steps.make_graph(config), make_optimizer(config.optimizer, 20)
    state, key = steps.init_state(config, tx, mesh), steps.make_key(config, mesh)
    features = None
    if config.model.cached_views:
        plan = TrainingPlan(config, mesh, data, 1, num_steps, tx, graph)
        features = make_extract_split(plan, state, key)(data, config.model.cached_views)
    images = data.images if features is None else features
    batches = np.random.default_rng(0).permutation(len(data))[: num_steps * 16].reshape(num_steps, 16).astype(np.int32)
    chunk = steps.make_train_chunk(config, graph, tx, np.ones(2, np.float32), mesh)
    arrays = put(images, mesh), put(data.labels("binary"), mesh), parallel.put_batches(batches, config, mesh)
    state, metrics = chunk(state, *arrays, key)
    return *jax.device_get((state, metrics)), features


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(VGG, id="vgg16", marks=pytest.mark.slow),
        pytest.param(CNN | {"parallel": "shard_map"}, id="cnn"),
    ],
)
def test_kept_features_train_as_the_frozen_network_does(make_config, fields):
    fields = PLAIN | fields
    anew, anew_metrics, _ = train_steps(make_config(**fields))
    kept, kept_metrics, _ = train_steps(make_config(**fields, cached_views=1))
    assert_near(kept_metrics, anew_metrics, 1e-5)
    assert_near(kept, anew, 1e-5)
    for layer in split_frozen(kept.params, fields["frozen"])[0].values():
        assert all((leaf != 0).any() for leaf in jax.tree.leaves(layer))  # The classifier was trained.


@pytest.mark.slow
def test_views_are_the_image_itself_and_augmented_ones_and_do_not_depend_on_the_devices(make_config):
    config = make_config(**CNN, dropout=0.2, mixup_alpha=0.0, erase_probability=0.5, cached_views=3, optimizer="sgd")
    eight, sums, features = train_steps(config, 8)
    one, one_sums, one_features = train_steps(config, 1)
    np.testing.assert_allclose(features, one_features, atol=1e-5)
    assert_near(sums, one_sums, 2e-5)
    assert_near(eight, one, 2e-5)
    _, _, alone = train_steps(make_config(**CNN | PLAIN, cached_views=1))
    np.testing.assert_allclose(features[:, :1], alone, atol=1e-5)
    differ = [np.abs(features[:, i] - features[:, j]).max(-1) > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2))]
    assert np.mean(differ) > 0.9
    _, _, normal_only = train_steps(make_config(**CNN, mixup_alpha=0.0, cached_views=2, augment_classes="normal"))
    labels = load_split(config.data, "train").labels("binary")
    changed = np.abs(normal_only[:, 1] - normal_only[:, 0]).max(-1) > 1e-4
    assert changed[labels == 0].mean() > 0.9
    assert not changed[labels == 1].any()


@pytest.mark.slow
def test_a_run_on_kept_features_is_a_whole_run(make_config, tmp_path):
    fields = CNN | {"mixup_alpha": 0.0, "epochs": 2, "cached_views": 2}
    result = fit(make_config(**fields), tmp_path / "run")
    run = open_run(tmp_path / "run", "best")
    assert run.step == result.best_step
    validation = load_split(run.config.data, "validation")
    scores = run.predict(validation.images)[:, 1]
    pairs = [
        (a > b) + 0.5 * (a == b) for a in scores[validation.subtypes > 0] for b in scores[validation.subtypes == 0]
    ]
    np.testing.assert_allclose(np.mean(pairs), result.best_auroc, atol=0.01)
    # The backbone did not change in any bit.
    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
    fresh = steps.init_state(run.config, make_optimizer(run.config.optimizer, 1), mesh)
    kept = split_frozen(run.variables["params"], CNN["frozen"])[1]
    jax.tree.map(np.testing.assert_array_equal, kept, split_frozen(jax.device_get(fresh.params), CNN["frozen"])[1])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (VGG | {"frozen": ["stage1"]}, "cached_views .* give --frozen=stage1,stage2,stage3,stage4,stage5"),
        (CNN | {"frozen": []}, "cached_views .* give --frozen=conv1,conv2,norm1,norm2"),
    ],
)
def test_a_backbone_that_trains_is_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        steps.make_graph(config_from_dict({"cached_views": 1, **fields}))
