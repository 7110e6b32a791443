"""A 1x1 convolution and the batch normalisation behind it, without the array between them.

The output of a 1x1 convolution is a linear function of its input, so its mean and its variance follow from the mean and
the covariance of the input's channels. Both are known before the convolution, whose kernel and bias can then include
the normalisation. The derivative also needs only the input and the gradient of the result.

The array that is neither written nor read is the largest of a bottleneck block, because the block's last convolution
has four times as many output channels as input channels. The price is two products with the covariance, which has the
square of the number of input channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pneumojax.ops import xla


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def convolve_and_normalise(
    images: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    relu: bool,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies a 1x1 convolution and batch normalisation, adds a shortcut, and applies a ReLU.

    The mean and the variance that are returned are for running averages. Their gradients are ignored. Under a mapped
    axis, the gradient of the kernel is correct only when it is averaged over the devices, as `steps.make_update` does.

    Args:
      images: [B, H, W, I] of any float dtype.
      kernel: [I, O] float32. It is rounded to the dtype of the images.
      scale: [O] float32.
      bias: [O] float32.
      shortcut: [B, H, W, O] of the same dtype as the images; None: nothing is added.
      relu: whether a ReLU is applied.
      epsilon: is added to the variance.
      axis_name: mapped axis over whose devices the mean and the variance are averaged; None: only this device.

    Returns:
      The result [B, H, W, O] of the dtype of the images, and the mean [O] and the variance [O] of the convolution's
      output, float32.
    """
    return _forward(images, kernel, scale, bias, shortcut, relu, epsilon, axis_name)[0]


def _forward(
    images: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    relu: bool,
    epsilon: float,
    axis_name: str | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple]:
    dtype, positions = images.dtype, images.size // images.shape[-1]
    kernel = kernel.astype(dtype).astype(jnp.float32)
    centre, moments = images.mean((0, 1, 2), dtype=jnp.float32), _correlate(images, images) / positions
    if axis_name:
        centre, moments = lax.pmean((centre, moments), axis_name)
    # [I, O]: covariance of the input's channels with the output's channels.
    covariance = _multiply(moments - centre[:, None] * centre, kernel)
    mean, variance = _multiply(centre, kernel), jnp.maximum((kernel * covariance).sum(0), 0)
    inverse = lax.rsqrt(variance + epsilon)
    folded = (kernel * (inverse * scale)).astype(dtype)
    result = _convolve(images, folded) + (bias - mean * inverse * scale).astype(dtype)
    if shortcut is not None:
        result = result + shortcut
    if relu:
        result = jax.nn.relu(result)
    kept = (images, result if relu else None, kernel, folded, scale, centre, covariance, mean, inverse)
    return (result, mean, variance), (*kept, shortcut is not None)


def _backward(relu: bool, epsilon: float, axis_name: str | None, saved: tuple, grads: tuple) -> tuple:
    # With the output x = images @ kernel of the convolution, n positions, and the gradient g behind the ReLU, the
    # gradient of x is factor * (g - sum(g) / n - normalised(x) * scale_grad / n). Each product with x is written here
    # as a product with the images.
    del epsilon
    images, result, kernel, folded, scale, centre, covariance, mean, inverse, adds = saved
    [gradient, _, _], positions, factor = grads, images.size // images.shape[-1], inverse * scale
    if relu:
        gradient = gradient * jnp.sign(result)
    correlation, bias_grad = _correlate(images, gradient), gradient.sum((0, 1, 2), dtype=jnp.float32)
    scale_grad = inverse * ((kernel * correlation).sum(0) - mean * bias_grad)
    kernel_grad = factor * (correlation - centre[:, None] * bias_grad - inverse * covariance * scale_grad)
    means = jnp.stack([bias_grad, scale_grad]) / positions
    means = lax.pmean(means, axis_name) if axis_name else means
    mixed = _multiply(kernel * (inverse * factor * means[1]), kernel.T)
    offset = _multiply(centre, mixed) - _multiply(factor * means[0], kernel.T)
    image_grad = _convolve(images, -mixed.astype(images.dtype)) + offset.astype(images.dtype)
    image_grad = image_grad + _convolve(gradient, folded.T)
    return image_grad, kernel_grad, scale_grad, bias_grad, gradient if adds else None


def _convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
    return xla.convolve(images, kernel[None, None], 1, [(0, 0), (0, 0)])


def _correlate(first: jax.Array, second: jax.Array) -> jax.Array:
    """Sums the products of all pairs of channels: [B, H, W, I], [B, H, W, O] -> [I, O] float32."""
    return jnp.einsum("bhwi,bhwo->io", first, second, preferred_element_type=jnp.float32)


def _multiply(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.matmul(first, second, precision="highest")


convolve_and_normalise.defvjp(_forward, _backward)
