"""Convolution, with the fastest exact algorithm of each backend."""

import jax

from pneumojax.ops import xla


def convolve(images: jax.Array, kernel: jax.Array, stride: int, pad: int | None = None) -> jax.Array:
    """Convolves zero-padded images.

    Args:
      images: [B, H, W, I].
      kernel: [K, K, I, O], of the same dtype.
      stride: step in pixels, at most K unless K is 1.
      pad: number of zeros at each edge, less than K; None: K // 2.

    Returns:
      [B, (H + 2 pad - K) // stride + 1, (W + 2 pad - K) // stride + 1, O]. With the default pad and an odd K, that is
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    pad = kernel.shape[0] // 2 if pad is None else pad
    if xla.uses_xla_algorithms():
        return xla.convolve(images, kernel, stride, [(pad, pad)] * 2)
    from pneumojax.ops import cpu_convolution  # Imported here, because accelerators need none of it.

    return cpu_convolution.convolve(images, kernel, stride, pad)
