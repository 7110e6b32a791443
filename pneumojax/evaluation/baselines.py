"""Classifiers without a network, fitted on train.

They show how much of the class can be told from the size, the brightness or a coarse view of an image. Each is a set of
features, standardised, and scikit-learn's logistic regression with its default penalty (C = 1). Nothing is chosen or
tuned on any split.

In addition to the letters of the package, F is the number of features.

References:
  Dalal and Triggs, Histograms of oriented gradients for human detection, 2005.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from pneumojax.data.dataset import Split
from pneumojax.evaluation.perturbations import BLOCKS, compute_blocks

# The image size of the baselines, whatever the network's is. So they depend on the data only, and take seconds.
BASELINE_PX = 64

HISTOGRAM_BINS = 32


class UninformativeError(Exception):
    """All images have the same features, so a baseline cannot be fitted. The text is a sentence that says so."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A set of features.

    Attributes:
      title: what the classifier sees, in a few words.
      compute_features: maps a split to [N, F] float64. It may raise UninformativeError.
      without_lungs: whether the features show nothing of the average lung.
    """

    title: str
    compute_features: Callable[[Split], np.ndarray]
    without_lungs: bool = False


def compute_scores(baseline: Baseline, train: Split, split: Split) -> np.ndarray:
    """Fits a baseline to NORMAL against pneumonia on train and scores a split.

    Args:
      baseline: one of BASELINES.
      train: the split that it is fitted on. It has both classes.
      split: the split to score, with images of the same size.

    Returns:
      Scores [N] float64, 0..1, higher for pneumonia.

    Raises:
      UninformativeError: all images have the same features.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # The default of 100 iterations is not enough for some baselines. None needs 1,000.
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(baseline.compute_features(train), train.labels("binary"))
    return model.predict_proba(baseline.compute_features(split))[:, 1]


def compute_size(split: Split) -> np.ndarray:
    """Computes width, height and their ratio from the original files.

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
    """Computes the mean of each image: [N, 1] float64, 0..255."""
    return split.images.mean(axis=(1, 2))[:, None]


def compute_histogram(split: Split) -> np.ndarray:
    """Computes the share of pixels in each of 32 equal ranges of brightness: [N, 32] float64, 0..1."""
    bins = split.images.reshape(len(split), -1) // (256 // HISTOGRAM_BINS)
    return np.stack([np.bincount(row, minlength=HISTOGRAM_BINS) for row in bins]) / bins.shape[1]


def compute_pixels(split: Split) -> np.ndarray:
    """Reduces each image to 8 x 8 pixels: [N, 64] float64, 0..255."""
    return compute_blocks(split.images).reshape(len(split), -1)


def compute_edge_pixels(split: Split) -> np.ndarray:
    """Returns the outermost of 8 x 8 pixels, which the average lung does not reach: [N, 28] float64, 0..255."""
    edge = np.ones((BLOCKS, BLOCKS), bool)
    edge[1:-1, 1:-1] = False
    return compute_blocks(split.images)[:, edge]


def compute_hog(split: Split) -> np.ndarray:
    """Computes histograms of 9 gradient directions in cells of 8 x 8 pixels, normalised in blocks of 2 x 2 cells.

    Args:
      split: the split.

    Returns:
      [N, F] float64. F is 1,764 at 64 px.
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
