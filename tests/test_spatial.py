import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from pneumojax.models import spatial


def plain_convolve(images, kernel, stride):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_max_pool(images, window):
    padding = "SAME" if window == 2 else ((1, 1), (1, 1))
    return nnx.max_pool(images, (window, window), strides=(2, 2), padding=padding)


def assert_near(ours, plain, tolerance=1e-5):
    scale = np.abs(plain).max()
    np.testing.assert_allclose(ours / scale, plain / scale, atol=tolerance)


@pytest.mark.parametrize("px", [1, 2, 3, 5, 8, 9, 16, 17])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolve_is_xlas_convolution_with_its_gradients(px, size, stride):
    keys = jax.random.split(jax.random.key(px), 3)
    images = jax.random.normal(keys[0], (4, px, px + 1, 3))
    kernel = jax.random.normal(keys[1], (size, size, 3, 5))
    plain, plain_gradient = jax.vjp(lambda i, k: plain_convolve(i, k, stride), images, kernel)
    ours, gradient = jax.vjp(lambda i, k: spatial.convolve(i, k, stride), images, kernel)
    assert_near(ours, plain)
    grads = jax.random.normal(keys[2], plain.shape)
    for mine, theirs in zip(gradient(grads), plain_gradient(grads), strict=True):
        assert_near(mine, theirs)


def test_convolve_compiles_to_the_fast_layout_inside_a_loop():
    # The defect this guards against: gradients folded into a layout for which XLA's CPU backend has a loop nest only.
    images, kernel = jnp.ones((2, 16, 16, 4)), jnp.ones((3, 3, 4, 8))

    def step(kernel, images):
        gradient = jax.grad(lambda k, i: (spatial.convolve(i, k, 1) ** 2).sum(), (0, 1))(kernel, images)
        return kernel - gradient[0] + gradient[1].mean(), None

    compiled = jax.jit(lambda k, batches: lax.scan(step, k, batches)).lower(kernel, jnp.stack([images] * 3)).compile()
    convolutions = [line for line in compiled.as_text().splitlines() if " convolution(" in line]
    assert len(convolutions) == 3
    assert all("dim_labels=b01f_01io->b01f" in line for line in convolutions), convolutions


@pytest.mark.parametrize("px", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("window", [2, 3])
def test_max_pool_is_the_reduction_over_windows_with_its_gradient(px, window):
    images = jax.random.normal(jax.random.key(px), (2, px, px + 1, 3))
    plain, plain_gradient = jax.vjp(lambda i: plain_max_pool(i, window), images)
    ours, gradient = jax.vjp(lambda i: spatial.max_pool(i, window), images)
    np.testing.assert_array_equal(ours, plain)
    grads = jax.random.normal(jax.random.key(1), plain.shape)
    assert_near(gradient(grads)[0], plain_gradient(grads)[0])
