"""XLA's own convolution, and a switch between XLA's own algorithms and the algorithms of this package."""

from collections.abc import Sequence

import jax
from jax import lax

# Functions that are traced inside of `with xla_algorithms(True):` use XLA's own algorithms on every backend.
xla_algorithms = jax.make_user_context(False)


def uses_xla_algorithms() -> bool:
    """Returns whether functions that are traced now use XLA's own algorithms. On GPU and TPU they always do."""
    return xla_algorithms.value or jax.default_backend() != "cpu"


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Sequence[tuple[int, int]],
    rhs_dilation: tuple[int, int] | None = None,
) -> jax.Array:
    """Convolves images with `lax.conv_general_dilated`.

    Args:
      images: [B, H, W, I].
      kernel: [K, L, I, O], of the same dtype.
      stride: step in pixels, in both spatial dimensions.
      padding: (before, after) in pixels for each spatial dimension.
      rhs_dilation: distance of adjacent kernel rows and of adjacent kernel columns in pixels; None: 1.

    Returns:
      [B, H', W', O], of the same dtype.
    """
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, rhs_dilation=rhs_dilation, dimension_numbers=layout
    )
