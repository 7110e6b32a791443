"""Compares two classifiers on the same images.

The difference of a metric gets its own interval and test. Comparing two separate intervals would be misleading: both
classifiers are evaluated on the same images, so most of the sampling variation is common to both and cancels in the
difference.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pneumojax.evaluation.bootstrap import PatientBootstrap, summarise
from pneumojax.evaluation.checks import check_binary
from pneumojax.evaluation.metrics import compute_metric_values, explain

# With fewer discordant images than this, the chi-square distribution is a poor approximation of the binomial.
MIN_DISCORDANT_FOR_CHI_SQUARE = 25


def compute_delong(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike) -> dict:
    """Performs DeLong's test of the difference between two areas under the ROC curve.

    The test assumes that each image is of a different patient. If patients have several images, the bootstrap by
    patient (`compute_differences`) is more reliable.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores_a: [N] float, higher for positive.
      scores_b: [N] float, for the same images.

    Returns:
      {"auroc_a", "auroc_b", "difference": a - b, "standard_error" and "ci95": [low, high] of the difference, "z", "p":
      two-sided}. Values that do not exist are None, and "reason" says why.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.

    References:
      DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated receiver operating
        characteristic curves: a nonparametric approach, 1988.
    """
    positive, scores_a = check_binary(labels, scores_a)
    _, scores_b = check_binary(labels, scores_b)
    names = ("auroc_a", "auroc_b", "difference", "standard_error", "ci95", "z", "p")
    if min(positive.sum(), (~positive).sum()) < 2:
        return dict.fromkeys(names) | {"reason": "Needs at least two images of NORMAL and two of pneumonia."}
    by_positive, by_negative = [], []
    for scores in (scores_a, scores_b):
        above, below = scores[positive][:, None], scores[~positive][None, :]
        wins = (above > below) + 0.5 * (above == below)
        by_positive.append(wins.mean(axis=1))
        by_negative.append(wins.mean(axis=0))
    auroc_a, auroc_b = (float(wins.mean()) for wins in by_positive)
    difference = auroc_a - auroc_b
    of_positive, of_negative = np.subtract(*by_positive), np.subtract(*by_negative)
    variance = of_positive.var(ddof=1) / len(of_positive) + of_negative.var(ddof=1) / len(of_negative)
    error = math.sqrt(variance)
    result = dict(zip(names, (auroc_a, auroc_b, difference, error, None, None, None), strict=True))
    if variance < 1e-20:
        reason = "Every image contributes the same difference, so the standard error is 0 and there is no test."
        return result | {"reason": reason}
    z = difference / error
    low, high = stats.norm.interval(0.95, difference, error)
    return result | {"ci95": [float(low), float(high)], "z": z, "p": float(2 * stats.norm.sf(abs(z)))}


def compute_mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> dict:
    """Performs McNemar's test of whether one classifier is right more often than the other.

    Only discordant images, on which one classifier is right and the other is wrong, contribute. With fewer than 25 of
    them, the p value is exact (binomial). Otherwise it is computed from the chi-square statistic without continuity
    correction. The test assumes that each image is of a different patient.

    Args:
      right_a: [N] bool: whether the decision of a was right.
      right_b: [N] bool, for the same images.

    Returns:
      {"only_a_right", "only_b_right", "p", "method": "exact" or "chi_square"}. p is two-sided, and 1 without discordant
      images.

    References:
      McNemar, Note on the sampling error of the difference between correlated proportions or percentages, 1947.
      Fagerland, Lydersen and Laake, The McNemar test for binary matched-pairs data, 2013.
    """
    right_a, right_b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    number = only_a + only_b
    if number < MIN_DISCORDANT_FOR_CHI_SQUARE:
        method = "exact"
        p = stats.binomtest(only_a, number).pvalue if number else 1.0
    else:
        method = "chi_square"
        p = stats.chi2.sf((only_a - only_b) ** 2 / number, df=1)
    return {"only_a_right": only_a, "only_b_right": only_b, "p": float(p), "method": method}


def compute_differences(
    labels: ArrayLike,
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    threshold_a: ArrayLike,
    threshold_b: ArrayLike,
    bootstrap: PatientBootstrap,
) -> dict[str, dict]:
    """Computes each metric of two classifiers and its difference, with the 95 % interval of the paired bootstrap.

    Each resample contains the same patients for both classifiers.

    Args:
      labels: [N] int, 0..C - 1.
      probabilities_a: [N, C] float, 0..1, with C = 2 or 3.
      probabilities_b: [N, C] float, for the same images.
      threshold_a: threshold of a's score for pneumonia: a float, or [N] with one for each image.
      threshold_b: threshold of b's score.
      bootstrap: resamples of the split's patients.

    Returns:
      {name: {"a": float or None, "b": float or None, "difference": {"value", "ci95"}}} for the metrics of
      `metrics.compute_metrics`. The difference is a - b. If "value" or "ci95" is None, "reason" says why.

    Raises:
      ValueError: shapes do not match, a label is not a class, a probability is not in 0..1, or there are no images.
    """
    values_a = compute_metric_values(labels, probabilities_a, threshold_a, bootstrap.weights)
    values_b = compute_metric_values(labels, probabilities_b, threshold_b, bootstrap.weights)
    return {
        name: {
            "a": None if np.isnan(a[0]) else float(a[0]),
            "b": None if np.isnan(values_b[name][0]) else float(values_b[name][0]),
            "difference": summarise(a - values_b[name], explain(name)),
        }
        for name, a in values_a.items()
    }
