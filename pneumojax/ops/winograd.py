"""Winograd's minimal filtering over the rows of images. It halves the multiplications of a convolution.

The padded images are divided into tiles of six overlapping rows. For each tile, the algorithm takes these steps:

1. A matrix B transforms the six rows of the tile into six other rows.
2. A matrix G transforms the K rows of the kernel into six rows.
3. Each of the six pairs of rows is multiplied: by a convolution over the columns or, for small images, by a matrix
   product for each kernel column. The results are called the six products.
4. The transpose of a matrix A transforms the six products into 7 - K rows of the output.

The kernel gradient applies the transposed steps in reverse order. In float32, the rounding error of the transforms is
about 3e-6 of the largest value. In half precision it would be too large.

K is the kernel size. I and O are the numbers of input and output channels.

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

# The algorithm treats rows as coefficients of polynomials, and evaluates these at the points below and at infinity.
POINTS = (0, 1, -1, 2, -2)
# Number of rows in a tile, which is also the number of products.
TILE = len(POINTS) + 1


@functools.cache
def make_matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes the matrices of the transforms, which are described at the top of this module.

    Args:
      size: kernel size K.

    Returns:
      (A, B, G): [6, 7 - K], [6, 6] and [6, K] float32. Row i of each matrix belongs to product i.
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
    """Transforms a kernel [K, K, I, O] float32 into six kernels [1, K, I, O] with one row, one for each product."""
    return [_sum_weighted(weights, kernel)[None] for weights in make_matrices(len(kernel))[2]]


def convolve(images: jax.Array, kernels: list[jax.Array], pad: int, convolve_columns: Callable) -> jax.Array:
    """Convolves zero-padded images at stride 1.

    Args:
      images: [B, H, W, I] float32.
      kernels: from `transform_kernel`.
      pad: number of zeros at each edge.
      convolve_columns: `convolve_columns(rows, kernel)` convolves rows [B, tiles, W, I] by a kernel [1, K, I, O], with
        `pad` zeros at the left and right edge.

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

    The images are convolved by the gradients of the output, which have the role of a large kernel. The channels of the
    images have the role of the batch.

    Args:
      images: [I, H, W, B] float32.
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

    # Without a loop, XLA would transpose the images again for each product.
    products = lax.map(multiply, (b, a))
    return jnp.stack([_sum_weighted(weights, products) for weights in g.T], 1)


def multiply_kernel_grads(images: jax.Array, grads: jax.Array, size: int, pad: int) -> jax.Array:
    """Computes the same as `compute_kernel_grads`, with matrix products instead of convolutions.

    There is a matrix product for each kernel column and each of the six products of the algorithm. This is faster for
    small images.

    Args:
      images: [B, H, W, I] float32.
      grads: [B, H + 2 pad + 1 - K, W + 2 pad + 1 - K, O], gradients of the output.
      size: K.
      pad: number of zeros at each edge of the images.

    Returns:
      [K, K, I, O].
    """
    a, b, g = make_matrices(size)
    image_rows, grad_rows = _split_into_tiles(images, size, pad), _split_output(grads, size, 1)

    def multiply(rows: jax.Array, grads: jax.Array, tap: int) -> jax.Array:
        # Output columns where the tap meets only padding do not contribute.
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
    """Returns six arrays [B, tiles, W, I]. Array i has row i of each tile."""
    step = TILE + 1 - size
    height = images.shape[1] + 2 * pad + 1 - size
    tiles, more = -(-height // step), -(-(size - 1) // step)
    after = (tiles + more) * step - pad - images.shape[1]
    padded = jnp.pad(images, [(0, 0), (pad, after), (0, 0), (0, 0)])
    padded = padded.reshape(len(images), -1, step, *images.shape[2:])
    return [padded[:, row // step :][:, :tiles, row % step] for row in range(TILE)]


def _split_output(grads: jax.Array, size: int, axis: int) -> list[jax.Array]:
    """Returns 7 - K arrays. Array i has row i of the output of each tile. `axis` is the axis of the rows in `grads`."""
    step = TILE + 1 - size
    padded = jnp.pad(grads, [(0, -length % step if i == axis else 0) for i, length in enumerate(grads.shape)])
    padded = padded.reshape(*grads.shape[:axis], -1, step, *grads.shape[axis + 1 :])
    return [lax.index_in_dim(padded, row, axis + 1, keepdims=False) for row in range(step)]


def _sum_weighted(weights: np.ndarray | jax.Array, arrays: Sequence[jax.Array] | jax.Array) -> jax.Array:
    """Returns the weighted sum of arrays. Terms whose weight is a constant 0 are left out of the program."""
    known = isinstance(weights, np.ndarray)
    pairs = zip(weights, arrays, strict=True)
    return functools.reduce(operator.add, (weight * array for weight, array in pairs if not known or weight))
