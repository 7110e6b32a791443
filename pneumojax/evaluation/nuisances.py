"""Properties of an image that tell the classes apart in this data set, but not in another one.

Children with pneumonia were filmed wider, softer and with less contrast than children without. A network that learns
this scores well on validation and fails on images from elsewhere. For each such nuisance there is a number that
measures it, and a swap that moves the images of both classes towards the other class. A network that reads the lungs
keeps its AUROC on swapped images.

A swap needs the labels, so it is a measurement only: nothing is trained on swapped images. All functions are pure.

References:
  Geirhos et al., "Shortcut Learning in Deep Neural Networks", 2020.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from pneumojax.evaluation.aspect import crop_centre, resize, select_by_class, swap_aspect, to_uint8

# Share of both axes that the swap of the border keeps of a NORMAL image, and that it leaves of one with pneumonia.
KEPT_BORDER = 0.96

# How far the swap of the sharpness moves each image: -1 would be a full blur, 1 doubles the detail that a blur removes.
SHARPENING = 0.5

# Limits of the factor on an image's contrast. Beyond them, little but noise would be left, or black and white.
CONTRAST_LIMITS = (0.4, 2.5)

# Pixels below this grey value are black: collimated, or outside of the child.
BLACK = 10


def measure_aspect(images: np.ndarray) -> np.ndarray:
    """Returns mean horizontal over mean vertical gradient. It rises with the aspect. [B, H, W] uint8 -> [B] float64."""
    horizontal, vertical = _compute_gradients(images)
    return horizontal / np.maximum(vertical, 1e-6)


def measure_sharpness(images: np.ndarray) -> np.ndarray:
    """Returns how much a 3x3 blur removes, over the standard deviation: [B, H, W] uint8 -> [B] float64."""
    grey = images.astype(np.float32)
    return np.abs(grey - _blur(grey)).mean((1, 2), dtype=np.float64) / np.maximum(measure_contrast(images), 1e-6)


def swap_sharpness(images: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Softens NORMAL images and sharpens images of pneumonia: [B, H, W] uint8, [B] bool -> [B, H, W] uint8."""
    grey = images.astype(np.float32)
    amount = np.where(positive, SHARPENING, -SHARPENING).astype(np.float32)[:, None, None]
    return to_uint8(grey + amount * (grey - _blur(grey)))


def measure_exposure(images: np.ndarray) -> np.ndarray:
    """Returns the mean grey value, 0..255: [B, H, W] uint8 -> [B] float64."""
    return images.mean((1, 2), dtype=np.float64)


def swap_exposure(images: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Adds a constant to each image so that the classes swap their mean grey values. Shapes as in `swap_sharpness`."""
    mean = measure_exposure(images)
    return to_uint8(images + (match_other_class(mean, positive) - mean)[:, None, None])


def measure_contrast(images: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of the grey values, 0..128: [B, H, W] uint8 -> [B] float64."""
    return images.std((1, 2), dtype=np.float64)


def swap_contrast(images: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Scales each image around its mean so that the classes swap their contrasts. Shapes as in `swap_sharpness`."""
    return _swap_scale(images, positive, measure_contrast(images))


def measure_detail(images: np.ndarray) -> np.ndarray:
    """Returns the mean absolute difference of neighbouring pixels: [B, H, W] uint8 -> [B] float64."""
    horizontal, vertical = _compute_gradients(images)
    return (horizontal + vertical) / 2


def swap_detail(images: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Scales each image around its mean so that the classes swap their gradients. Shapes as in `swap_sharpness`."""
    return _swap_scale(images, positive, measure_detail(images))


def measure_border(images: np.ndarray) -> np.ndarray:
    """Returns the share of black pixels, 0..1: [B, H, W] uint8 -> [B] float64."""
    return (images < BLACK).mean((1, 2))


def swap_border(images: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Crops NORMAL images, and frames images of pneumonia in black. Shapes as in `swap_sharpness`."""
    height, width = images.shape[1:]
    rows, columns = (slice(edge, size - edge) for size, edge in _find_frame(height, width))
    framed = np.zeros_like(images)
    inner = resize(images, rows.stop - rows.start, columns.stop - columns.start)
    framed[:, rows, columns] = inner
    return select_by_class(positive, crop_centre(images, KEPT_BORDER, KEPT_BORDER), framed)


def measure_mark(images: np.ndarray) -> np.ndarray:
    """Returns the brightest pixel of the upper corners, where L or R is written: [B, H, W] uint8 -> [B] float64."""
    size = images.shape[1] // 6
    return np.maximum(images[:, :size, :size].max((1, 2)), images[:, :size, -size:].max((1, 2))).astype(np.float64)


def swap_mark(images: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Pastes the upper corners of images of the other class. Shapes as in `swap_sharpness`."""
    size, swapped = images.shape[1] // 6, images.copy()
    for chosen in (positive, ~positive):
        donors = np.flatnonzero(~chosen)[np.arange(chosen.sum()) % (~chosen).sum()]
        for columns in (slice(None, size), slice(-size, None)):
            swapped[chosen, :size, columns] = images[donors, :size, columns]
    return swapped


@dataclasses.dataclass(frozen=True)
class Nuisance:
    """A property that tells the classes apart although it is not of the lungs.

    Attributes:
      title: the property, in a few words.
      measure: [B, H, W] uint8 -> [B] float64.
      swap: [B, H, W] uint8 images, [B] bool pneumonia -> [B, H, W] uint8.
      swapped: what the swap does, in a few words.
    """

    title: str
    measure: Callable[[np.ndarray], np.ndarray]
    swap: Callable[[np.ndarray, np.ndarray], np.ndarray]
    swapped: str


NUISANCES = {
    "aspect": Nuisance("aspect", measure_aspect, swap_aspect, "NORMAL stretched in width, pneumonia in height"),
    "sharpness": Nuisance("sharpness", measure_sharpness, swap_sharpness, "NORMAL softened, pneumonia sharpened"),
    "exposure": Nuisance("exposure", measure_exposure, swap_exposure, "mean grey values of the other class"),
    "contrast": Nuisance("contrast", measure_contrast, swap_contrast, "standard deviations of the other class"),
    "detail": Nuisance("detail", measure_detail, swap_detail, "mean gradients of the other class"),
    "border": Nuisance("black border", measure_border, swap_border, "NORMAL cropped, pneumonia framed in black"),
    "mark": Nuisance("marks in the upper corners", measure_mark, swap_mark, "upper corners of the other class"),
}


def match_other_class(values: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Replaces the value of each image by the value of the image with the same rank in the other class.

    Args:
      values: [B] float64.
      positive: [B] bool; both classes are present.

    Returns:
      [B] float64: the median of a class becomes the median of the other class, and so on.
    """
    matched = np.empty_like(values)
    for own in (positive, ~positive):
        ranks = np.argsort(np.argsort(values[own], kind="stable"), kind="stable")
        matched[own] = np.quantile(values[~own], (ranks + 0.5) / own.sum())
    return matched


def _find_frame(*sizes: int) -> list[tuple[int, int]]:
    """(size, thickness of its frame in pixels, at least one) of each axis."""
    return [(size, max(1, round(size * (1 - KEPT_BORDER) / 2))) for size in sizes]


def _compute_gradients(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute differences of horizontal and of vertical neighbours: [B] float64 each."""
    grey = images.astype(np.int16)
    return tuple(np.abs(np.diff(grey, axis=axis)).mean((1, 2), dtype=np.float64) for axis in (2, 1))


def _blur(grey: np.ndarray) -> np.ndarray:
    """[B, H, W] float32 -> [B, H, W] float32: the 3x3 binomial filter, with edges repeated."""
    for axis in (1, 2):
        padding = [(1, 1) if i == axis else (0, 0) for i in range(3)]
        padded = np.moveaxis(np.pad(grey, padding, mode="edge"), axis, 0)
        grey = np.moveaxis(padded[:-2] / 4 + padded[1:-1] / 2 + padded[2:] / 4, 0, axis)
    return grey


def _swap_scale(images: np.ndarray, positive: np.ndarray, values: np.ndarray) -> np.ndarray:
    factor = np.clip(match_other_class(values, positive) / np.maximum(values, 1e-6), *CONTRAST_LIMITS)[:, None, None]
    mean = measure_exposure(images)[:, None, None]
    return to_uint8((images - mean) * factor + mean)
