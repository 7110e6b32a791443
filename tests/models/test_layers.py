"""Compares the layers with their definitions."""

import jax
import numpy as np
import pytest
from flax import nnx
from reference_layers import convolve, draw_weights, normalise

from pneumojax.models import layers
from pneumojax.ops.pooling import max_pool

KEY = jax.random.key(0)


def draw_images(channels=2):
    return np.random.default_rng(1).normal(size=(3, 9, 8, channels)).astype(np.float32)


@pytest.mark.parametrize(("size", "stride", "pad"), [(3, 1, None), (7, 2, None), (1, 1, None), (4, 1, 0)])
def test_a_convolution_pads_by_half_its_kernel_and_adds_its_bias(size, stride, pad):
    conv, weights = draw_weights(lambda: layers.Conv(2, 4, size, stride, "float32", nnx.Rngs(KEY), pad, bias=True))
    expected = convolve(draw_images(), weights, stride, pad)
    np.testing.assert_allclose(conv(draw_images()), expected, atol=1e-5)


def test_a_bias_after_max_pooling_is_the_bias_before_it():
    conv, _ = draw_weights(lambda: layers.Conv(2, 4, 3, 1, "float32", nnx.Rngs(KEY), bias=True))
    before = max_pool(conv(draw_images()), 2)
    np.testing.assert_allclose(conv.add_bias(max_pool(conv.convolve(draw_images()), 2)), before, atol=1e-6)


def test_a_convolution_without_bias_returns_its_compute_type():
    conv, weights = draw_weights(lambda: layers.Conv(2, 4, 3, 1, "bfloat16", nnx.Rngs(KEY)))
    result = conv(draw_images())
    assert result.dtype == "bfloat16" and weights.keys() == {"kernel"}
    np.testing.assert_allclose(np.float32(result), convolve(draw_images(), weights), atol=0.1)


def test_ones_are_a_second_plane():
    images = draw_images(1)
    with_ones = np.asarray(layers.add_ones(images))
    np.testing.assert_array_equal(with_ones[..., :1], images)
    np.testing.assert_array_equal(with_ones[..., 1:], np.ones_like(images))


def test_batch_normalisation_has_the_constants_of_pytorch():
    norm, weights = draw_weights(lambda: layers.BatchNorm(2, "float32", None, nnx.Rngs(KEY)))
    images = draw_images()
    np.testing.assert_allclose(norm(images, train=False), normalise(images, weights), atol=1e-5)
    norm(images, train=True)
    np.testing.assert_allclose(norm.mean[...], 0.9 * weights["mean"] + 0.1 * images.mean((0, 1, 2)), atol=1e-6)
    fresh = layers.BatchNorm(2, "float32", None, nnx.Rngs(KEY), initial_scale=0.25)
    np.testing.assert_array_equal(fresh.scale[...], [0.25, 0.25])


def test_dropout_keeps_or_removes_each_feature_by_the_key_of_its_image():
    features = 1 + np.random.default_rng(0).random((500, 4), np.float32)
    keys = jax.random.split(KEY, 500)
    dropped = np.asarray(layers.drop(features, 0.2, keys))
    removed = dropped == 0
    np.testing.assert_allclose(dropped[~removed], features[~removed] / 0.8, rtol=1e-6)
    assert abs(removed.mean() - 0.2) < 0.03
    np.testing.assert_array_equal(layers.drop(features[7:9], 0.2, keys[7:9]), dropped[7:9])


def test_dropout_in_training_needs_keys():
    head = layers.Head(4, 2, 0.5, nnx.Rngs(KEY))
    with pytest.raises(AssertionError, match="needs a key for each image"):
        head(np.ones((3, 4), np.float32), train=True, keys=None)
