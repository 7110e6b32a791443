"""Compares the convolution, with the algorithm of this backend, with XLA's."""

import itertools

import numpy as np
import pytest
from xla_reference import assert_near, compute_with_gradients, plain_convolve

from pneumojax.ops import convolution


# Outputs up to 4 px are computed by taps, larger ones by XLA's convolution or Winograd's algorithm.
# One channel and a small kernel, as for grey images.
@pytest.mark.parametrize(
    ("size", "stride", "px", "channels"),
    [
        (1, 1, 2, 3),
        (1, 2, 1, 3),
        (1, 2, 9, 3),
        *itertools.product([3], [1, 2], [1, 2, 3, 8, 9], [3]),
        *itertools.product([7], [2], [1, 3, 8, 9], [1]),
        *itertools.product([2, 5], [1, 2], [8, 9], [2]),
        *itertools.product([2, 3], [1, 2], [1, 8, 9], [1]),
    ],
)
def test_convolve_is_xlas_convolution_with_its_gradients(size, stride, px, channels):
    rng = np.random.default_rng(px)
    images = rng.normal(size=(2, px, px + 1, channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels, 4)).astype(np.float32)
    ours = compute_with_gradients(lambda i, k: convolution.convolve(i, k, stride), images, kernel)
    plain = compute_with_gradients(lambda i, k: plain_convolve(i, k, stride), images, kernel)
    for mine, theirs in zip(ours, plain, strict=True):
        assert_near(mine, theirs)


@pytest.mark.parametrize("px", [4, 5, 8, 9])
@pytest.mark.parametrize(("size", "stride", "pad"), [(3, 1, 0), (4, 1, 0), (4, 2, 1), (3, 2, 0)])
def test_other_padding_and_even_kernels_are_xlas_convolution_too(px, size, stride, pad):
    rng = np.random.default_rng(px)
    images = rng.normal(size=(2, px, px + 1, 3)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 3, 4)).astype(np.float32)
    ours = compute_with_gradients(lambda i, k: convolution.convolve(i, k, stride, pad), images, kernel)
    plain = compute_with_gradients(lambda i, k: plain_convolve(i, k, stride, pad), images, kernel)
    for mine, theirs in zip(ours, plain, strict=True):
        assert_near(mine, theirs)


# Narrow images: the gradients of some columns need cropping at one edge and padding at the other.
@pytest.mark.parametrize("pad_from_size", [1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 5), (3, 4), (3, 6), (4, 5), (4, 7)])
def test_gradients_of_narrow_images_are_those_of_xlas_convolution(stride, size, pad_from_size):
    rng = np.random.default_rng(size)
    pad = size - pad_from_size
    images = rng.normal(size=(4, 20, 4, 1)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 1, 4)).astype(np.float32)
    ours = compute_with_gradients(lambda i, k: convolution.convolve(i, k, stride, pad), images, kernel)
    plain = compute_with_gradients(lambda i, k: plain_convolve(i, k, stride, pad), images, kernel)
    for mine, theirs in zip(ours, plain, strict=True):
        assert_near(mine, theirs)
