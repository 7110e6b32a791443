"""Max-pooling at stride 2."""

import jax
from flax import nnx

from pneumojax.ops.xla import find_algorithms


def max_pool(images: jax.Array, window: int, valid: bool = False) -> jax.Array:
    """Applies max-pooling at stride 2.

    Apply increasing functions, such as ReLU and tanh, after the pooling and not before it. The result is the same, at a
    quarter of the cost.

    Args:
      images: [B, H, W, I] with I channels, of any float dtype.
      window: height and width of the window in pixels. 2: padded at the lower and right edge if H or W is odd. 3:
        padded by 1 pixel at each edge.
      valid: no padding. It requires window 2 and at least 2 rows and columns. An odd last row or column is dropped.

    Returns:
      [B, ceil(H / 2), ceil(W / 2), I], or [B, H // 2, W // 2, I] if valid, of the same dtype.
    """
    if valid:
        for axis in (1, 2):  # Indexing would become a gather in an export, where the number of images is a symbol.
            images = jax.lax.slice_in_dim(images, 0, images.shape[axis] // 2 * 2, axis=axis)
    if find_algorithms() not in ("cpu", "gpu"):
        padding = "SAME" if window == 2 else ((1, 1), (1, 1))
        return nnx.max_pool(images, (window, window), strides=(2, 2), padding=padding)
    # XLA computes the gradient as a scatter here, which is slow. TPU has an instruction for it.
    from pneumojax.ops import position_pooling

    return position_pooling.max_pool(images, window)
