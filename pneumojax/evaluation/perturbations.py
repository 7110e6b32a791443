"""Radiographs from which the lungs, or all but a trace, were taken away: what a network still scores on them it did not
read from lungs.

Pure functions [B, H, W] uint8 -> [B, H, W] uint8.

References:
  Zech et al., Variable generalization performance of a deep learning model to detect pneumonia in chest radiographs,
    2018: a network that read the hospital from the image's edge.
  Maguolo and Nanni, A critic evaluation of methods for COVID-19 automatic detection from X-ray images, 2021: networks
    that tell the classes apart with the lungs blacked out.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

# Share of the area. In the average training image of the Kermany X-rays the lungs lie between 0.14 and 0.88 of the
# width and 0.17 and 0.82 of the height; the central 0.70 of the area reaches from 0.08 to 0.92.
LUNGS_AREA = 0.7

# What is left around it is as thin as a collimator's edge or a burnt-in letter.
NEARLY_ALL_AREA = 0.9

BLOCKS = 8


def blacken_centre(images: np.ndarray, area: float) -> np.ndarray:
    """Leaves only a frame.

    Args:
      images: [B, H, W] uint8, 0..255.
      area: size of the central rectangle that turns black, as a share of the image; rounded to whole pixels.

    Returns:
      [B, H, W] uint8.
    """
    altered = images.copy()
    altered[:, *_find_centre(images, area)] = 0
    return altered


def keep_centre(images: np.ndarray, area: float) -> np.ndarray:
    """Leaves only what `blacken_centre` takes away: the two add up to the image.

    Args:
      images: [B, H, W] uint8, 0..255.
      area: size of the central rectangle that stays, as a share of the image; rounded to whole pixels.

    Returns:
      [B, H, W] uint8.
    """
    altered = np.zeros_like(images)
    altered[:, *_find_centre(images, area)] = images[:, *_find_centre(images, area)]
    return altered


def compute_blocks(images: np.ndarray, blocks: int = BLOCKS) -> np.ndarray:
    """Mean brightness of each block of an even grid.

    Args:
      images: [B, H, W] uint8, 0..255; blocks are alike to a pixel where H and W are no multiples.
      blocks: rows and columns of the grid; at most H and W.

    Returns:
      [B, blocks, blocks] float64, 0..255.
    """
    height, width = images.shape[1:]
    rows, columns = (-(-np.arange(blocks) * side // blocks) for side in (height, width))
    sums = np.add.reduceat(np.add.reduceat(images, rows, axis=1, dtype=np.int64), columns, axis=2)
    return sums / np.outer(np.diff(rows, append=height), np.diff(columns, append=width))


def to_blocks(images: np.ndarray, blocks: int = BLOCKS) -> np.ndarray:
    """Makes each block of an even grid one shade of grey: an image of blocks x blocks pixels, blown up again.

    Args:
      images: [B, H, W] uint8, 0..255.
      blocks: rows and columns of the grid; at most H and W.

    Returns:
      [B, H, W] uint8.
    """
    row, column = (np.arange(side) * blocks // side for side in images.shape[1:])
    return np.rint(compute_blocks(images, blocks)).astype(np.uint8)[:, row[:, None], column]


def shuffle_pixels(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Puts the pixels of each image in an order of its own: its histogram is kept, and nothing else.

    Args:
      images: [B, H, W] uint8, 0..255.
      seed: of the orders; an image's order depends on its place in the batch, too.

    Returns:
      [B, H, W] uint8.
    """
    flat = images.reshape(len(images), -1)
    return np.random.default_rng(seed).permuted(flat, axis=1).reshape(images.shape)


def _find_centre(images: np.ndarray, area: float) -> tuple[slice, slice]:
    """Rows and columns of the central rectangle; a frame of a pixel is always left."""
    borders = (max(1, round(side * (1 - area**0.5) / 2)) for side in images.shape[1:])
    return tuple(slice(border, -border) for border in borders)


@dataclasses.dataclass(frozen=True)
class Alteration:
    """One way to alter images.

    Attributes:
      title: what is left of the image, in a few words.
      alter: [B, H, W] uint8 -> [B, H, W] uint8.
      without_lungs: the average lung lies outside of what is left.
    """

    title: str
    alter: Callable[[np.ndarray], np.ndarray]
    without_lungs: bool = False


ALTERATIONS = {
    "unaltered": Alteration("the unaltered image", lambda images: images),
    "centre_only": Alteration(
        f"only the centre ({100 * LUNGS_AREA:.0f} % of the area)", lambda images: keep_centre(images, LUNGS_AREA)
    ),
    "centre_black": Alteration(
        f"no lungs (central {100 * LUNGS_AREA:.0f} % black)", lambda images: blacken_centre(images, LUNGS_AREA), True
    ),
    "edge_only": Alteration(
        f"only the edge (central {100 * NEARLY_ALL_AREA:.0f} % black)",
        lambda images: blacken_centre(images, NEARLY_ALL_AREA),
        True,
    ),
    "blocks": Alteration(f"{BLOCKS} x {BLOCKS} pixels", to_blocks),
    "histogram": Alteration("shuffled pixels (histogram only)", shuffle_pixels),
}
