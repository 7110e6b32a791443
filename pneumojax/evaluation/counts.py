"""Weighted counts of images, and the metrics that follow from them.

Each row of weights is a resample. An image of weight 2 counts twice. If a metric does not exist in a resample, its
value is NaN.

Additional letters in shapes: K distinct scores.
"""

import numpy as np


def count_positives(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts true and false positives at each distinct score.

    Args:
      positive: [N] bool.
      scores: [N] float, higher for positive.
      weights: [R, N] float, at least 0: how often each image counts in each resample.

    Returns:
      (true_positives, false_positives, thresholds): [R, K], [R, K] and [K]. The thresholds are the distinct scores in
      decreasing order. The counts are the numbers of images with score >= threshold.
    """
    order = np.argsort(-scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    # Images of equal score cross the threshold together: only the last of them is a point of the curve.
    last = np.append(scores[:-1] != scores[1:], True)
    true_positives = np.cumsum(weights * positive, axis=1)[:, last]
    false_positives = np.cumsum(weights * ~positive, axis=1)[:, last]
    return true_positives, false_positives, scores[last]


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divides element by element. The result is NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator != 0)


def area_under_roc(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    """Computes the area under the ROC curve by the trapezoid rule, so that a tie counts as one half.

    Args:
      true_positives: [R, K] float, from `count_positives`.
      false_positives: [R, K] float, from `count_positives`.

    Returns:
      [R] float64.
    """
    steps = np.diff(false_positives, axis=1, prepend=0)
    twice_height = 2 * true_positives - np.diff(true_positives, axis=1, prepend=0)
    area = np.einsum("rk,rk->r", steps, twice_height)
    return divide(area, 2 * true_positives[:, -1] * false_positives[:, -1])


def average_precision(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    """Computes the average precision.

    Args:
      true_positives: [R, K] float, from `count_positives`.
      false_positives: [R, K] float, from `count_positives`.

    Returns:
      [R] float64.
    """
    # Without images at or above a score, the precision is set to 0. Its weight, the gain in recall, is 0 there.
    predicted = true_positives + false_positives
    precision = np.divide(true_positives, predicted, out=np.zeros_like(predicted), where=predicted > 0)
    gained = np.diff(true_positives, axis=1, prepend=0)
    return divide(np.einsum("rk,rk->r", gained, precision), true_positives[:, -1])


def count_confusions(labels: np.ndarray, decisions: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Computes weighted confusion matrices.

    Args:
      labels: [N] int, 0..classes - 1.
      decisions: [N] int, 0..classes - 1: the predicted classes.
      classes: number of classes C.
      weights: [R, N] float, at least 0: how often each image counts in each resample.

    Returns:
      [R, C, C] float64. Rows are the true class, columns the predicted class.
    """
    cell_of_image = np.eye(classes * classes)[labels * classes + decisions]
    return (weights @ cell_of_image).reshape(-1, classes, classes)


def one_vs_rest(confusions: np.ndarray, c: int) -> dict[str, np.ndarray]:
    """Computes sensitivity, specificity, precision and F1 of class c against all others.

    Args:
      confusions: [R, C, C] float, from `count_confusions`.
      c: index of the class that counts as positive.

    Returns:
      {name: [R] float64}.
    """
    true_positives = confusions[:, c, c]
    false_positives = confusions[:, :, c].sum(axis=1) - true_positives
    false_negatives = confusions[:, c, :].sum(axis=1) - true_positives
    true_negatives = confusions.sum(axis=(1, 2)) - true_positives - false_positives - false_negatives
    return {
        "sensitivity": divide(true_positives, true_positives + false_negatives),
        "specificity": divide(true_negatives, true_negatives + false_positives),
        "precision": divide(true_positives, true_positives + false_positives),
        "f1": divide(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
    }
