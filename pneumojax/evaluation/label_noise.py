"""Estimates how many labels are wrong."""

import numpy as np

from pneumojax.evaluation.checks import check_indices, check_probabilities, check_same_length


def estimate_label_noise(labels: np.ndarray, probabilities: np.ndarray) -> dict:
    """Estimates the share of wrong labels by confident learning.

    An image counts as an image of class j if its probability of j is at least the mean probability of j among the
    images that are labelled j. If that holds for several classes, the most probable of them counts. Images for which it
    holds for no class are left out. The labels of the other images are compared with the class that they count for.

    The estimate includes confident errors of the network, so it is an upper bound as far as the network errs
    independently of the labels.

    Args:
      labels: [N] int, 0..C - 1.
      probabilities: [N, C] float, 0..1, of a network that was not trained on these images.

    Returns:
      {"share": of the images that count for another class than their label, "confident": number of images that count,
      "counts": [C, C] numbers of images; rows are the label, columns the class that they count for}. The share is None
      without an image that counts.

    Raises:
      ValueError: the lengths differ, there are no images, or a label or a probability is out of range.

    References:
      Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021.
    """
    labels, probabilities = np.asarray(labels), check_probabilities(probabilities)
    check_same_length(labels=labels, probabilities=probabilities)
    classes = probabilities.shape[1]
    check_indices("label", labels, classes)
    means = [probabilities[labels == c, c].mean() if (labels == c).any() else np.inf for c in range(classes)]
    # Without the tolerance, the rounding of a mean of equal probabilities would exclude all of them.
    confident = np.where(probabilities >= np.array(means) - 1e-9, probabilities, -1)
    counts = np.zeros((classes, classes), int)
    chosen = confident.max(axis=1) >= 0
    np.add.at(counts, (labels[chosen], confident.argmax(axis=1)[chosen]), 1)
    share = float(1 - np.trace(counts) / counts.sum()) if counts.sum() else None
    return {"share": share, "confident": int(counts.sum()), "counts": counts.tolist()}
