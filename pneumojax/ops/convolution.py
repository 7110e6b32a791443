"""Convolution, with the fastest exact algorithm for each backend."""

import jax

from pneumojax.ops import xla


def convolve(images: jax.Array, kernel: jax.Array, stride: int, pad: int | None = None) -> jax.Array:
    """Convolves zero-padded images.

    As usual for neural networks, the kernel is not flipped. The function is differentiable in reverse mode.

    Args:
      images: [B, H, W, I] with I input channels, of any float dtype.
      kernel: [K, K, I, O] with O output channels, of the same dtype.
      stride: step in pixels, at most K unless K is 1.
      pad: number of zeros at each edge, less than K; None: K // 2.

    Returns:
      [B, (H + 2 pad - K) // stride + 1, (W + 2 pad - K) // stride + 1, O], of the same dtype. With the default pad and
      an odd K, this is [B, ceil(H / stride), ceil(W / stride), O].
    """
    pad = kernel.shape[0] // 2 if pad is None else pad
    if not xla.uses_cpu_algorithms():
        return xla.convolve(images, kernel, stride, [(pad, pad)] * 2)
    from pneumojax.ops import cpu_convolution  # Imported here because accelerators do not need it.

    return cpu_convolution.convolve(images, kernel, stride, pad)
