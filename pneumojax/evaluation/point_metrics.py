"""Metrics of a classifier as single numbers, without intervals."""

import math

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.evaluation.checks import (
    check_binary,
    check_finite,
    check_indices,
    check_probabilities,
    check_same_length,
)
from pneumojax.evaluation.counts import (
    area_under_roc,
    average_precision,
    count_confusions,
    count_positives,
    divide,
    one_vs_rest,
)


def compute_binary_scores(probabilities: ArrayLike) -> np.ndarray:
    """Computes the score for pneumonia, 1 - P(NORMAL), for either task.

    The subtraction is done in float64. In float32, all probabilities of NORMAL below 3e-8 would give the same score.

    Args:
      probabilities: [N, C] float, 0..1, with C = 2 or 3; class 0 is NORMAL.

    Returns:
      [N] float64, 0..1.

    Raises:
      ValueError: the shape is not [N, 2] or [N, 3], or the numbers are not between 0 and 1.
    """
    return 1.0 - check_probabilities(probabilities)[:, 0]


def compute_decisions(scores: ArrayLike, threshold: ArrayLike) -> np.ndarray:
    """Predicts pneumonia where score >= threshold.

    The comparison is done in float64. With float32 scores, NumPy would round the threshold to float32, which could
    change the decision for a score close to it.

    Args:
      scores: [N] float.
      threshold: a float, or [N] with one for each image.

    Returns:
      [N] int64: 1 for pneumonia, 0 for NORMAL.

    Raises:
      ValueError: a score is not finite, or a threshold is NaN.
    """
    scores, threshold = np.asarray(scores, np.float64), np.asarray(threshold, np.float64)
    check_finite("scores", scores)
    if np.isnan(threshold).any():
        raise ValueError("A threshold is not a number.")
    return (scores >= threshold).astype(np.int64)


def compute_confusion(labels: ArrayLike, decisions: ArrayLike, classes: int) -> np.ndarray:
    """Counts images by true class and predicted class.

    Args:
      labels: [N] int, 0..classes - 1.
      decisions: [N] int, 0..classes - 1: the predicted classes.
      classes: number of classes C.

    Returns:
      [C, C] int64: rows are the true class, columns the predicted class.

    Raises:
      ValueError: lengths differ, there are no images, or an index is not in 0..classes - 1.
    """
    labels, decisions = np.asarray(labels), np.asarray(decisions)
    check_same_length(labels=labels, decisions=decisions)
    check_indices("label", labels, classes)
    check_indices("decision", decisions, classes)
    return count_confusions(labels, decisions, classes, np.ones((1, len(labels))))[0].astype(np.int64)


def compute_auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Computes the area under the ROC curve.

    It is the probability that a positive image has a higher score than a negative image. A tie counts as one half.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.

    Returns:
      The area, 0..1, or None if all images are positive or all are negative.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.

    References:
      Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic (ROC) curve, 1982.
    """
    positive, scores = check_binary(labels, scores)
    return _to_float(area_under_roc(*count_positives(positive, scores, np.ones((1, len(scores))))[:2])[0])


def compute_auprc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Computes the area under the precision-recall curve, as average precision.

    Average precision is the mean of the precision at each distinct score, weighted by the gain in recall at that score.
    It does not interpolate between points, because that would overestimate the area.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.

    Returns:
      Average precision, 0..1, or None without positive images. If all scores are equal, it is the prevalence.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.

    References:
      Davis and Goadrich, The relationship between precision-recall and ROC curves, 2006.
    """
    positive, scores = check_binary(labels, scores)
    return _to_float(average_precision(*count_positives(positive, scores, np.ones((1, len(scores))))[:2])[0])


def compute_threshold_metrics(labels: ArrayLike, scores: ArrayLike, threshold: ArrayLike) -> dict[str, float | None]:
    """Computes the metrics of the decision score >= threshold, without intervals.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.
      threshold: a float, or [N] with one for each image.

    Returns:
      {name: value} for accuracy, sensitivity, specificity, precision, f1, npv (the negative predictive value) and
      balanced_accuracy. Each value is in 0..1, or None if it does not exist.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.
    """
    positive, scores = check_binary(labels, scores)
    values = compute_decision_values(positive, scores, threshold, np.ones((1, len(scores))))
    return {name: _to_float(value[0]) for name, value in values.items()}


def compute_decision_values(
    positive: np.ndarray, scores: ArrayLike, threshold: ArrayLike, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes the metrics of `compute_threshold_metrics` for each row of weights.

    Args:
      positive: [N] bool.
      scores: [N] float, higher for positive.
      threshold: a float, or [N] with one for each image.
      weights: [R, N] float, at least 0: how often each image counts in each resample.

    Returns:
      {name: [R] float64}, NaN where the metric does not exist.
    """
    confusions = count_confusions(positive.astype(np.int64), compute_decisions(scores, threshold), 2, weights)
    accuracy = divide(np.trace(confusions, axis1=1, axis2=2), confusions.sum(axis=(1, 2)))
    rates = one_vs_rest(confusions, 1)
    rates["npv"] = divide(confusions[:, 0, 0], confusions[:, :, 0].sum(axis=1))
    return {"accuracy": accuracy, **rates, "balanced_accuracy": (rates["sensitivity"] + rates["specificity"]) / 2}


def _to_float(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
