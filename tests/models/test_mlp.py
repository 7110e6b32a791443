"""Compares the multilayer perceptron with its definition."""

import jax
import numpy as np
from flax import nnx
from reference_layers import apply_linear, draw_weights, relu

from pneumojax.models.mlp import MLP


def test_the_logits_are_those_of_matrix_products():
    model, weights = draw_weights(
        lambda: MLP(5, (6, 4), 3, dropout=0.5, dtype="float32", axis_name=None, rngs=nnx.Rngs(jax.random.key(0)))
    )
    images = np.random.default_rng(1).normal(size=(3, 5, 5, 1)).astype(np.float32)
    features = images.reshape(3, 25)
    for name in ("hidden1", "hidden2"):
        features = relu(apply_linear(features, weights[name]))
    np.testing.assert_allclose(model.extract(images, train=False), features, atol=1e-5)
    np.testing.assert_allclose(model(images, train=False), apply_linear(features, weights["head"]["linear"]), atol=1e-5)
