"""XLA's own algorithms: whether they are used in place of this package's, and its convolution."""

from collections.abc import Sequence

import jax
from jax import lax

# What is traced inside `with xla_algorithms(True):` uses XLA's own algorithms on every backend.
xla_algorithms = jax.make_user_context(False)


def uses_xla_algorithms() -> bool:
    """Whether functions that are traced now use XLA's own algorithms. On other backends than CPU they always do."""
    return xla_algorithms.value or jax.default_backend() != "cpu"


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Sequence[tuple[int, int]],
    rhs_dilation: tuple[int, int] | None = None,
) -> jax.Array:
    """Convolves [B, H, W, I] images by a kernel [K, L, I, O]; `padding` and `rhs_dilation` as in `lax`."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, rhs_dilation=rhs_dilation, dimension_numbers=layout
    )
