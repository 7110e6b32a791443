"""Batch normalisation in training, for GPU with a derivative of its own.

Batch normalisation is bound by memory. On GPU, with the derivative that JAX derives, XLA reads the activations once
more than it must, and stores the gradient behind each ReLU. `normalise_on_gpu` reads an activation and its gradient
twice in the backward pass: once for the sums over the batch, and once to compute the gradient of the input. On TPU,
XLA fuses JAX's derivative with the convolutions.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

AXES = (0, 1, 2)


def normalise(
    images: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    relu: bool,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each channel over the batch, adds a shortcut, and applies a ReLU.

    Args:
      images: [B, H, W, C] of any float dtype.
      scale: [C] float32.
      bias: [C] float32.
      shortcut: [B, H, W, C] of the same dtype as the images; None: nothing is added. It requires a ReLU.
      relu: whether a ReLU is applied.
      epsilon: is added to the variance.
      axis_name: mapped axis over whose devices the mean and the variance are averaged; None: only this device.

    Returns:
      The result [B, H, W, C] of the dtype of the images, the mean [C] float32 and the variance [C] float32.

    References:
      Ioffe and Szegedy, "Batch Normalization", 2015.
    """
    return _forward(images, scale, bias, shortcut, relu, epsilon, axis_name)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def normalise_on_gpu(
    images: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    relu: bool,
    epsilon: float,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Is `normalise`, with a derivative that ignores the gradients of the mean and the variance."""
    return normalise(images, scale, bias, shortcut, relu, epsilon, axis_name)


def _forward(
    images: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    shortcut: jax.Array | None,
    relu: bool,
    epsilon: float,
    axis_name: str | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple]:
    pixels = images.astype(jnp.float32)
    means = jnp.stack([pixels.mean(AXES), (pixels * pixels).mean(AXES)])
    mean, square = lax.pmean(means, axis_name) if axis_name else means
    variance = jnp.maximum(square - mean * mean, 0)  # Rounding can make the difference negative.
    inverse = lax.rsqrt(variance + epsilon)
    result = ((pixels - mean) * (inverse * scale) + bias).astype(images.dtype)
    if shortcut is not None:
        result = result + shortcut
    if relu:
        result = jax.nn.relu(result)
    # The backward pass needs the sign of the result. Without a shortcut, it follows from the images.
    kept = result if shortcut is not None else None
    return (result, mean, variance), (images, kept, scale, bias, mean, inverse)


def _backward(relu: bool, epsilon: float, axis_name: str | None, saved: tuple, grads: tuple) -> tuple:
    del epsilon
    images, result, scale, bias, mean, inverse = saved
    # Without the barriers, XLA would store the signs in the forward pass, and the gradients behind the ReLU here.
    images, result, gradient = lax.optimization_barrier((images, result, grads[0]))

    def standardise(images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) - mean) * inverse

    def pass_relu(images: jax.Array, gradient: jax.Array) -> jax.Array:
        if not relu:
            return gradient.astype(jnp.float32)
        value = standardise(images) * scale + bias if result is None else result.astype(jnp.float32)
        # A product with 0 or 1: XLA would store the result of a comparison as an array of its own.
        return gradient.astype(jnp.float32) * jnp.sign(jax.nn.relu(value))

    passed = pass_relu(images, gradient)
    bias_grad, scale_grad = passed.sum(AXES), (passed * standardise(images)).sum(AXES)
    shortcut_grad = None if result is None else passed.astype(images.dtype)
    means = jnp.stack([bias_grad, scale_grad]) / (images.size // images.shape[-1])
    means = lax.pmean(means, axis_name) if axis_name else means
    images, gradient, means = lax.optimization_barrier(
        (images, gradient if shortcut_grad is None else shortcut_grad, means)
    )
    passed = pass_relu(images, gradient) if shortcut_grad is None else gradient.astype(jnp.float32)
    image_grad = (inverse * scale) * (passed - means[0] - standardise(images) * means[1])
    return image_grad.astype(images.dtype), scale_grad, bias_grad, shortcut_grad


normalise_on_gpu.defvjp(_forward, _backward)
