"""Perturbations that remove the lungs, or their details, from radiographs.

If a network still classifies perturbed images well, it does not rely on the lungs. All functions are pure and map
[B, H, W] uint8 to [B, H, W] uint8.

References:
  Zech et al., Variable generalization performance of a deep learning model to detect pneumonia in chest radiographs,
    2018: a network that recognised the hospital by the edge of the image.
  Maguolo and Nanni, A critic evaluation of methods for COVID-19 automatic detection from X-ray images, 2021: networks
    that classify images whose lungs are black.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

# Share of the area of a central rectangle that covers the lungs. In the average training image of the Kermany X-rays,
# the lungs extend from 0.14 to 0.88 of the width and from 0.17 to 0.82 of the height. The central 0.70 of the area
# extends from 0.08 to 0.92 of both.
LUNGS_AREA = 0.7

# Share of the area of a larger rectangle. The frame around it is as thin as the edge of a collimator or a letter.
NEARLY_ALL_AREA = 0.9

BLOCKS = 8


def blacken_centre(images: np.ndarray, area: float) -> np.ndarray:
    """Blackens the central rectangle and keeps the frame around it.

    Args:
      images: [B, H, W] uint8, 0..255.
      area: share of the image that the rectangle covers. Its size is rounded to whole pixels.

    Returns:
      [B, H, W] uint8.
    """
    perturbed = images.copy()
    perturbed[:, *_find_centre(images, area)] = 0
    return perturbed


def keep_centre(images: np.ndarray, area: float) -> np.ndarray:
    """Keeps the central rectangle and blackens the frame around it, the complement of `blacken_centre`.

    Args:
      images: [B, H, W] uint8, 0..255.
      area: share of the image that the rectangle covers. Its size is rounded to whole pixels.

    Returns:
      [B, H, W] uint8.
    """
    perturbed = np.zeros_like(images)
    perturbed[:, *_find_centre(images, area)] = images[:, *_find_centre(images, area)]
    return perturbed


def compute_blocks(images: np.ndarray, blocks: int = BLOCKS) -> np.ndarray:
    """Computes the mean brightness of each block of a regular grid.

    Args:
      images: [B, H, W] uint8, 0..255. If H or W is not a multiple of `blocks`, blocks differ in size by one pixel.
      blocks: number of rows and columns of the grid, at most H and W.

    Returns:
      [B, blocks, blocks] float64, 0..255.
    """
    height, width = images.shape[1:]
    rows, columns = (-(-np.arange(blocks) * size // blocks) for size in (height, width))
    sums = np.add.reduceat(np.add.reduceat(images, rows, axis=1, dtype=np.int64), columns, axis=2)
    return sums / np.outer(np.diff(rows, append=height), np.diff(columns, append=width))


def to_blocks(images: np.ndarray, blocks: int = BLOCKS) -> np.ndarray:
    """Replaces each block of a regular grid by its mean brightness.

    Args:
      images: [B, H, W] uint8, 0..255.
      blocks: number of rows and columns of the grid, at most H and W.

    Returns:
      [B, H, W] uint8.
    """
    row, column = (np.arange(size) * blocks // size for size in images.shape[1:])
    return np.rint(compute_blocks(images, blocks)).astype(np.uint8)[:, row[:, None], column]


def shuffle_pixels(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Permutes the pixels of each image at random. Only the histogram is kept.

    Args:
      images: [B, H, W] uint8, 0..255.
      seed: seed of the permutations. The permutation of an image also depends on its index in the batch.

    Returns:
      [B, H, W] uint8.
    """
    flat = images.reshape(len(images), -1)
    return np.random.default_rng(seed).permuted(flat, axis=1).reshape(images.shape)


def _find_centre(images: np.ndarray, area: float) -> tuple[slice, slice]:
    """Returns rows and columns of the central rectangle. The frame around it is at least one pixel wide."""
    down, right = (max(1, round(size * (1 - area**0.5) / 2)) for size in images.shape[1:])
    return slice(down, -down), slice(right, -right)


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """A perturbation and its description.

    Attributes:
      title: short description of the perturbed image.
      perturb: function from [B, H, W] uint8 to [B, H, W] uint8.
      without_lungs: whether the perturbed image shows no part of the average lung.
    """

    title: str
    perturb: Callable[[np.ndarray], np.ndarray]
    without_lungs: bool = False


PERTURBATIONS = {
    "unaltered": Perturbation("the unperturbed image", lambda images: images),
    "centre_only": Perturbation(
        f"only the centre ({100 * LUNGS_AREA:.0f} % of the area)", lambda images: keep_centre(images, LUNGS_AREA)
    ),
    "centre_black": Perturbation(
        f"no lungs (central {100 * LUNGS_AREA:.0f} % black)", lambda images: blacken_centre(images, LUNGS_AREA), True
    ),
    "edge_only": Perturbation(
        f"only the edge (central {100 * NEARLY_ALL_AREA:.0f} % black)",
        lambda images: blacken_centre(images, NEARLY_ALL_AREA),
        True,
    ),
    "blocks": Perturbation(f"{BLOCKS} x {BLOCKS} pixels", to_blocks),
    "histogram": Perturbation("shuffled pixels (histogram only)", shuffle_pixels),
}
