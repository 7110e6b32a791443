"""Corruptions of images, as another scanner, another exposure or another file format would cause them.

All images are corrupted in the same way, whatever their class. A radiologist can read the corrupted images as well as
the original ones, so a network's AUROC should not fall. All functions are pure and map [B, H, W] uint8 to
[B, H, W] uint8.

References:
  Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019.
"""

import dataclasses
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from pneumojax.evaluation.aspect import crop_centre, resize, to_uint8

NOISE_SEED = 0


def add_exposure(images: np.ndarray, amount: float) -> np.ndarray:
    """Adds 255 * amount to all pixels. `amount` is between -1 and 1."""
    return to_uint8(images + 255.0 * amount)


def scale_contrast(images: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the difference between each pixel and the mean of its image by `factor`."""
    mean = images.mean((1, 2), keepdims=True)
    return to_uint8((images - mean) * factor + mean)


def change_gamma(images: np.ndarray, exponent: float) -> np.ndarray:
    """Applies a gamma curve: a pixel x becomes 255 * (x / 255) ** exponent."""
    return to_uint8(255 * (images / 255.0) ** exponent)


def blur(images: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs with a Gaussian filter. Its standard deviation is `sigma` times the height of the image."""
    from scipy.ndimage import gaussian_filter  # Imported here, because only this corruption needs it.

    pixels = sigma * images.shape[1]
    return to_uint8(gaussian_filter(images.astype(np.float32), (0, pixels, pixels), mode="nearest"))


def add_noise(images: np.ndarray, deviation: float) -> np.ndarray:
    """Adds Gaussian noise with a standard deviation of 255 * deviation. It has a fixed seed, so it is reproducible."""
    noise = np.random.default_rng(NOISE_SEED).normal(0, 255 * deviation, images.shape)
    return to_uint8(images + noise)


def compress(images: np.ndarray, quality: int) -> np.ndarray:
    """Compresses each image as JPEG with the given quality, 1..95, and decodes it again."""

    def compress_one(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return np.stack([compress_one(image) for image in images])


def zoom_in(images: np.ndarray, kept: float) -> np.ndarray:
    """Crops images to the central `kept` of both height and width, 0..1, and enlarges the crop to the original size."""
    return crop_centre(images, kept, kept)


def zoom_out(images: np.ndarray, size: float) -> np.ndarray:
    """Shrinks images to `size` times their height and width, 0..1, and fills the frame around them with black."""
    height, width = images.shape[1:]
    rows, columns = round(height * size), round(width * size)
    top, left = (height - rows) // 2, (width - columns) // 2
    framed = np.zeros_like(images)
    framed[:, top : top + rows, left : left + columns] = resize(images, rows, columns)
    return framed


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A corruption and its description.

    Attributes:
      title: what is changed, and by how much.
      change: function from [B, H, W] uint8 to [B, H, W] uint8.
    """

    title: str
    change: Callable[[np.ndarray], np.ndarray]


CORRUPTIONS = {
    "darker": Corruption("exposure -15 %", lambda images: add_exposure(images, -0.15)),
    "brighter": Corruption("exposure +15 %", lambda images: add_exposure(images, 0.15)),
    "less_contrast": Corruption("contrast x 0.6", lambda images: scale_contrast(images, 0.6)),
    "more_contrast": Corruption("contrast x 1.5", lambda images: scale_contrast(images, 1.5)),
    "gamma_low": Corruption("gamma 0.6", lambda images: change_gamma(images, 0.6)),
    "gamma_high": Corruption("gamma 1.6", lambda images: change_gamma(images, 1.6)),
    "blur": Corruption("blur, sigma 1 % of the height", lambda images: blur(images, 0.01)),
    "noise": Corruption("noise, 4 % of the range", lambda images: add_noise(images, 0.04)),
    "jpeg": Corruption("JPEG of quality 20", lambda images: compress(images, 20)),
    "zoom_in": Corruption("central 85 % of both axes", lambda images: zoom_in(images, 0.85)),
    "zoom_out": Corruption("shrunk to 85 %, black frame", lambda images: zoom_out(images, 0.85)),
}
