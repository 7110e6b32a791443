"""Winograd's minimal filtering over the rows of images: half the products of a convolution, and sums around them.

A tile is six rows of the padded images. Summed with the weights B they are six others, as are the rows of the kernel
with G. The two are multiplied by convolutions over the columns alone, or for few pixels by a matrix product for each
column of the kernel. Summed with A the six products are rows of the result, four for a kernel of three rows. The
kernel's gradient goes the same way backwards. The sums round: to about 3e-6 of the largest value in float32, too
coarsely in half precision.

References:
  Lavin, Gray, Fast algorithms for convolutional neural networks, CVPR 2016. They transform the columns as well, which
  saves more products; in XLA's CPU backend the sums then take longer than that gains, and round to more than 1e-5.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial import polynomial

# Rows are the coefficients of polynomials; these are where they are evaluated, and the last place is infinity.
POINTS = (0, 1, -1, 2, -2)
TILE = len(POINTS) + 1


@functools.cache
def make_matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [6, 7 - size], B [6, 6] and G [6, size] for kernels of `size` rows, float32: a row for each product."""

    def evaluate(length):
        at_infinity = np.arange(length) == length - 1  # where the last coefficient counts alone
        return np.vstack([np.vander(POINTS, length, increasing=True), at_infinity])

    others = [np.delete(POINTS, i) for i in range(len(POINTS))]
    scale = [*(np.prod(point - rest) for point, rest in zip(POINTS, others, strict=True)), 1]
    b = [*(np.append(polynomial.polyfromroots(rest), 0) for rest in others), polynomial.polyfromroots(POINTS)]
    return np.float32(evaluate(TILE + 1 - size)), np.float32(b), np.float32(evaluate(size) / np.array(scale)[:, None])


def transform_kernel(kernel: jax.Array) -> list[jax.Array]:
    """[K, K, I, O] -> a kernel of one row, [1, K, I, O], for each product."""
    return [_add_up(weights, kernel)[None] for weights in make_matrices(len(kernel))[2]]


def convolve(images: jax.Array, kernels: list[jax.Array], pad: int, convolve_columns: Callable) -> jax.Array:
    """Convolution at stride 1 of zero-padded images.

    Args:
      images: [B, H, W, I].
      kernels: of `transform_kernel`.
      pad: zeros on each side.
      convolve_columns: `convolve_columns(rows [B, tiles, W, I], kernel [1, K, I, O])` with `pad` zeros beside the
        columns.

    Returns:
      [B, H + 2 pad + 1 - K, W + 2 pad + 1 - K, O].
    """
    size = kernels[0].shape[1]
    a, b, _ = make_matrices(size)
    under = _cut_into_tiles(images, size, pad)
    products = [convolve_columns(_add_up(weights, under), kernel) for weights, kernel in zip(b, kernels, strict=True)]
    tiles = jnp.stack([_add_up(weights, products) for weights in a.T], 2)
    result = tiles.reshape(len(images), -1, *tiles.shape[3:])
    return result[:, : images.shape[1] + 2 * pad + 1 - size]


def compute_kernel_grads(images: jax.Array, grads: jax.Array, size: int, pad: int) -> jax.Array:
    """Gradients of the kernel.

    Args:
      images: [I, H, W, B], with channels for batch.
      grads: of the result, [H + 2 pad + 1 - K, W + 2 pad + 1 - K, B, O], as one large kernel.
      size: K.
      pad: zeros on each side of the images.

    Returns:
      [I, K, K, O].
    """
    a, b, g = make_matrices(size)
    under, tiles = _cut_into_tiles(images, size, pad), _cut_result(grads, size, 0)

    def multiply(weights):
        of_images, of_grads = weights
        rows, kernel = _add_up(of_images, under), _add_up(of_grads, tiles)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(rows, kernel, (1, 1), [(0, 0), (pad, pad)], dimension_numbers=layout)[:, 0]

    # A loop, so that XLA does not put the images into their order anew for each product.
    products = lax.map(multiply, (b, a))
    return jnp.stack([_add_up(weights, products) for weights in g.T], 1)


def multiply_kernel_grads(images: jax.Array, grads: jax.Array, size: int, pad: int) -> jax.Array:
    """Gradients of the kernel by one matrix product for each sum of rows and each tap of the columns.

    Args:
      images: [B, H, W, I].
      grads: of the result, [B, H + 2 pad + 1 - K, W + 2 pad + 1 - K, O].
      size: K.
      pad: zeros on each side of the images.

    Returns:
      [K, K, I, O].
    """
    a, b, g = make_matrices(size)
    under, tiles = _cut_into_tiles(images, size, pad), _cut_result(grads, size, 1)

    def multiply(rows, grads, tap):
        # The columns of the images that the tap meets, and where in the result it does.
        first, end = max(0, pad - tap), min(grads.shape[2], rows.shape[2] + pad - tap)
        met = rows[:, :, first + tap - pad : end + tap - pad], grads[:, :, first:end]
        of_images, of_grads = (array.reshape(-1, array.shape[-1]) for array in met)
        return of_images.T @ of_grads

    sums = [(_add_up(of_images, under), _add_up(of_grads, tiles)) for of_images, of_grads in zip(b, a, strict=True)]
    products = [[multiply(rows, grads, tap) for rows, grads in sums] for tap in range(size)]
    return jnp.stack([jnp.stack([_add_up(weights, of_tap) for of_tap in products]) for weights in g.T])


def _cut_into_tiles(images, size, pad):
    """The first, the second, ... the sixth rows of all tiles: six arrays [B, tiles, W, I]."""
    step = TILE + 1 - size
    height = images.shape[1] + 2 * pad + 1 - size
    tiles, more = -(-height // step), -(-(size - 1) // step)
    after = (tiles + more) * step - pad - images.shape[1]
    padded = jnp.pad(images, [(0, 0), (pad, after), (0, 0), (0, 0)])
    padded = padded.reshape(len(images), -1, step, *images.shape[2:])
    return [padded[:, row // step :][:, :tiles, row % step] for row in range(TILE)]


def _cut_result(grads, size, axis):
    """The first, the second, ... row of all tiles of the result, whose rows lie along an axis."""
    step = TILE + 1 - size
    padded = jnp.pad(grads, [(0, -side % step if i == axis else 0) for i, side in enumerate(grads.shape)])
    padded = padded.reshape(*grads.shape[:axis], -1, step, *grads.shape[axis + 1 :])
    return [lax.index_in_dim(padded, row, axis + 1, keepdims=False) for row in range(step)]


def _add_up(weights, arrays):
    """Their weighted sum. Of weights known before it runs those that are 0 are left out."""
    known = isinstance(weights, np.ndarray)
    return sum(weight * array for weight, array in zip(weights, arrays, strict=True) if not known or weight)
