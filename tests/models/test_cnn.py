"""Compares the plain convolutional network with its definition."""

import jax
import numpy as np
from flax import nnx
from reference_layers import apply_linear, convolve, draw_weights, max_pool, normalise, relu

from pneumojax.models.cnn import CNN

IMAGES = np.random.default_rng(1).normal(size=(3, 9, 8, 1)).astype(np.float32)


def make(frozen=()):
    return draw_weights(
        lambda: CNN(
            (4, 6), 3, dropout=0.0, dtype="float32", axis_name=None, rngs=nnx.Rngs(jax.random.key(0)), frozen=frozen
        )
    )


def test_the_logits_are_those_of_its_layers():
    model, weights = make()
    x = IMAGES
    for stage in (1, 2):
        x = normalise(convolve(x, weights[f"conv{stage}"]), weights[f"norm{stage}"])
        x = relu(max_pool(x, 2))
    features = x.mean((1, 2))
    assert x.shape == (3, 3, 2, 6)
    np.testing.assert_allclose(model.extract(IMAGES, train=False), features, atol=1e-5)
    np.testing.assert_allclose(model(IMAGES, train=False), apply_linear(features, weights["head"]["linear"]), atol=1e-5)


def test_a_frozen_normalisation_keeps_its_statistics_in_training():
    model, weights = make(frozen=("norm1", "norm2"))
    expected = model.extract(IMAGES, train=False)
    np.testing.assert_array_equal(model.extract(IMAGES, train=True), expected)
    np.testing.assert_array_equal(model.norm1.mean[...], weights["norm1"]["mean"])
    free, _ = make(frozen=("norm1",))
    assert np.abs(free.extract(IMAGES, train=True) - expected).max() > 1e-2
