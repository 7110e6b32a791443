"""Swaps the aspects of the classes: the shift of validation that every training logs as val/shift_auroc.

In the Kermany X-rays, images of pneumonia are wider than those of NORMAL. Resized to a square they are squeezed more,
and a network can tell the classes apart by that alone. See `nuisances.py` for the other properties of this kind.
"""

import dataclasses

import numpy as np

from pneumojax.data.dataset import Split

# Share of the height (NORMAL) or of the width (pneumonia) that the swap of the aspect keeps. The median aspects of the
# classes differ by 1.17 to 1.54; this changes each by 1 / 0.86, so that both classes overlap.
KEPT_ASPECT = 0.86


def swap_aspect(images: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Makes NORMAL images wider and images of pneumonia higher, as if their originals had had the other's aspect.

    Args:
      images: [B, H, W] uint8, 0..255.
      positive: [B] bool, pneumonia.

    Returns:
      [B, H, W] uint8: of NORMAL images the central 86 % of the height, of the others the central 86 % of the width.
    """
    return select_by_class(positive, crop_centre(images, KEPT_ASPECT, 1.0), crop_centre(images, 1.0, KEPT_ASPECT))


def add_swapped(split: Split) -> Split:
    """Appends to the N images of a split the same N images with their aspects swapped between the classes."""
    both = split.select(np.tile(np.arange(len(split)), 2))
    swapped = swap_aspect(split.images, split.labels("binary") > 0)
    return dataclasses.replace(both, images=np.concatenate([split.images, swapped]))


def crop_centre(images: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """Crops images around their centre, and resizes the crop bilinearly to the size of the image.

    Args:
      images: [B, H, W] uint8, 0..255.
      rows: share of the height that is kept, above 0 and at most 1.
      columns: share of the width.

    Returns:
      [B, H, W] uint8.
    """
    height, width = images.shape[1:]
    return _resample(images, _interpolate(height, height, rows), _interpolate(width, width, columns))


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """[B, H, W] uint8 -> [B, height, width] uint8, bilinearly."""
    return _resample(images, _interpolate(images.shape[1], height, 1.0), _interpolate(images.shape[2], width, 1.0))


def _resample(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return to_uint8(rows @ images.astype(np.float32) @ columns.T)


def _interpolate(size: int, new_size: int, kept: float) -> np.ndarray:
    """[new_size, size] float32: the weights of linear interpolation in the central share of an axis."""
    centres = (size - 1) / 2 + ((np.arange(new_size) + 0.5) / new_size - 0.5) * kept * size
    centres = np.clip(centres, 0, size - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size))).astype(np.float32)


def select_by_class(positive: np.ndarray, normal: np.ndarray, pneumonia: np.ndarray) -> np.ndarray:
    """[B] bool, [B, H, W], [B, H, W] -> [B, H, W]: takes each image from the second array where it is positive."""
    return np.where(positive[:, None, None], pneumonia, normal)


def to_uint8(grey: np.ndarray) -> np.ndarray:
    """Clips grey values to 0..255 and rounds them to uint8."""
    return np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
