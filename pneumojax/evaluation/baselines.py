"""Classifiers without a network, fitted on train: what the size, the brightness or a coarse look at an image tells of
its class.

Each is one set of numbers for each image, standardised, and scikit-learn's logistic regression with its default
penalty (C = 1). Nothing is chosen or tuned on any split.

Letters beside those of the package: F numbers for each image.

References:
  Dalal and Triggs, Histograms of oriented gradients for human detection, 2005.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from pneumojax.data.dataset import Split
from pneumojax.evaluation.perturbations import BLOCKS, compute_blocks

# The size that baselines see, whatever the network's: they depend on the data only, and cost seconds.
BASELINE_PX = 64

HISTOGRAM_BINS = 32


class UninformativeError(Exception):
    """The images do not differ in what a baseline looks at; the text is a sentence that says so."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A set of numbers for each image.

    Attributes:
      title: what the classifier sees, in a few words.
      compute_features: split -> [N, F] float64; may raise UninformativeError.
      without_lungs: the average lung lies outside of what it sees.
    """

    title: str
    compute_features: Callable[[Split], np.ndarray]
    without_lungs: bool = False


def compute_scores(baseline: Baseline, train: Split, split: Split) -> np.ndarray:
    """Fits a baseline to NORMAL against pneumonia on train and scores a split.

    Args:
      baseline: one of BASELINES.
      train: what it is fitted on; has both classes.
      split: what it scores, of the same size of images.

    Returns:
      [N] float64, 0..1, higher for pneumonia.

    Raises:
      UninformativeError: there is nothing to tell images apart by.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # The default of 100 iterations is not enough for some of them; none needs 1,000.
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(baseline.compute_features(train), train.labels("binary"))
    return model.predict_proba(baseline.compute_features(split))[:, 1]


def compute_size(split: Split) -> np.ndarray:
    """Width, height and their ratio, of the original files.

    Args:
      split: the split.

    Returns:
      [N, 3] float64.

    Raises:
      UninformativeError: all files have one size.
    """
    height, width = int(split.heights[0]), int(split.widths[0])
    if np.all(split.heights == height) and np.all(split.widths == width):
        raise UninformativeError(
            f"All {len(split):,} {split.name} files have {width} x {height} pixels: they were resized before they were "
            "packaged."
        )
    return np.stack([split.widths, split.heights, split.widths / split.heights], axis=1)


def compute_brightness(split: Split) -> np.ndarray:
    """Mean of each image: [N, 1] float64, 0..255."""
    return split.images.mean(axis=(1, 2))[:, None]


def compute_histogram(split: Split) -> np.ndarray:
    """Share of each image's pixels in each of 32 equal ranges of brightness: [N, 32] float64."""
    bins = split.images.reshape(len(split), -1) // (256 // HISTOGRAM_BINS)
    return np.stack([np.bincount(row, minlength=HISTOGRAM_BINS) for row in bins]) / bins.shape[1]


def compute_pixels(split: Split) -> np.ndarray:
    """The image at 8 x 8 pixels: [N, 64] float64, 0..255."""
    return compute_blocks(split.images).reshape(len(split), -1)


def compute_edge_pixels(split: Split) -> np.ndarray:
    """Of 8 x 8 pixels the outermost, which the average lung does not reach: [N, 28] float64, 0..255."""
    edge = np.ones((BLOCKS, BLOCKS), bool)
    edge[1:-1, 1:-1] = False
    return compute_blocks(split.images)[:, edge]


def compute_hog(split: Split) -> np.ndarray:
    """Histograms of oriented gradients: 9 directions, cells of 8 x 8 pixels, normalised in blocks of 2 x 2 cells.

    Args:
      split: the split.

    Returns:
      [N, F] float64; F = 1,764 at 64 px.
    """
    from skimage.feature import hog

    options = {"orientations": 9, "pixels_per_cell": (8, 8), "cells_per_block": (2, 2)}
    return np.stack([hog(image, **options) for image in split.images])


BASELINES = {
    "size": Baseline("the original size", compute_size, True),
    "brightness": Baseline("the mean brightness", compute_brightness),
    "histogram": Baseline(f"the histogram ({HISTOGRAM_BINS} bins)", compute_histogram),
    "edge_pixels": Baseline(f"the outermost of {BLOCKS} x {BLOCKS} pixels", compute_edge_pixels, True),
    "pixels": Baseline(f"{BLOCKS} x {BLOCKS} pixels", compute_pixels),
    "hog": Baseline("oriented gradients (HOG)", compute_hog),
}
