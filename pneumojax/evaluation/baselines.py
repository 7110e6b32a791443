"""Baseline classifiers: linear models that are fitted on train.

They show how well the class can be predicted from the size, the brightness or a coarse view of an image. Each is
scikit-learn's logistic regression with its default penalty (C = 1), on a set of standardised features. They are not
tuned.

In addition to the letters of the package, F is the number of features.

References:
  Dalal and Triggs, Histograms of oriented gradients for human detection, 2005.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from pneumojax.data.dataset import Split
from pneumojax.evaluation.perturbations import BLOCKS, compute_blocks

# The image size of the baselines. It does not depend on the network, so the baselines are the same for all runs.
BASELINE_PX = 64

HISTOGRAM_BINS = 32


class UninformativeError(Exception):
    """A baseline cannot be fitted because all images have the same features. The message is a full sentence."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A baseline classifier, given by its features.

    Attributes:
      title: short description of the features.
      compute_features: function from a split to [N, F] float64. It may raise an UninformativeError.
      without_lungs: whether the features are computed without the pixels of the average lung.
    """

    title: str
    compute_features: Callable[[Split], np.ndarray]
    without_lungs: bool = False


def compute_scores(baseline: Baseline, train: Split, split: Split) -> np.ndarray:
    """Fits a baseline for NORMAL against pneumonia on train, and computes its scores on another split.

    Args:
      baseline: a value of BASELINES.
      train: the split for the fit. It must have both classes.
      split: the split to score, with images of the same size.

    Returns:
      [N] float64 scores, 0..1, higher for pneumonia.

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
    """Computes the width, height and aspect ratio of the original images.

    Args:
      split: the split.

    Returns:
      [N, 3] float64.

    Raises:
      UninformativeError: all images have the same size.
    """
    height, width = int(split.heights[0]), int(split.widths[0])
    if np.all(split.heights == height) and np.all(split.widths == width):
        raise UninformativeError(
            f"All {len(split):,} {split.name} files have {width} x {height} pixels: they were resized before they were "
            "packaged."
        )
    return np.stack([split.widths, split.heights, split.widths / split.heights], axis=1)


def compute_brightness(split: Split) -> np.ndarray:
    """Computes the mean brightness of each image: [N, 1] float64, 0..255."""
    return split.images.mean(axis=(1, 2))[:, None]


def compute_histogram(split: Split) -> np.ndarray:
    """Computes the share of pixels in each of 32 equal ranges of brightness: [N, 32] float64, 0..1."""
    bins = split.images.reshape(len(split), -1) // (256 // HISTOGRAM_BINS)
    return np.stack([np.bincount(row, minlength=HISTOGRAM_BINS) for row in bins]) / bins.shape[1]


def compute_pixels(split: Split) -> np.ndarray:
    """Reduces each image to 8 x 8 pixels: [N, 64] float64, 0..255."""
    return compute_blocks(split.images).reshape(len(split), -1)


def compute_edge_pixels(split: Split) -> np.ndarray:
    """Reduces each image to 8 x 8 pixels and returns the outermost ones, [N, 28] float64, 0..255.

    The average lung does not reach these pixels.
    """
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
