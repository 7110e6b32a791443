"""Compares convolutions with XLA's own, for the tests of pneumojax.ops."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def plain_convolve(images, kernel, stride, pad=None):
    pad = kernel.shape[0] // 2 if pad is None else pad
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def assert_near(ours, plain, tolerance=1e-5):
    assert ours.shape == plain.shape
    scale = np.abs(plain).max()
    np.testing.assert_allclose(ours / scale, plain / scale, atol=tolerance)


def compute_with_gradients(function, *arrays):
    """Computes a result and the gradients of its weighted sum in one compiled call."""

    @jax.jit
    def compute(*arrays):
        result, pull_back = jax.vjp(function, *arrays)
        return result, *pull_back(jnp.sin(jnp.arange(result.size, dtype=result.dtype)).reshape(result.shape))

    return [np.asarray(array) for array in compute(*arrays)]
