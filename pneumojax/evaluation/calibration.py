"""Calibration: measures how close scores are to probabilities of pneumonia.

Scores are calibrated if, for example, 80 % of the images with score 0.8 have pneumonia. Several metrics and a
reliability diagram measure it. `recalibration.py` improves it.

Additional letters in shapes: P covariates, G points of a grid.
"""

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.evaluation.bootstrap import PatientBootstrap, summarise
from pneumojax.evaluation.checks import (
    check_binary,
    check_same_length,
    check_unit_interval,
)
from pneumojax.evaluation.point_metrics import compute_binary_scores, compute_decision_values
from pneumojax.evaluation.recalibration import compute_logits

# Bins of the reliability diagram and of the expected calibration error: 62 images each in the test split of 624.
RELIABILITY_BINS = 10

# Prevalences at which predictive values are computed, in steps of one percent.
PREVALENCE_GRID = np.linspace(0.01, 0.99, 99)

# Newton steps of the logistic fit. Ten are typical; a resample that needs more than 100 is almost separable.
MAX_FIT_STEPS = 100

_NEEDS_OVERLAP = (
    "Needs images of NORMAL and of pneumonia whose scores overlap. If they do not overlap, or if there is only one "
    "class, no slope is optimal."
)
_NEEDS_BOTH = "Needs images of NORMAL and of pneumonia; the split has only one of the two."
_NOT_CONVERGED = "The logistic fit did not converge: the log-odds are too far from the optimal ones."
_NO_SPREAD = (
    "Resamples of a split are less well calibrated than the split itself, so they give no valid interval of this error."
)


def compute_log_odds(probabilities: ArrayLike) -> np.ndarray:
    """Computes the log-odds of pneumonia. It is accurate even where 1 - P(NORMAL) would round to 1.

    Args:
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.

    Returns:
      [N] float64, -690..690 (with C = 3 from -689.3).

    Raises:
      ValueError: the shape is not [N, 2] or [N, 3], or a probability is not in 0..1.
    """
    logits = compute_logits(probabilities)
    return np.log(np.exp(logits[:, 1:]).sum(axis=1)) - logits[:, 0]


def compute_calibration(labels: ArrayLike, probabilities: ArrayLike, bootstrap: PatientBootstrap) -> dict[str, dict]:
    """Computes metrics of calibration, with 95 % intervals.

    Metrics:
      brier: mean squared difference between the score and the label (0 or 1). Smaller is better. It measures
        discrimination as well as calibration.
      ece: expected calibration error, the mean absolute difference between the mean score and the share of pneumonia,
        over bins with equal numbers of images.
      calibration_slope, calibration_intercept: b and a of the logistic recalibration, log-odds = a + b * log-odds of
        the score. They are 1 and 0 for calibrated scores. If the slope is below 1, the scores are overconfident.
      calibration_in_the_large: a if b is fixed at 1. If it is above 0, the scores are too low on average.

    Args:
      labels: [N] int or bool; 0 is NORMAL, all others are pneumonia.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      bootstrap: resamples of the split's patients.

    Returns:
      {name: {"value": float or None, "ci95": [low, high] or None}}. If one of them is None, "reason" says why.

    Raises:
      ValueError: shapes do not match, a probability is not in 0..1, or there are no images.

    References:
      Brier, Verification of forecasts expressed in terms of probability, 1950.
      Nguyen and O'Connor, Posterior calibration and exploratory analysis for natural language processing models, 2015:
        bins with equal numbers of images.
      Cox, Two further applications of a model for binary regression, 1958: slope and intercept.
      Van Calster et al., Calibration: the Achilles heel of predictive analytics, 2019.
    """
    positive, scores = check_binary(labels, compute_binary_scores(probabilities))
    check_same_length(scores=scores, patient_ids=bootstrap.patient_ids)
    weights = bootstrap.weights
    log_odds = compute_log_odds(probabilities)
    brier = weights @ (scores - positive) ** 2 / weights.sum(axis=1)
    constant, none = np.ones((len(scores), 1)), np.zeros(len(scores))
    has_both = (weights @ positive > 0) & (weights @ ~positive > 0)
    in_the_large = _fit_logistic(positive, constant, log_odds, weights, has_both)
    overlaps = _find_overlaps(positive, log_odds, weights)
    recalibration = _fit_logistic(positive, np.append(constant, log_odds[:, None], axis=1), none, weights, overlaps)
    no_slope = _NOT_CONVERGED if overlaps[0] else _NEEDS_OVERLAP
    return {
        "brier": summarise(brier, ""),
        "ece": {"value": compute_ece(labels, scores), "ci95": None, "reason": _NO_SPREAD},
        "calibration_slope": summarise(recalibration[:, 1], no_slope),
        "calibration_intercept": summarise(recalibration[:, 0], no_slope),
        "calibration_in_the_large": summarise(in_the_large[:, 0], _NOT_CONVERGED if has_both[0] else _NEEDS_BOTH),
    }


def compute_ece(labels: ArrayLike, scores: ArrayLike) -> float:
    """Computes the expected calibration error, 0..1, over the bins of `compute_reliability`.

    Args:
      labels: [N] int or bool; 0 is NORMAL, all others are pneumonia.
      scores: [N] float, 0..1.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not in 0..1.
    """
    bins = compute_reliability(labels, scores)
    return float(np.average(np.abs(np.subtract(bins["mean_score"], bins["share"])), weights=bins["images"]))


def compute_reliability(labels: ArrayLike, scores: ArrayLike, bins: int = RELIABILITY_BINS) -> dict[str, list]:
    """Computes the share of pneumonia as a function of the score, in bins with equal numbers of images.

    Images with equal scores are in the same bin. If many scores are equal, bins differ in size, and there can be fewer.

    Args:
      labels: [N] int or bool; 0 is NORMAL, all others are pneumonia.
      scores: [N] float, 0..1.
      bins: largest number of bins B.

    Returns:
      {"mean_score", "share", "low", "high", "images"}: up to B numbers each, in order of increasing score. low and high
      are the 95 % interval of the share, which assumes that each image is of a different patient.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not in 0..1.

    References:
      Wilson, Probable inference, the law of succession, and statistical inference, 1927: the interval.
    """
    from scipy import stats  # Imported here because it takes half a second, and training imports this module.

    check_unit_interval("Scores", np.asarray(scores, np.float64))
    positive, scores = check_binary(labels, scores)
    lower_scores = np.searchsorted(np.sort(scores), scores)
    _, bin_of_image = np.unique(lower_scores * bins // len(scores), return_inverse=True)
    images = np.bincount(bin_of_image)
    positives = np.bincount(bin_of_image[positive], minlength=len(images))
    intervals = [
        stats.binomtest(int(k), int(n)).proportion_ci(method="wilson") for k, n in zip(positives, images, strict=True)
    ]
    return {
        "mean_score": (np.bincount(bin_of_image, scores) / images).tolist(),
        "share": (positives / images).tolist(),
        "low": [float(interval.low) for interval in intervals],
        "high": [float(interval.high) for interval in intervals],
        "images": images.tolist(),
    }


def compute_predictive_values(
    labels: ArrayLike, scores: ArrayLike, threshold: ArrayLike, prevalences: ArrayLike, bootstrap: PatientBootstrap
) -> dict[str, list[dict]]:
    """Computes the predictive values of the decision score >= threshold at other prevalences.

    ppv is the share of pneumonia among the predicted positives, and npv the share of NORMAL among the predicted
    negatives. Bayes' rule gives both from the prevalence and the sensitivity and specificity of the split.

    Args:
      labels: [N] int or bool; 0 is NORMAL, all others are pneumonia.
      scores: [N] float.
      threshold: a float, or [N] with one for each image.
      prevalences: [G] float, between 0 and 1.
      bootstrap: resamples of the split's patients.

    Returns:
      {"ppv", "npv": list of G dicts {"value", "ci95"}}, from `bootstrap.summarise`. If one is None, "reason" says why.

    Raises:
      ValueError: a prevalence is not between 0 and 1, lengths differ, there are no images, or a score is not finite.

    References:
      Altman and Bland, Diagnostic tests 2: predictive values, 1994.
    """
    positive, scores = check_binary(labels, scores)
    check_same_length(scores=scores, patient_ids=bootstrap.patient_ids)
    prevalence = np.asarray(prevalences, np.float64)[:, None]
    if not np.all((prevalence > 0) & (prevalence < 1)):
        raise ValueError("Prevalences must be between 0 and 1.")
    rates = compute_decision_values(positive, scores, threshold, bootstrap.weights)
    sensitivity, specificity = rates["sensitivity"], rates["specificity"]
    true_positives, false_positives = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    true_negatives, false_negatives = (1 - prevalence) * specificity, prevalence * (1 - sensitivity)
    with np.errstate(invalid="ignore"):  # 0 / 0: a predictive value without predictions does not exist.
        ppv = true_positives / (true_positives + false_positives)
        npv = true_negatives / (true_negatives + false_negatives)
    single = np.isnan(sensitivity[0]) or np.isnan(specificity[0])
    reasons = {
        "ppv": _NEEDS_BOTH if single else "Needs predicted positives; there is none.",
        "npv": _NEEDS_BOTH if single else "Needs predicted negatives; there is none.",
    }
    return {name: [summarise(row, reasons[name]) for row in rows] for name, rows in (("ppv", ppv), ("npv", npv))}


def _find_overlaps(positive: np.ndarray, log_odds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns [R] bool: whether the log-odds of the classes overlap. Otherwise the logistic fit has no finite slope.

    References:
      Albert and Anderson, On the existence of maximum likelihood estimates in logistic regression models, 1984.
    """
    present = weights > 0
    lowest, highest = (
        [limit(np.where(present & of_class, log_odds, outside), axis=1) for of_class in (positive, ~positive)]
        for limit, outside in ((np.min, np.inf), (np.max, -np.inf))
    )
    return (highest[1] > lowest[0]) & (highest[0] > lowest[1])


def _fit_logistic(
    positive: np.ndarray, covariates: np.ndarray, offset: np.ndarray, weights: np.ndarray, exists: np.ndarray
) -> np.ndarray:
    """Fits log-odds = offset + covariates @ coefficients to each row of weights by maximum likelihood.

    It uses Newton's method with damped steps. A step is multiplied by log(1 + m) / m, where m is the largest change of
    a log-odds. The factor approaches 1 near the maximum. Undamped steps would diverge from a distant start.

    Args:
      positive: [N] bool.
      covariates: [N, P] float.
      offset: [N] float.
      weights: [R, N] float.
      exists: [R] bool: which rows have a maximum.

    Returns:
      [R, P] coefficients. They are NaN in rows without a maximum or without convergence. If this applies to the first
      row, the split itself, all rows are NaN.

    References:
      Sun and Tran-Dinh, Generalized self-concordant functions: a recipe for Newton-type methods, 2019.
    """
    result = np.full((len(weights), covariates.shape[1]), np.nan)
    if not exists[0]:
        return result
    products = (covariates[:, :, None] * covariates[:, None, :]).reshape(len(covariates), -1)
    largest = np.abs(covariates).max(axis=0)
    start = np.zeros(covariates.shape[1])
    # The split is fitted first: its coefficients are a good start for the resamples.
    for rows in ([0], np.flatnonzero(exists[1:]) + 1):
        rows = np.asarray(rows)
        coefficients = np.tile(start, (len(rows), 1))
        for _ in range(MAX_FIT_STEPS):
            if not len(rows):
                break
            log_odds = offset + coefficients @ covariates.T
            small = np.exp(-np.abs(log_odds))
            probability = np.where(log_odds > 0, 1, small) / (1 + small)
            gradient = (weights[rows] * (positive - probability)) @ covariates
            # This equals p * (1 - p), which would be rounded to 0 for log-odds of 40.
            curvature = (weights[rows] * (small / (1 + small) ** 2)) @ products
            curvature = curvature.reshape(len(rows), len(largest), len(largest))
            steps = _solve(curvature, gradient)
            change = np.abs(steps) @ largest
            # A row whose step is not finite cannot converge, so it keeps NaN.
            finite = np.isfinite(change)
            rows, change = rows[finite], change[finite]
            damping = np.log1p(change) / np.maximum(change, 1e-300)
            coefficients = coefficients[finite] + steps[finite] * damping[:, None]
            # Convergence is quadratic: after a step of 1e-6 the error is about 1e-12.
            arrived = change < 1e-6
            result[rows[arrived]] = coefficients[arrived]
            rows, coefficients = rows[~arrived], coefficients[~arrived]
        start = result[0]
        if np.isnan(start).any():
            break
    return result


def _solve(curvature: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Returns the Newton steps [R, P]. They are NaN where the curvature is singular.

    Args:
      curvature: [R, P, P] float.
      gradient: [R, P] float.
    """
    # Scaling by a power of 2 is exact. Without it, the determinant of a tiny matrix would underflow to 0.
    _, exponent = np.frexp(np.abs(curvature).max(axis=(1, 2)))
    with np.errstate(over="ignore"):
        curvature = np.ldexp(curvature, -exponent[:, None, None])
        gradient = np.ldexp(gradient, -exponent[:, None])
        steps = np.full_like(gradient, np.nan)
        regular = np.linalg.det(curvature) != 0
        steps[regular] = np.linalg.solve(curvature[regular], gradient[regular][:, :, None])[:, :, 0]
    return steps
