"""Pixels as a network sees them."""

import jax
import jax.numpy as jnp

# Radiographs have a mean near 0.5 and a standard deviation near 0.25 of their range. These are constants rather than
# statistics of the training split, so that a network needs only its weights to predict.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25

# Added to the standard deviation of an image, so that a constant image stays finite.
SMALLEST_STD = 0.02


def scale_pixels(images: jax.Array) -> jax.Array:
    """[B, H, W] uint8 0..255 -> float32 0..1."""
    return images.astype(jnp.float32) / 255


def normalise(images: jax.Array, pixel_scaling: str = "fixed") -> jax.Array:
    """Scales images for a network.

    Args:
      images: [B, H, W] float32, 0..1.
      pixel_scaling: fixed scales all images alike, to -2..2. image scales each image to mean 0 and standard deviation
        1, so that its exposure and contrast do not reach the network.

    Returns:
      [B, H, W, 1] float32.
    """
    if pixel_scaling == "image":
        images = images - images.mean((1, 2), keepdims=True)
        return (images / (jnp.sqrt((images**2).mean((1, 2), keepdims=True)) + SMALLEST_STD))[..., None]
    return ((images - PIXEL_MEAN) / PIXEL_STD)[..., None]
