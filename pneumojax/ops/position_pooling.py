"""Max-pooling at stride 2 for CPU and GPU, whose gradient is a single pass over the images.

The forward pass stores the position of the maximum in each window as one byte.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from pneumojax.ops.fusion import compute_unfused

# An index that no pixel in a window has, for the rows and columns outside of the window.
OUTSIDE = -9


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(images: jax.Array, window: int) -> jax.Array:
    """Applies max-pooling; arguments as in `pooling.max_pool`."""
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


max_pool.defvjp(_max_pool_forward, _max_pool_backward)
