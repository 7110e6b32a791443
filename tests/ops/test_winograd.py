"""Compares Winograd's algorithm with XLA's convolution, and its matrices with those of the paper."""

import jax
import numpy as np
import pytest
from xla_reference import assert_near, plain_convolve

from pneumojax.ops import winograd


@pytest.mark.parametrize(("size", "pad"), [(3, 1), (4, 1), pytest.param(5, 2, marks=pytest.mark.slow)])
def test_winograds_gradient_of_the_kernel_is_that_of_xlas_convolution(size, pad):
    rng = np.random.default_rng(size)
    images, kernel = rng.normal(size=(2, 9, 8, 3)), rng.normal(size=(size, size, 3, 4))
    result, pull_back = jax.vjp(lambda k: plain_convolve(np.float32(images), k, 1, pad), np.float32(kernel))
    grads = rng.normal(size=result.shape).astype(np.float32)
    ours = winograd.compute_kernel_grads(
        np.float32(images.transpose(3, 1, 2, 0)), grads.transpose(1, 2, 0, 3), size, pad
    )
    assert_near(ours.transpose(1, 2, 0, 3), *pull_back(grads))
    assert_near(winograd.multiply_kernel_grads(np.float32(images), grads, size, pad), *pull_back(grads))


def test_the_matrices_are_those_of_the_paper():
    a, b, g = winograd.make_matrices(3)
    assert a.T.tolist() == [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    assert b.tolist() == [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
    np.testing.assert_allclose(24 * g, [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]])
