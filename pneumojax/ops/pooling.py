"""Max-pooling at stride 2.

On CPU and GPU, XLA computes the gradient of max-pooling as a scatter, which is slow. There, the forward pass stores the
position of the maximum in each window as one byte, and the gradient is a single pass over the images. TPU has an
instruction for that gradient, so it runs XLA's own algorithm.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pneumojax.ops.fusion import compute_unfused
from pneumojax.ops.xla import find_algorithms

# An index that no pixel in a window has, for the rows and columns outside of the window.
OUTSIDE = -9


def max_pool(images: jax.Array, window: int, valid: bool = False) -> jax.Array:
    """Applies max-pooling at stride 2.

    Apply increasing functions, such as ReLU and tanh, after the pooling and not before it. The result is the same, at a
    quarter of the cost.

    Args:
      images: [B, H, W, I] with I channels, of any float dtype.
      window: height and width of the window in pixels. 2: padded at the lower and right edge if H or W is odd. 3:
        padded by 1 pixel at each edge.
      valid: no padding. It requires window 2 and at least 2 rows and columns. If H or W is odd, the last row or column
        is dropped.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), I], or [B, H // 2, W // 2, I] if valid, of the same dtype.
    """
    if valid:
        images = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]
    if find_algorithms() not in ("cpu", "gpu"):
        padding = "SAME" if window == 2 else ((1, 1), (1, 1))
        return nnx.max_pool(images, (window, window), strides=(2, 2), padding=padding)
    return _max_pool(images, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(images: jax.Array, window: int) -> jax.Array:
    return _find_maxima(images, window)[0]


def _find_maxima(images: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each window, and its position in the window as int8.

    The position is row * window + column. If several pixels have the maximum, it is the position of the first one.
    """
    image_shape = images.shape[1:3]
    rows, columns = ((px + 1) // 2 for px in image_shape)
    padding = [(window - 2, px % 2) for px in image_shape]
    padded = jnp.pad(images, [(0, 0), *padding, (0, 0)], constant_values=-jnp.inf)
    values = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(window) for j in range(window)
    ]
    maxima, positions = values[0], jnp.zeros(values[0].shape, jnp.int8)
    for position, value in enumerate(values[1:], 1):
        positions = jnp.where(value > maxima, jnp.int8(position), positions)
        maxima = jnp.maximum(maxima, value)
    return maxima, positions


def _max_pool_forward(images: jax.Array, window: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # With fusion, XLA would repeat the search for each use of the maxima, for example in a residual network.
    maxima, positions = compute_unfused(lambda images: _find_maxima(images, window), images)
    return maxima, (positions, images)


def _max_pool_backward(window: int, saved: tuple[jax.Array, jax.Array], grads: jax.Array) -> tuple[jax.Array]:
    positions, images = saved  # Only the shape of the images is used. XLA does not store their values.
    # overlaps[d] has the row index of the image rows 2 i and 2 i + 1 within window i + d. The same holds for columns.
    # Windows of size 3 overlap, so a row can be in two of them.
    overlaps = np.array([[0, 1]] if window == 2 else [[1, 2], [OUTSIDE, 0]])

    def compute_share(down: int, right: int) -> jax.Array:
        """Computes the part of the image gradient that comes from one window for each 2 x 2 block of pixels.

        Block [i, j] has the pixels in rows 2 i and 2 i + 1 and in columns 2 j and 2 j + 1. Its window is
        [i + down, j + right].

        Returns:
          [B, rows, 2, columns, 2, I].
        """
        chosen, shifted = (
            jnp.pad(x[:, down:, right:], ((0, 0), (0, down), (0, right), (0, 0)))[:, :, None, :, None]
            for x in (positions, grads)
        )
        position = window * overlaps[down][:, None, None, None] + overlaps[right][:, None]
        return jnp.where(chosen == position, shifted, 0)

    shares = [compute_share(down, right) for down in range(len(overlaps)) for right in range(len(overlaps))]
    total = functools.reduce(operator.add, shares)
    batch, rows, _, columns, _, channels = total.shape
    total = total.reshape(batch, 2 * rows, 2 * columns, channels)
    return (total[:, : images.shape[1], : images.shape[2]],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
