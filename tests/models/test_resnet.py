"""Compares residual networks with their definition."""

import jax
import numpy as np
import pytest
from flax import nnx
from reference_layers import apply_linear, convolve, draw_weights, max_pool, normalise, relu

from pneumojax.models.resnet import ResNet
from pneumojax.ops.xla import algorithms

IMAGES = np.random.default_rng(1).normal(size=(2, 20, 17, 1)).astype(np.float32)


def make(bottleneck, strided="3x3", ones_plane=False, frozen=()):
    options = {"strided": strided, "ones_plane": ones_plane, "frozen": frozen, "axis_name": None}
    return draw_weights(
        lambda: ResNet((1, 2), bottleneck, 4, 3, 0.0, dtype="float32", rngs=nnx.Rngs(jax.random.key(0)), **options)
    )


@nnx.jit
def predict(model, images):
    return model(images, train=False)


def apply_block(x, weights, strides):
    """Applies a block whose convolutions have these strides."""
    shortcut = x
    if "shortcut_conv" in weights:
        shortcut = normalise(convolve(x, weights["shortcut_conv"], max(strides)), weights["shortcut_norm"])
    for i, stride in enumerate(strides, 1):
        x = normalise(convolve(x, weights[f"conv{i}"], stride), weights[f"norm{i}"])
        x = relu(x) if i < len(strides) else x
    return relu(x + shortcut)


@pytest.mark.parametrize(
    ("bottleneck", "strided", "first_of_stage2"),
    [(False, "3x3", (2, 1)), (True, "3x3", (1, 2, 1)), (True, "1x1", (2, 1, 1))],
)
@pytest.mark.parametrize("ones_plane", [False, True])
def test_the_logits_are_those_of_its_blocks(bottleneck, strided, first_of_stage2, ones_plane):
    model, weights = make(bottleneck, strided, ones_plane)
    x = np.concatenate([IMAGES, np.ones_like(IMAGES)], -1) if ones_plane else IMAGES
    x = max_pool(relu(normalise(convolve(x, weights["stem_conv"], 2), weights["stem_norm"])), 3)
    plain = (1,) * len(first_of_stage2)
    for name, strides in (("stage1_block1", plain), ("stage2_block1", first_of_stage2), ("stage2_block2", plain)):
        x = apply_block(x, weights[name], strides)
    assert x.shape == (2, 3, 3, 8 * (4 if bottleneck else 1))
    logits = apply_linear(x.mean((1, 2)), weights["head"]["linear"])
    np.testing.assert_allclose(predict(model, IMAGES), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_frozen_stages_keep_their_statistics_in_training():
    model, weights = make(False, frozen=("stem", "stage1", "stage2"))
    np.testing.assert_array_equal(model.extract(IMAGES, train=True), model.extract(IMAGES, train=False))
    free, _ = make(False, frozen=("stem", "stage1"))
    free.extract(IMAGES, train=True)
    np.testing.assert_array_equal(free.stem_norm.mean[...], weights["stem_norm"]["mean"])
    assert np.abs(free.stage2_block1.norm1.mean[...] - weights["stage2_block1"]["norm1"]["mean"]).max() > 1e-3


def differentiate(bottleneck, platform):
    """Returns the logits, the gradients of a loss and the batch statistics after a training step on a platform."""
    model, _ = make(bottleneck)
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, states)

    def compute_loss(params):
        model = nnx.merge(graph, params, stats)
        logits = model(np.concatenate([IMAGES, -IMAGES[:, ::-1]]), train=True)
        return (logits * np.arange(3)).sum(), (logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    with algorithms(platform):
        grads, rest = jax.jit(jax.grad(compute_loss, has_aux=True))(params)
    return jax.tree.map(np.asarray, (grads, rest))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("bottleneck", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_training_step_is_the_same_on_all_platforms(bottleneck, platform):
    ours, plain = differentiate(bottleneck, platform), differentiate(bottleneck, "xla")
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-3 * max(np.abs(theirs).max(), 0.1))
