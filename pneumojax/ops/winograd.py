"""Winograd's minimal filtering over the rows of images, which halves the products of a convolution.

A tile is six rows of the padded images. The algorithm transforms the tile with a matrix B, and the rows of the kernel
with a matrix G, into six rows each. The two are multiplied by convolutions over the columns or, for few pixels, by a
matrix product for each kernel column. A matrix A transforms the six products into rows of the output, four for a kernel
with three rows. The kernel gradient applies the transposed steps in reverse order. The rounding error of the transforms
is about 3e-6 of the largest value in float32. In half precision it would be too large.

References:
  Lavin, Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. They transform the columns as well,
  which saves more products. In XLA's CPU backend, the additional sums take more time than this saves, and the rounding
  error would exceed 1e-5.
"""

import functools
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial import polynomial

# The algorithm treats the rows as coefficients of polynomials, and evaluates these at the points below and at infinity.
POINTS = (0, 1, -1, 2, -2)
TILE = len(POINTS) + 1


@functools.cache
def make_matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes the transforms for kernels with `size` rows.

    Returns:
      (A, B, G), float32 matrices of shape [6, 7 - size], [6, 6] and [6, size]. Each has a row for each product.
    """

    def evaluate(length: int) -> np.ndarray:
        at_infinity = np.arange(length) == length - 1  # The value at infinity is the last coefficient.
        return np.vstack([np.vander(POINTS, length, increasing=True), at_infinity])

    others = [np.delete(POINTS, i) for i in range(len(POINTS))]
    scale = [*(np.prod(point - rest) for point, rest in zip(POINTS, others, strict=True)), 1]
    b = [*(np.append(polynomial.polyfromroots(rest), 0) for rest in others), polynomial.polyfromroots(POINTS)]
    g = evaluate(size) / np.array(scale)[:, None]
    return evaluate(TILE + 1 - size).astype(np.float32), np.array(b, np.float32), g.astype(np.float32)


def transform_kernel(kernel: jax.Array) -> list[jax.Array]:
    """Transforms a kernel [K, K, I, O] into six kernels with one row, [1, K, I, O], one for each product."""
    return [_sum_weighted(weights, kernel)[None] for weights in make_matrices(len(kernel))[2]]


def convolve(images: jax.Array, kernels: list[jax.Array], pad: int, convolve_columns: Callable) -> jax.Array:
    """Convolves zero-padded images at stride 1.

    Args:
      images: [B, H, W, I].
      kernels: from `transform_kernel`.
      pad: number of zeros at each edge.
      convolve_columns: `convolve_columns(rows, kernel)` convolves rows [B, tiles, W, I] with a kernel [1, K, I, O] and
        pads the columns by `pad`.

    Returns:
      [B, H + 2 pad + 1 - K, W + 2 pad + 1 - K, O].
    """
    size = kernels[0].shape[1]
    a, b, _ = make_matrices(size)
    rows = _split_into_tiles(images, size, pad)
    products = [
        convolve_columns(_sum_weighted(weights, rows), kernel) for weights, kernel in zip(b, kernels, strict=True)
    ]
    tiles = jnp.stack([_sum_weighted(weights, products) for weights in a.T], 2)
    output = tiles.reshape(len(images), -1, *tiles.shape[3:])
    return output[:, : images.shape[1] + 2 * pad + 1 - size]


def compute_kernel_grads(images: jax.Array, grads: jax.Array, size: int, pad: int) -> jax.Array:
    """Computes the kernel gradient with a convolution for each of the six products.

    The images are convolved with the gradients of the output, which have the role of a large kernel. The channels of
    the images have the role of the batch.

    Args:
      images: [I, H, W, B].
      grads: [H + 2 pad + 1 - K, W + 2 pad + 1 - K, B, O], gradients of the output.
      size: K.
      pad: number of zeros at each edge of the images.

    Returns:
      [I, K, K, O].
    """
    a, b, g = make_matrices(size)
    image_rows, grad_rows = _split_into_tiles(images, size, pad), _split_output(grads, size, 0)

    def multiply(weights: tuple[jax.Array, jax.Array]) -> jax.Array:
        of_images, of_grads = weights
        rows, kernel = _sum_weighted(of_images, image_rows), _sum_weighted(of_grads, grad_rows)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(rows, kernel, (1, 1), [(0, 0), (pad, pad)], dimension_numbers=layout)[:, 0]

    # The loop keeps XLA from transposing the images again for each product.
    products = lax.map(multiply, (b, a))
    return jnp.stack([_sum_weighted(weights, products) for weights in g.T], 1)


def multiply_kernel_grads(images: jax.Array, grads: jax.Array, size: int, pad: int) -> jax.Array:
    """Computes the kernel gradient with matrix products, one for each of the six products and each kernel column.

    Args:
      images: [B, H, W, I].
      grads: [B, H + 2 pad + 1 - K, W + 2 pad + 1 - K, O], gradients of the output.
      size: K.
      pad: number of zeros at each edge of the images.

    Returns:
      [K, K, I, O].
    """
    a, b, g = make_matrices(size)
    image_rows, grad_rows = _split_into_tiles(images, size, pad), _split_output(grads, size, 1)

    def multiply(rows: jax.Array, grads: jax.Array, tap: int) -> jax.Array:
        # Only the output columns where the tap meets the image contribute.
        first, end = max(0, pad - tap), min(grads.shape[2], rows.shape[2] + pad - tap)
        overlap = rows[:, :, first + tap - pad : end + tap - pad], grads[:, :, first:end]
        of_images, of_grads = (array.reshape(-1, array.shape[-1]) for array in overlap)
        return of_images.T @ of_grads

    sums = [
        (_sum_weighted(of_images, image_rows), _sum_weighted(of_grads, grad_rows))
        for of_images, of_grads in zip(b, a, strict=True)
    ]
    products = [[multiply(rows, grads, tap) for rows, grads in sums] for tap in range(size)]
    return jnp.stack([jnp.stack([_sum_weighted(weights, of_tap) for of_tap in products]) for weights in g.T])


def _split_into_tiles(images: jax.Array, size: int, pad: int) -> list[jax.Array]:
    """Returns six arrays [B, tiles, W, I]: the first rows of all tiles, the second rows, and so on."""
    step = TILE + 1 - size
    height = images.shape[1] + 2 * pad + 1 - size
    tiles, more = -(-height // step), -(-(size - 1) // step)
    after = (tiles + more) * step - pad - images.shape[1]
    padded = jnp.pad(images, [(0, 0), (pad, after), (0, 0), (0, 0)])
    padded = padded.reshape(len(images), -1, step, *images.shape[2:])
    return [padded[:, row // step :][:, :tiles, row % step] for row in range(TILE)]


def _split_output(grads: jax.Array, size: int, axis: int) -> list[jax.Array]:
    """Returns the first output rows of all tiles, the second rows, and so on. `axis` is the axis of the rows."""
    step = TILE + 1 - size
    padded = jnp.pad(grads, [(0, -length % step if i == axis else 0) for i, length in enumerate(grads.shape)])
    padded = padded.reshape(*grads.shape[:axis], -1, step, *grads.shape[axis + 1 :])
    return [lax.index_in_dim(padded, row, axis + 1, keepdims=False) for row in range(step)]


def _sum_weighted(weights: np.ndarray | jax.Array, arrays: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """Returns the weighted sum of arrays. Weights that are 0 at trace time are left out."""
    known = isinstance(weights, np.ndarray)
    pairs = zip(weights, arrays, strict=True)
    return functools.reduce(operator.add, (weight * array for weight, array in pairs if not known or weight))
