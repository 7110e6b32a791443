"""Compares the projector with its definition."""

import jax
import numpy as np
from flax import nnx
from reference_layers import apply_linear, draw_weights, normalise, relu

from pneumojax.models.projector import Projector


def test_the_projector_is_two_linear_layers_around_a_normalisation():
    projector, weights = draw_weights(lambda: Projector(4, (6, 3), None, nnx.Rngs(jax.random.key(0))))
    features = np.random.default_rng(2).normal(size=(5, 4)).astype(np.float32)
    hidden = relu(normalise(apply_linear(features, weights["linear1"]), weights["norm1"]))
    expected = apply_linear(hidden, weights["linear2"])
    np.testing.assert_allclose(projector(features, train=False, keys=None), expected, atol=1e-5)
