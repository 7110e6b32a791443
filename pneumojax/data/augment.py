"""Augmentation: pure functions of a key and an image, which run inside the compiled step.

Each image has its own key, so the result depends neither on its batch nor on the number of devices.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pneumojax.config import AugmentConfig

# Degree of the random tone curves. Four segments change shadows, midtones and highlights separately.
TONE_DEGREE = 4


def make_augment(config: AugmentConfig) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Makes the augmentation that the config describes.

    Args:
      config: the ranges. An operation whose range is zero is left out of the compiled program. augment_strength may be
        an array.

    Returns:
      `augment(keys, images)`: keys [B], images [B, H, W] float32 0..1 -> [B, H, W] float32 0..1.
    """
    crops = config.crop_min_area < 1
    geometry = config.rotate_degrees or config.shift or config.zoom or crops or config.stretch or config.flip
    steps = (
        (geometry, lambda key, image, strength: resample(image, draw_transform(key, config, strength))),
        (
            config.brightness or config.contrast or config.gamma,
            lambda key, image, strength: change_intensity(
                key, image, config.brightness, config.contrast, config.gamma, strength
            ),
        ),
        (
            config.erase_probability,
            lambda key, image, strength: erase(key, image, strength * config.erase_probability),
        ),
        # Later operations are appended, so that the keys of the steps above stay the same.
        (config.tone, lambda key, image, strength: change_tone(key, image, strength * config.tone)),
        (config.sharpness, lambda key, image, strength: change_sharpness(key, image, strength * config.sharpness)),
        (config.noise, lambda key, image, strength: add_noise(key, image, strength * config.noise)),
    )

    def augment_one(key: jax.Array, image: jax.Array) -> jax.Array:
        # A single run has a Python float and a replica an array. Both must be rounded alike, so both are float32.
        strength = jnp.asarray(config.augment_strength, jnp.float32)
        for i, (wanted, step) in enumerate(steps):
            if wanted:
                image = step(jax.random.fold_in(key, i), image, strength)
        return image

    return jax.vmap(augment_one)


def shrink(images: jax.Array, image_px: int) -> jax.Array:
    """Reduces images by area averaging: if the ratio is an integer, each pixel is the mean of a block of pixels.

    Args:
      images: [B, H, H] float32.
      image_px: height and width of the result, at most H.

    Returns:
      [B, image_px, image_px] float32.
    """
    size = images.shape[1]
    edges = np.arange(image_px + 1) * size / image_px
    starts, pixel = edges[:-1, None], np.arange(size)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(starts, pixel)
    weights = jnp.asarray(covered.clip(0) * image_px / size, jnp.float32)
    # On an accelerator, a matrix product in the default precision would round grey values.
    return jnp.einsum("ph,bhw,qw->bpq", weights, images, weights, precision="highest")


def keep_pneumonia(images: jax.Array, augmented: jax.Array, labels: jax.Array) -> jax.Array:
    """Selects the augmented images of NORMAL and the unchanged images of pneumonia.

    Args:
      images: [B, H, W] float32.
      augmented: [B, H, W] float32.
      labels: [B] int32, 0 = NORMAL.

    Returns:
      [B, H, W] float32.
    """
    return jnp.where((labels == 0)[:, None, None], augmented, images)


def draw_transform(key: jax.Array, config: AugmentConfig, strength: float | jax.Array = 1.0) -> jax.Array:
    """Samples one affine map that combines all geometric operations, so that the image is resampled only once.

    Args:
      key: PRNG key.
      config: the ranges.
      strength: the ranges are multiplied by this.

    Returns:
      [2, 3] float32 matrix that maps an output position (x, y, 1) to an input position. The coordinates of both are
      -1..1 from edge to edge.

    References:
      Szegedy et al., "Going Deeper with Convolutions", 2015: the random resized crop, aspect 3/4 to 4/3.
    """
    keys = jax.random.split(key, 7)
    angle = strength * math.radians(config.rotate_degrees) * jax.random.uniform(keys[0], minval=-1, maxval=1)
    scale = 1 / (1 + strength * config.zoom * jax.random.uniform(keys[1], minval=-1, maxval=1))
    # In these units, the image is 2 wide and 2 high.
    shift = 2 * strength * config.shift * jax.random.uniform(keys[2], (2,), minval=-1, maxval=1)
    cos, sin = scale * jnp.cos(angle), scale * jnp.sin(angle)
    linear = jnp.array([[cos, -sin], [sin, cos]])
    if config.crop_min_area < 1:
        area = jax.random.uniform(keys[3], minval=1 - strength * (1 - config.crop_min_area), maxval=1)
        # A large box must be nearly square to fit into the image with its full area.
        widest = jnp.minimum(math.log(config.crop_max_aspect), -jnp.log(area))
        aspect = jnp.exp(widest * jax.random.uniform(keys[4], minval=-1, maxval=1))
        # Half the width and half the height of the box.
        box = jnp.sqrt(area * jnp.stack([aspect, 1 / aspect]))
        linear = linear * box
        shift = shift + (1 - box) * jax.random.uniform(keys[5], (2,), minval=-1, maxval=1)
    if config.stretch:
        draws = jax.random.uniform(jax.random.fold_in(key, 7), (2,), minval=-1, maxval=1)
        linear = linear * jnp.exp(strength * math.log1p(config.stretch) * draws)
    if config.flip:
        linear = linear.at[:, 0].multiply(jax.random.rademacher(keys[6], (), linear.dtype))
    return jnp.concatenate([linear, shift[:, None]], axis=1)


def resample(image: jax.Array, transform: jax.Array) -> jax.Array:
    """Resamples an image under an affine map with bilinear interpolation.

    Positions outside of the image are black, as they are beyond the collimator of a radiograph.

    Args:
      image: [H, W] float32.
      transform: [2, 3] matrix as `draw_transform` returns it.

    Returns:
      [H, W] float32.
    """
    height, width = image.shape
    x = (2 * jnp.arange(width) + 1) / width - 1
    y = (2 * jnp.arange(height) + 1) / height - 1
    position = transform[:, 0, None, None] * x + transform[:, 1, None, None] * y[:, None] + transform[:, 2, None, None]
    # With a border of one black pixel, the edge is interpolated like the inside, and every position outside can be
    # clipped to the border.
    image = jnp.pad(image, 1)
    column = jnp.clip((position[0] + 1) * width / 2 + 0.5, 0, width + 1)
    row = jnp.clip((position[1] + 1) * height / 2 + 0.5, 0, height + 1)
    left = jnp.minimum(column.astype(jnp.int32), width)
    top = jnp.minimum(row.astype(jnp.int32), height)
    across, down = column - left, row - top
    pixels = image.reshape(-1)
    corner = top * (width + 2) + left

    def pixel_at(offset: int) -> jax.Array:
        return pixels.at[corner + offset].get(mode="promise_in_bounds")

    upper = pixel_at(0) * (1 - across) + pixel_at(1) * across
    lower = pixel_at(width + 2) * (1 - across) + pixel_at(width + 3) * across
    return upper * (1 - down) + lower * down


def change_intensity(
    key: jax.Array,
    image: jax.Array,
    brightness: float,
    contrast: float,
    gamma: float,
    strength: float | jax.Array = 1.0,
) -> jax.Array:
    """Changes the brightness, contrast and gamma of an image by random amounts, sampled uniformly.

    Args:
      key: PRNG key.
      image: [H, W] float32, 0..1.
      brightness: largest value that is added to or subtracted from the pixels.
      contrast: largest relative change of the pixels' differences from the image's mean.
      gamma: the exponent is between 1 / (1 + gamma) and 1 + gamma, uniform on a log scale.
      strength: brightness, contrast and the logarithm of the exponent are multiplied by this.

    Returns:
      [H, W] float32, 0..1.
    """
    draws = strength * jax.random.uniform(key, (3,), minval=-1, maxval=1)
    mean = image.mean()
    image = (image - mean) * (1 + contrast * draws[0]) + mean + brightness * draws[1]
    image = jnp.clip(image, 0, 1)
    if not gamma:
        return image
    # A power is compiled to a logarithm, which the lower bound keeps finite.
    return jnp.maximum(image, 1e-6) ** jnp.exp(math.log1p(gamma) * draws[2])


def change_tone(key: jax.Array, image: jax.Array, spread: float | jax.Array) -> jax.Array:
    """Applies a random monotone tone curve, a Bernstein polynomial from (0, 0) to (1, 1) with increasing coefficients.

    Args:
      key: PRNG key.
      image: [H, W] float32, 0..1.
      spread: standard deviation of the logarithms of the increments before they are scaled; 0 changes nothing.

    Returns:
      [H, W] float32, 0..1.
    """
    increments = jax.nn.softmax(spread * jax.random.normal(key, (TONE_DEGREE,)))
    coefficients = jnp.concatenate([jnp.zeros(1), jnp.cumsum(increments)])
    curve = jnp.zeros_like(image)
    for k in range(1, TONE_DEGREE + 1):
        curve += math.comb(TONE_DEGREE, k) * coefficients[k] * image**k * (1 - image) ** (TONE_DEGREE - k)
    return jnp.clip(curve, 0, 1)


def change_sharpness(key: jax.Array, image: jax.Array, largest: float | jax.Array) -> jax.Array:
    """Blurs or sharpens an image by a random amount, sampled uniformly from -largest to largest.

    Args:
      key: PRNG key.
      image: [H, W] float32, 0..1.
      largest: 0..1. The amount -1 blurs by the 3x3 binomial filter; 1 doubles the detail that this blur removes.

    Returns:
      [H, W] float32, 0..1.
    """
    padded = jnp.pad(image, 1, mode="edge")
    rows = padded[:-2] / 4 + padded[1:-1] / 2 + padded[2:] / 4
    blurred = rows[:, :-2] / 4 + rows[:, 1:-1] / 2 + rows[:, 2:] / 4
    amount = largest * jax.random.uniform(key, minval=-1, maxval=1)
    return jnp.clip(image + amount * (image - blurred), 0, 1)


def add_noise(key: jax.Array, image: jax.Array, deviation: float | jax.Array) -> jax.Array:
    """Adds Gaussian noise whose standard deviation is sampled uniformly from 0 to `deviation`.

    Args:
      key: PRNG key.
      image: [H, W] float32, 0..1.
      deviation: largest standard deviation, for pixels in 0..1.

    Returns:
      [H, W] float32, 0..1.
    """
    keys = jax.random.split(key)
    sampled = deviation * jax.random.uniform(keys[0])
    return jnp.clip(image + sampled * jax.random.normal(keys[1], image.shape), 0, 1)


def erase(key: jax.Array, image: jax.Array, probability: float | jax.Array) -> jax.Array:
    """Erases a random rectangle: fills 2 to 20 % of the area with one grey value.

    Args:
      key: PRNG key.
      image: [H, W] float32, 0..1.
      probability: probability that the image is changed.

    Returns:
      [H, W] float32, 0..1.

    References:
      Zhong et al., "Random Erasing Data Augmentation", 2020.
    """
    keys = jax.random.split(key, 5)
    height, width = image.shape
    area = jax.random.uniform(keys[0], minval=0.02, maxval=0.2)
    aspect = jnp.exp(jax.random.uniform(keys[1], minval=math.log(0.3), maxval=math.log(1 / 0.3)))
    size = jnp.sqrt(area * jnp.stack([aspect, 1 / aspect])) * jnp.array([height, width])
    start = jax.random.uniform(keys[2], (2,)) * (jnp.array([height, width]) - size)
    rows, columns = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5  # centres of pixels
    inside = (rows >= start[0]) & (rows < start[0] + size[0]) & (columns >= start[1]) & (columns < start[1] + size[1])
    erased = jax.random.bernoulli(keys[3], probability)
    return jnp.where(inside & erased, jax.random.uniform(keys[4]), image)


def mixup(keys: jax.Array, alpha: float, first: tuple, second: tuple) -> tuple:
    """Mixes each image with a second image, and the target of the first with the target of the second.

    Args:
      keys: [B] PRNG keys.
      alpha: both parameters of the beta distribution from which the weights are sampled. `first` gets the larger
        weight.
      first: (images [B, H, W] float32, targets [B, C] float32).
      second: (images, targets) to mix in, with the same shapes.

    Returns:
      (images, targets) with the same shapes.

    References:
      Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.
    """
    share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    share = jnp.maximum(share, 1 - share)

    def blend(a: jax.Array, b: jax.Array) -> jax.Array:
        weight = share.reshape(-1, *[1] * (a.ndim - 1))
        return weight * a + (1 - weight) * b

    return tuple(blend(a, b) for a, b in zip(first, second, strict=True))
