"""Convolution and max-pooling; on CPU in the forms that XLA runs fast there.

XLA's CPU backend has a fast convolution for one layout only. Outside a loop it rewrites the gradients into that
layout. Inside `lax.scan` (jax 0.10) it folds the rewriting away again and falls back to a plain loop nest, 10 to 60
times slower. Here the gradients are written in the fast layout from the start, with barriers that keep it. The
gradient of max-pooling, a scatter there, is written as maxima of slices: 2 to 5 ms for 75 ms on [32, 64, 64, 32].
Other backends run XLA's own forms.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

# Below this height or width of the result, XLA's fast convolution falls behind a matrix product of patches (10 to 20
# against 150 GFLOP/s at 2 px, 128 channels, batch 32, on 2 cores).
MIN_CONVOLUTION_PX = 4


def convolve(images: jax.Array, kernel: jax.Array, stride: int, pad: int | None = None) -> jax.Array:
    """Convolution of zero-padded images.

    Args:
      images: [B, H, W, I].
      kernel: [K, K, I, O], of the same dtype.
      stride: step in pixels.
      pad: zeros on each side, less than K; None: K // 2.

    Returns:
      [B, (H + 2 pad - K) // stride + 1, (W + 2 pad - K) // stride + 1, O]; by default, for odd K, that is
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    size = kernel.shape[0]
    pad = size // 2 if pad is None else pad
    if jax.default_backend() != "cpu":
        return _convolve(images, kernel, stride, [(pad, pad)] * 2)
    if size == 1:
        return images[:, ::stride, ::stride] @ kernel[0, 0]
    if (images.shape[1] + 2 * pad - size) // stride + 1 < MIN_CONVOLUTION_PX:
        return _convolve_patches(images, kernel, stride, pad)
    return _convolve_on_cpu(images, kernel, stride, pad)


def max_pool(images: jax.Array, window: int, whole: bool = False) -> jax.Array:
    """Max-pooling at stride 2.

    Args:
      images: [B, H, W, C].
      window: 2, padded at the lower and right edge where H or W is odd, or 3, padded by 1 on each side.
      whole: with window 2, whole windows only: an odd H or W loses its last row or column (H and W at least 2).

    Returns:
      [B, ceil(H / 2), ceil(W / 2), C]; if whole [B, H // 2, W // 2, C].
    """
    if whole:
        images = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2]
    if jax.default_backend() != "cpu":
        padding = "SAME" if window == 2 else ((1, 1), (1, 1))
        return nnx.max_pool(images, (window, window), strides=(2, 2), padding=padding)
    return _halve(_halve(images, 1, window), 2, window)


def _halve(images: jax.Array, axis: int, window: int) -> jax.Array:
    """Max-pooling along one axis: places 2i and 2i + 1, and with window 3 also 2i - 1."""
    length = images.shape[axis]
    even = lax.slice_in_dim(images, 0, length, 2, axis)
    odd = lax.slice_in_dim(images, 1, length, 2, axis)
    nothing = jnp.full_like(lax.slice_in_dim(images, 0, 1, 1, axis), -jnp.inf)
    if length % 2:
        odd = jnp.concatenate([odd, nothing], axis)
    largest = jnp.maximum(even, odd)
    if window == 2:
        return largest
    before = jnp.concatenate([nothing, lax.slice_in_dim(odd, 0, odd.shape[axis] - 1, 1, axis)], axis)
    return jnp.maximum(largest, before)


def _convolve(
    images: jax.Array, kernel: jax.Array, stride: int, padding: list[tuple[int, int]], **dilation
) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=layout, **dilation)


def _convolve_patches(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """The product of all patches with the kernel as a matrix; its gradients are products too."""
    size = kernel.shape[0]
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((side - size) // stride + 1 for side in padded.shape[1:3])
    patches = [
        padded[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_on_cpu(images: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    return _convolve(images, kernel, stride, [(pad, pad)] * 2)


def _forward(images, kernel, stride, pad):
    return _convolve_on_cpu(images, kernel, stride, pad), (images, kernel)


def _backward(stride, pad, saved, grads):
    images, kernel = saved
    size = kernel.shape[0]
    # What the strides leave over of the padded image at its lower and right edge.
    sides = zip(images.shape[1:3], grads.shape[1:3], strict=True)
    rest = [side + 2 * pad - size - stride * (out - 1) for side, out in sides]

    # The kernel's gradient: the images, with channels for batch, convolved with the gradients as one large kernel.
    by_channel = lax.optimization_barrier(images.transpose(3, 1, 2, 0))
    as_kernel = lax.optimization_barrier(grads.transpose(1, 2, 0, 3))
    padding = [(pad, pad - r) for r in rest]
    kernel_grads = _convolve(by_channel, as_kernel, 1, padding, rhs_dilation=(stride, stride)).transpose(1, 2, 0, 3)

    # The images' gradient is the convolution of the spread-out gradients with the kernel turned by half a turn.
    turned = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    lower = size - 1 - pad
    padding = [(lower, lower + r) for r in rest]
    image_grads = _convolve(grads, turned, 1, padding, lhs_dilation=(stride, stride))
    return image_grads, kernel_grads


_convolve_on_cpu.defvjp(_forward, _backward)
