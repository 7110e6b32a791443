"""Tests of frozen stages and of the backbone's learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pneumojax.config import OptimizerConfig, config_from_dict
from pneumojax.data.batches import make_epoch_batches
from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.models import make_model, split_frozen
from pneumojax.optimizer import make_optimizer
from pneumojax.parallel import put_batches
from pneumojax.sharding import make_mesh, put
from pneumojax.steps import init_state, make_graph, make_key, make_train_chunk


def train(config, steps=3):
    """Returns the states before and after some steps, as numpy arrays."""
    mesh = make_mesh()
    data = load_split(config.data, "train")
    graph, tx = make_graph(config), make_optimizer(config.optimizer, 10)
    chunk = make_train_chunk(config, graph, tx, np.ones(2, np.float32), mesh)
    state = init_state(config, tx, mesh)
    before = jax.tree.map(np.asarray, state)
    batches = make_epoch_batches(len(data), config.train.batch_size, 1, steps, 0, 0)[0]
    arrays = put(data.images, mesh), put(data.labels("binary"), mesh)
    after, _ = chunk(state, *arrays, put_batches(batches, config, mesh), make_key(config, mesh))
    return before, jax.tree.map(np.asarray, after)


@pytest.mark.parametrize(
    ("fields", "frozen"),
    [
        ({"model": "cnn", "parallel": "shard_map"}, ("conv1", "norm1")),
        pytest.param({"model": "resnet18", "resnet_width": 2}, ("stem", "stage1", "stage3"), marks=pytest.mark.slow),
        pytest.param(
            {"model": "vgg16", "vgg_width": 2, "vgg_dense_widths": []},
            ("stage1", "stage2", "stage3", "stage4", "stage5"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_frozen_stages_stay_bitwise_the_same_and_the_others_train(make_config, fields, frozen):
    before, after = train(make_config(frozen=list(frozen), weight_decay=0.1, learning_rate=0.1, warmup=0.0, **fields))
    for name in ("params", "batch_stats"):
        trained_before, kept_before = split_frozen(getattr(before, name), frozen)
        trained_after, kept_after = split_frozen(getattr(after, name), frozen)
        jax.tree.map(np.testing.assert_array_equal, kept_after, kept_before)
        jax.tree.map(np.testing.assert_array_equal, split_frozen(after.ema[name], frozen)[1], kept_before)
        for layer, leaves in trained_before.items():
            for old, new in zip(*map(jax.tree.leaves, (leaves, trained_after[layer])), strict=True):
                assert (old != new).any(), f"{name} of {layer} did not train"
    assert {layer.split("_")[0] for layer in split_frozen(before.params, frozen)[1]} == set(frozen)
    # The optimizer has no state for them.
    paths = " ".join(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.opt_state))
    assert "head" in paths
    assert not [layer for layer in split_frozen(before.params, frozen)[1] if f"'{layer}'" in paths]


def test_a_frozen_stage_normalises_with_its_running_statistics(make_config):
    config = make_config(model="cnn", frozen=["norm1"])

    @jax.jit
    def call(key):
        model = make_model(config.model, 32, key)
        images = 5 + jax.random.normal(key, (4, 32, 32, 1))
        keys = jax.random.split(key, 4)
        expected = nnx.relu(model.norm1(model.conv1(images), train=False))
        seen = []
        model.conv2 = lambda x: seen.append(x) or jnp.zeros((*x.shape[:3], 8))
        model(images, True, keys)
        return expected, seen[0]

    expected, seen = call(jax.random.key(0))
    np.testing.assert_allclose(seen, nnx.max_pool(expected, (2, 2), (2, 2)), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"model": "cnn", "frozen": ["stem"]},
            "frozen: cnn has no stage stem; it has conv1, conv2, head, norm1, norm2",
        ),
        ({"model": "mlp", "mlp_widths": [4], "frozen": ["hidden1", "head"]}, "nothing is left to train"),
    ],
)
def test_stages_that_do_not_exist_and_all_stages_are_refused(make_config, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        make_graph(make_config(**fields))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_backbone_learns_at_its_share_of_the_learning_rate(optimizer):
    params = {name: {"kernel": jnp.full((2, 2), 0.5)} for name in ("stem_conv", "stage1_conv1", "dense1", "head")}
    grads = jax.tree.map(jnp.ones_like, params)

    def update(**fields):
        tx = make_optimizer(OptimizerConfig(optimizer=optimizer, warmup=0.0, weight_decay=0.1, **fields), 10)
        return tx.update(grads, tx.init(params), params)[0]

    whole, scaled = update(learning_rate=0.1), update(learning_rate=0.1, backbone_learning_rate_scale=0.25)
    low = update(learning_rate=0.025)
    for name in params:
        expected = whole if name in ("dense1", "head") else low
        np.testing.assert_allclose(scaled[name]["kernel"], expected[name]["kernel"], rtol=1e-5)
        assert np.abs(scaled[name]["kernel"]).min() > 0


def test_frozen_is_part_of_the_config_that_a_run_keeps():
    assert config_from_dict({"frozen": ["stage1"]}).model.frozen == ("stage1",)
