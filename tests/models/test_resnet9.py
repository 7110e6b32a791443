"""The nine-layer network: its parameters and its features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pneumojax.models.resnet9 import ResNet9


def make(width, stem, **options):
    common = {"num_outputs": 3, "dropout": 0.0, "dtype": "float32", "axis_name": None, "rngs": nnx.Rngs(0)}
    return ResNet9(width, stem, **common, **options)


def test_it_has_the_parameters_of_its_eight_convolutions():
    width = 4
    convolutions = [(1, 1), (1, 2), (2, 2), (2, 2), (2, 4), (4, 8), (8, 8), (8, 8)]  # channels in units of the width
    kernels = sum(9 * (width * i if n else 1) * width * o for n, (i, o) in enumerate(convolutions))
    norms = sum(2 * width * o for _, o in convolutions)
    params = jax.tree.leaves(nnx.state(make(width, "small"), nnx.Param))
    assert sum(leaf.size for leaf in params) == kernels + norms + (8 * width + 1) * 3


@pytest.mark.parametrize("px", [32, 37])
def test_features_are_the_mean_over_all_positions(px):
    images = np.random.default_rng(0).normal(size=(2, px, px, 1)).astype(np.float32)
    features = jax.jit(lambda images: make(2, "strided").extract(images, train=False))(images)
    assert features.shape == (2, 16) and features.dtype == jnp.float32
    assert float(features.min()) >= 0, "each stage ends with a ReLU or a sum of two"
    assert not jnp.array_equal(features[0], features[1])


def test_frozen_stages_keep_their_statistics_in_training():
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 1)).astype(np.float32)
    frozen = make(2, "strided", frozen=("stem", "stage1", "stage2", "stage3"))
    np.testing.assert_array_equal(frozen.extract(images, train=True), frozen.extract(images, train=False))
    model = make(2, "strided", frozen=("stem", "stage1"))
    model.extract(images, train=True)
    assert not np.any(model.stage1_residual2_norm.mean[...]) and np.any(model.stage2_norm.mean[...])
