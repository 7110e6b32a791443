"""Swaps the aspects of the classes. Every training logs the AUROC on validation images with swapped aspects.

In the Kermany X-rays, images of pneumonia are wider than images of NORMAL. If all are resized to a square, images of
pneumonia are squeezed more, and a network can distinguish the classes by that alone. The AUROC on images with swapped
aspects (val/shift_auroc) shows how much a network depends on it. `nuisances.py` has other properties of this kind.
"""

import dataclasses

import numpy as np

from pneumojax.data.dataset import Split

# Share of the height (NORMAL) or of the width (pneumonia) that the swap of the aspect keeps. The median aspects of the
# classes differ by 1.17 to 1.54; this changes each by 1 / 0.86, so that both classes overlap.
KEPT_ASPECT = 0.86


def swap_aspect(images: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Stretches images of each class towards the aspect of the other class.

    A NORMAL image loses rows at the top and bottom and is stretched to its earlier height. An image of pneumonia loses
    columns at the left and right and is stretched to its earlier width.

    Args:
      images: [B, H, W] uint8, 0..255.
      positive: [B] bool, pneumonia.

    Returns:
      [B, H, W] uint8. They show the central 86 % of the height of NORMAL images, and the central 86 % of the width of
      images of pneumonia.
    """
    return select_by_class(positive, crop_centre(images, KEPT_ASPECT, 1.0), crop_centre(images, 1.0, KEPT_ASPECT))


def add_swapped(split: Split) -> Split:
    """Returns a split of 2 N images: the N images of a split, then the same images with swapped aspects."""
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
    """Resizes images [B, H, W] uint8 to [B, height, width] uint8 by bilinear interpolation."""
    return _resample(images, _interpolate(images.shape[1], height, 1.0), _interpolate(images.shape[2], width, 1.0))


def _resample(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return to_uint8(rows @ images.astype(np.float32) @ columns.T)


def _interpolate(size: int, new_size: int, kept: float) -> np.ndarray:
    """Computes the weights of a linear interpolation along one axis.

    Args:
      size: number of pixels of the image.
      new_size: number of pixels of the result.
      kept: share of the axis, around its centre, that the result shows.

    Returns:
      [new_size, size] float32. Each row has the weights of the image's pixels for one pixel of the result.
    """
    centres = (size - 1) / 2 + ((np.arange(new_size) + 0.5) / new_size - 0.5) * kept * size
    centres = np.clip(centres, 0, size - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size))).astype(np.float32)


def select_by_class(positive: np.ndarray, normal: np.ndarray, pneumonia: np.ndarray) -> np.ndarray:
    """Takes each image from one of two arrays [B, H, W]: `pneumonia` if it is positive, otherwise `normal`."""
    return np.where(positive[:, None, None], pneumonia, normal)


def to_uint8(grey: np.ndarray) -> np.ndarray:
    """Clips grey values to 0..255 and rounds them to uint8."""
    return np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
