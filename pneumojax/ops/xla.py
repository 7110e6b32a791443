"""XLA's own convolution, and the choice between XLA's own algorithms and those of this package."""

from collections.abc import Sequence

import jax
from jax import lax

# Functions that are traced inside of `with algorithms("gpu"):` use the algorithms for GPU on every backend. With "xla",
# they use XLA's own algorithms only. With None, they use those for the default backend.
algorithms = jax.make_user_context(None)


def find_algorithms() -> str:
    """Returns the platform for which functions are traced now: cpu, gpu or tpu, or xla for XLA's own algorithms."""
    return algorithms.value or jax.default_backend()


def uses_cpu_algorithms() -> bool:
    """Returns whether functions that are traced now use the algorithms of this package for CPU."""
    return find_algorithms() == "cpu"


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
