"""Compares max-pooling and its gradient with XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from xla_reference import assert_near, compute_with_gradients

from pneumojax.ops import convolution, position_pooling


def plain_max_pool(images, window):
    padding = "SAME" if window == 2 else ((1, 1), (1, 1))
    return nnx.max_pool(images, (window, window), strides=(2, 2), padding=padding)


@pytest.mark.parametrize("px", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("window", [2, 3])
def test_max_pool_is_the_reduction_over_windows_with_its_gradient(px, window):
    images = np.random.default_rng(px).normal(size=(2, px, px + 1, 3)).astype(np.float32)
    ours, gradient = compute_with_gradients(lambda i: position_pooling.max_pool(i, window), images)
    plain, plain_gradient = compute_with_gradients(lambda i: plain_max_pool(i, window), images)
    np.testing.assert_array_equal(ours, plain)
    assert_near(gradient, plain_gradient)


@pytest.mark.parametrize("window", [2, 3])
def test_the_gradient_of_equal_values_goes_to_one_of_them(window):
    images = np.zeros((1, 9, 8, 2), np.float32)
    largest, gradient = compute_with_gradients(lambda i: position_pooling.max_pool(i, window), images)
    assert set(np.unique(largest)) == {0.0}
    weights = np.sin(np.arange(largest.size, dtype=np.float32))
    np.testing.assert_allclose(gradient.sum(), weights.sum(), rtol=1e-5)
    if window == 2:
        assert (gradient != 0).sum() <= largest.size


@pytest.mark.parametrize("activate", [nnx.relu, nnx.tanh])
def test_pooling_before_an_activation_is_pooling_after_it(activate):
    images = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype(np.float32)
    before = compute_with_gradients(lambda i: activate(position_pooling.max_pool(i, 3)), images)
    after = compute_with_gradients(lambda i: plain_max_pool(activate(i), 3), images)
    for ours, plain in zip(before, after, strict=True):
        assert_near(ours, plain)


def test_the_maximum_of_each_window_is_searched_for_once():
    # Regression test: XLA repeated the search for every use of the result, as in a residual network.
    def loss(images):
        kernel = jnp.ones((3, 3, 4, 4))
        pooled = nnx.relu(position_pooling.max_pool(jnp.tanh(images), 3))
        mixed = nnx.relu(pooled + convolution.convolve(pooled, kernel, 1))
        return (convolution.convolve(mixed, kernel, 1) ** 2).sum()

    text = jax.jit(jax.value_and_grad(loss)).lower(jnp.ones((2, 64, 64, 4))).compile().as_text()
    once, relus = 3 * 3 - 1, 3
    assert text.count(" maximum(") <= 2 * once + relus  # For the maximum and for its position.
