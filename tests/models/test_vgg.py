"""Tests of VGG16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pneumojax.config import ModelConfig
from pneumojax.models import make_model
from pneumojax.models.vgg import VGG16, pool_to

TINY = ModelConfig(model="vgg16", vgg_width=4, vgg_dense_widths=(16, 8), dropout=0.5)


def test_parameter_count_is_the_published_one_for_a_grey_stem():
    def make():
        common = {"num_outputs": 1000, "dropout": 0.5, "dtype": "float32", "axis_name": None, "rngs": nnx.Rngs(0)}
        return VGG16(64, (4096, 4096), **common)

    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))
    # Torchvision and Keras: 138,357,544 with three colours in the first 3 x 3 convolution of 64 channels.
    assert count == 138_357_544 - 2 * 3 * 3 * 64


@pytest.mark.parametrize(("image_px", "dense_widths"), [(50, (16, 8)), pytest.param(64, (), marks=pytest.mark.slow)])
def test_it_is_five_stages_of_plain_convolutions(image_px, dense_widths):
    config = ModelConfig(model="vgg16", vgg_width=4, vgg_dense_widths=dense_widths)
    images = np.random.default_rng(0).normal(size=(2, image_px, image_px, 1)).astype(np.float32)

    @jax.jit
    def compute(images):
        model = make_model(config, image_px, jax.random.key(0))
        x = images
        for stage, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
            for i in range(1, convolutions + 1):
                conv = getattr(model, f"stage{stage}_conv{i}")
                conv.bias[...] = jnp.linspace(-0.1, 0.1, conv.bias.shape[0])
                x = nnx.relu(jax.lax.conv_general_dilated(
                    x, conv.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                ) + conv.bias[...])  # fmt: skip
            x = nnx.max_pool(x, (2, 2), (2, 2))
        assert x.shape == (2, image_px // 32, image_px // 32, 32)
        if dense_widths:
            x = nnx.relu(model.dense2(nnx.relu(model.dense1(pool_to(x, 7).reshape(2, -1)))))
        else:
            x = x.mean((1, 2))
        return model(images, train=False), model.head.linear(x)

    ours, plain = compute(images)
    np.testing.assert_allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize("px", [1, 3, 7, 15])
def test_pool_to_averages_the_positions_that_each_position_covers(px):
    images = np.random.default_rng(px).normal(size=(2, px, px, 3)).astype(np.float32)
    first = [i * px // 7 for i in range(7)]
    last = [-(-(i + 1) * px // 7) for i in range(7)]
    expected = np.array([
        [images[:, first[i] : last[i], first[j] : last[j]].mean((1, 2)) for j in range(7)] for i in range(7)
    ])  # fmt: skip
    np.testing.assert_allclose(jax.jit(pool_to, static_argnums=1)(images, 7), expected.transpose(2, 0, 1, 3), atol=1e-6)


def test_an_image_too_small_to_be_halved_five_times_is_halved_to_one_place():
    model = nnx.eval_shape(lambda: make_model(TINY, 16, jax.random.key(0)))
    state = nnx.state(model)
    images = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)
    assert jax.eval_shape(lambda s, x: nnx.merge(nnx.graphdef(model), s)(x, False), state, images).shape == (2, 1)


@pytest.mark.slow
def test_training_drops_units_in_front_of_the_second_dense_layer_and_of_the_head():
    @jax.jit
    def compute(key):
        model = make_model(TINY, 32, key)
        images = jnp.ones((4, 32, 32, 1))
        return model(images, train=True, keys=jax.random.split(key, 4)), model(images, train=False)

    trained, predicted = compute(jax.random.key(0))
    # The rows of a matrix product of equal rows can differ in the last bit.
    assert np.ptp(predicted) < 1e-6 and min(np.diff(np.sort(trained[:, 0]))) > 1e-4
