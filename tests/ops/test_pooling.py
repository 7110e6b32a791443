"""Compares max-pooling on each platform with XLA's."""

import numpy as np
import pytest
from flax import nnx
from xla_reference import assert_near, compute_with_gradients

from pneumojax.ops import pooling
from pneumojax.ops.xla import algorithms


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("window", [2, 3])
def test_all_platforms_give_the_same_maxima_and_gradients(platform, window):
    images = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    padding = "SAME" if window == 2 else ((1, 1), (1, 1))
    plain = compute_with_gradients(lambda i: nnx.max_pool(i, (window, window), (2, 2), padding), images)
    with algorithms(platform):
        ours = compute_with_gradients(lambda i: pooling.max_pool(i, window), images)
    for mine, theirs in zip(ours, plain, strict=True):
        assert_near(mine, theirs)


@pytest.mark.parametrize("px", [2, 3, 8])
def test_valid_max_pool_is_the_unpadded_reduction_with_its_gradient(px):
    images = np.random.default_rng(px).normal(size=(2, px, px + 1, 3)).astype(np.float32)
    ours = compute_with_gradients(lambda i: pooling.max_pool(i, 2, valid=True), images)
    plain = compute_with_gradients(lambda i: nnx.max_pool(i, (2, 2), strides=(2, 2)), images)
    for mine, theirs in zip(ours, plain, strict=True):
        assert_near(mine, theirs)
