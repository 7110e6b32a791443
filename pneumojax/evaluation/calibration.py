"""How far a score may be read as the probability of pneumonia, and what makes it one.

A score orders images; whether of the images of score 0.8 eight in ten have pneumonia is another matter. Temperature
scaling mends it on the whole, measures and a diagram say how well, and Bayes' rule carries a probability over to a
place where pneumonia is rarer or more frequent.

Letters beside those of the package: P covariates, G points of a grid.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.evaluation import metrics

# Of the reliability diagram and of the error that is summed over it: 62 images each in the test split of 624.
RELIABILITY_BINS = 10

# Where predictive values are computed, in steps of one percent.
PREVALENCE_GRID = np.linspace(0.01, 0.99, 99)

# The log-odds of a probability of 1e-300, beyond which float64 has little left.
LARGEST_LOG_ODDS = 690.0

# Newton's steps of the logistic fit. Ten are usual; a resample that needs more than these is almost separable.
MAX_FIT_STEPS = 100

_NEEDS_OVERLAP = (
    "Needs images of NORMAL and of pneumonia whose scores overlap; where they do not, or there is one class only, "
    "no slope fits best."
)
_NEEDS_BOTH = "Needs images of NORMAL and of pneumonia; the split has only one of the two."
_NO_SPREAD = (
    "Resamples of a split lie further from calibration than the split itself, so their spread is no interval of this "
    "error."
)


def compute_log_odds(probabilities: ArrayLike) -> np.ndarray:
    """Log-odds of pneumonia, exact where 1 - P(NORMAL) would be rounded to 1.

    Args:
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.

    Returns:
      [N] float64, -690..690.
    """
    probabilities = np.maximum(np.asarray(probabilities, np.float64), math.exp(-LARGEST_LOG_ODDS))
    return np.log(probabilities[:, 1:].sum(axis=1)) - np.log(probabilities[:, 0])


def fit_temperature(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """The temperature T that makes the labels most likely under softmax(logits / T).

    The likelihood has one peak in 1 / T, found by bisection of its slope. It has none where every image is most
    probable in its own class (ever smaller temperatures are ever better), nor where the probabilities are no better
    than equal ones.

    Args:
      labels: [N] int, 0..C - 1.
      probabilities: [N, C] float, 0..1: softmax of the logits.

    Returns:
      T above 0 (above 1: the network was too sure), or None where no temperature is best.

    References:
      Guo, Pleiss, Sun and Weinberger, On calibration of modern neural networks, 2017.
    """
    labels, logits = np.asarray(labels), _log(probabilities)
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

    def compute_slope(inverse: float) -> float:
        powers = np.exp(inverse * (logits - logits.max(axis=1, keepdims=True)))
        expected = (powers * logits).sum(axis=1) / powers.sum(axis=1)
        return float(np.sum(expected - own))

    if np.all(own >= logits.max(axis=1)) or compute_slope(0.0) >= 0:
        return None
    low, high = 0.0, 1.0
    while compute_slope(high) < 0:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if compute_slope(middle) < 0 else (low, middle)
    return 1 / high


def apply_temperature(probabilities: ArrayLike, temperature: ArrayLike) -> np.ndarray:
    """Probabilities of the logits divided by a temperature.

    Args:
      probabilities: [N, C] float, 0..1: softmax of the logits.
      temperature: above 0, one for all or [N]; 1 changes nothing but the last bits.

    Returns:
      [N, C] float64, 0..1. The order of images by score stays as it is with two classes, not always with three.
    """
    logits = _log(probabilities) / np.asarray(temperature)[..., None]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def shift_prevalence(scores: ArrayLike, prevalence: float, new_prevalence: float) -> np.ndarray:
    """Probabilities of pneumonia where it has another prevalence, and looks the same on a radiograph.

    Args:
      scores: [N] float, 0..1: calibrated where pneumonia has this prevalence:
      prevalence: between 0 and 1.
      new_prevalence: between 0 and 1.

    Returns:
      [N] float64, 0..1: the odds times the ratio of the two prevalences' odds.

    Raises:
      ValueError: a prevalence is not between 0 and 1.

    References:
      Saerens, Latinne and Decaestecker, Adjusting the outputs of a classifier to new a priori probabilities, 2002.
    """
    for share in (prevalence, new_prevalence):
        if not 0 < share < 1:
            raise ValueError(f"A prevalence must lie between 0 and 1, not {share}.")
    scores = np.asarray(scores, np.float64)
    with_pneumonia = scores * (new_prevalence / prevalence)
    without = (1 - scores) * ((1 - new_prevalence) / (1 - prevalence))
    return with_pneumonia / (with_pneumonia + without)


def compute_calibration(
    labels: ArrayLike, probabilities: ArrayLike, patient_ids: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """How near scores are to probabilities of pneumonia, with 95 % intervals from the bootstrap by patient.

    brier: mean squared distance of the score from 0 or 1; smaller is better, but discrimination counts too.
    ece: expected calibration error, the mean distance of score and share in bins of equal numbers of images.
    calibration_slope, calibration_intercept: b and a of the logistic recalibration log-odds = a + b * log-odds of the
      score, 1 and 0 for calibrated scores. A slope below 1: too sure at both ends.
    calibration_in_the_large: a where b is held at 1; above 0: scores are too small on the whole.

    Args:
      labels: [N] int or bool; 0 is NORMAL, everything above is pneumonia.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      patient_ids: [N], equal for images of one patient.
      resamples: number of bootstrap resamples R.
      seed: of the draws.

    Returns:
      {name: {"value": float or None, "ci95": [low, high] or None}}; where one of them is None, "reason" says why.

    Raises:
      ValueError: shapes do not fit, a probability is outside 0..1, or there is no image.

    References:
      Brier, Verification of forecasts expressed in terms of probability, 1950.
      Nguyen and O'Connor, Posterior calibration and exploratory analysis for natural language processing models, 2015:
        bins of equal mass.
      Cox, Two further applications of a model for binary regression, 1958: slope and intercept.
      Van Calster et al., Calibration: the Achilles heel of predictive analytics, 2019.
    """
    positive, scores = np.asarray(labels) > 0, metrics.compute_binary_scores(probabilities)
    weights = np.concatenate(
        [np.ones((1, len(scores))), metrics.compute_bootstrap_weights(patient_ids, resamples, seed)]
    )
    log_odds = compute_log_odds(probabilities)
    brier = weights @ (scores - positive) ** 2 / weights.sum(axis=1)
    constant, none = np.ones((len(scores), 1)), np.zeros(len(scores))
    has_both = (weights @ positive > 0) & (weights @ ~positive > 0)
    in_the_large = _fit_logistic(positive, constant, log_odds, weights, has_both)
    overlaps = _find_overlaps(positive, log_odds, weights)
    recalibration = _fit_logistic(positive, np.append(constant, log_odds[:, None], axis=1), none, weights, overlaps)
    bins = compute_reliability(labels, scores)
    errors = np.abs(np.subtract(bins["mean_score"], bins["share"]))
    return {
        "brier": metrics.summarise(brier, ""),
        "ece": {"value": float(np.average(errors, weights=bins["images"])), "ci95": None, "reason": _NO_SPREAD},
        "calibration_slope": metrics.summarise(recalibration[:, 1], _NEEDS_OVERLAP),
        "calibration_intercept": metrics.summarise(recalibration[:, 0], _NEEDS_OVERLAP),
        "calibration_in_the_large": metrics.summarise(in_the_large[:, 0], _NEEDS_BOTH),
    }


def compute_reliability(labels: ArrayLike, scores: ArrayLike, bins: int = RELIABILITY_BINS) -> dict[str, list]:
    """Share of pneumonia over the score, in bins of equal numbers of images.

    Images of equal score stay together, so bins may be larger, smaller or missing where many are equal.

    Args:
      labels: [N] int or bool; 0 is NORMAL, everything above is pneumonia.
      scores: [N] float, 0..1.
      bins: number of bins B.

    Returns:
      {"mean_score", "share", "low", "high", "images"}: up to B numbers each, by rising score. low and high are the 95 %
      interval of the share, as if each image was of another patient.

    References:
      Wilson, Probable inference, the law of succession, and statistical inference, 1927: the interval.
    """
    positive, scores = np.asarray(labels) > 0, np.asarray(scores, np.float64)
    lower_scores = np.searchsorted(np.sort(scores), scores)
    _, bin_of_image = np.unique(lower_scores * bins // len(scores), return_inverse=True)
    images = np.bincount(bin_of_image)
    share = np.bincount(bin_of_image, positive) / images
    z = 1.959964  # 97.5 % of a normal distribution lie below it.
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * np.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return {
        "mean_score": (np.bincount(bin_of_image, scores) / images).tolist(),
        "share": share.tolist(),
        "low": np.minimum(centre - half, share).tolist(),
        "high": np.maximum(centre + half, share).tolist(),
        "images": images.tolist(),
    }


def compute_predictive_values(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: ArrayLike,
    patient_ids: ArrayLike,
    prevalences: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, list[dict]]:
    """Predictive values of the decision score >= threshold where pneumonia has other prevalences.

    Sensitivity and specificity are those of the split; Bayes' rule makes of them the share of pneumonia among those
    decided for (ppv) and the share of NORMAL among the others (npv).

    Args:
      labels: [N] int or bool; 0 is NORMAL, everything above is pneumonia.
      scores: [N] float.
      threshold: where decisions turn positive; one for all or [N].
      patient_ids: [N], equal for images of one patient.
      prevalences: [G] float, between 0 and 1.
      resamples: number of bootstrap resamples R.
      seed: of the draws.

    Returns:
      {"ppv", "npv": G times {"value", "ci95"}} as of `metrics.compute_metrics`; where one is None, "reason" says why.

    Raises:
      ValueError: a prevalence is not between 0 and 1, or there is no image.

    References:
      Altman and Bland, Diagnostic tests 2: predictive values, 1994.
    """
    positive = np.asarray(labels) > 0
    prevalence = np.asarray(prevalences, np.float64)[:, None]
    if not np.all((prevalence > 0) & (prevalence < 1)):
        raise ValueError("Prevalences must lie between 0 and 1.")
    weights = np.concatenate(
        [np.ones((1, len(positive))), metrics.compute_bootstrap_weights(patient_ids, resamples, seed)]
    )
    rates = metrics.compute_decision_values(positive, scores, threshold, weights)
    sensitivity, specificity = rates["sensitivity"], rates["specificity"]
    true_positives, false_positives = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    true_negatives, false_negatives = (1 - prevalence) * specificity, prevalence * (1 - sensitivity)
    with np.errstate(invalid="ignore"):  # 0 / 0, where nobody is decided for, does not exist.
        ppv = true_positives / (true_positives + false_positives)
        npv = true_negatives / (true_negatives + false_negatives)
    single = np.isnan(sensitivity[0]) or np.isnan(specificity[0])
    reason = _NEEDS_BOTH if single else "Needs images decided for this side; there is none."
    return {name: [metrics.summarise(values, reason) for values in rows] for name, rows in (("ppv", ppv), ("npv", npv))}


def _log(probabilities: ArrayLike) -> np.ndarray:
    """Logits of probabilities, up to a constant for each image."""
    return np.log(np.maximum(np.asarray(probabilities, np.float64), math.exp(-LARGEST_LOG_ODDS)))


def _find_overlaps(positive: np.ndarray, log_odds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] bool: whether the classes' log-odds overlap, without which the logistic fit has no finite slope.

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
    """Coefficients [R, P] of the most likely log-odds = offset + covariates @ coefficients, for each row of weights.

    Rows that do not exist are NaN, and all are where the first, the split itself, does not exist.

    Newton's method. Steps are shortened by log(1 + m) / m, m being the largest change of the log-odds, with which it
    arrives from everywhere, and which becomes 1 on the way.

    References:
      Sun and Tran-Dinh, Generalized self-concordant functions: a recipe for Newton-type methods, 2019.
    """
    result = np.full((len(weights), covariates.shape[1]), np.nan)
    if not exists[0]:
        return result
    products = (covariates[:, :, None] * covariates[:, None, :]).reshape(len(covariates), -1)
    largest = np.abs(covariates).max(axis=0)
    result[0] = 0.0
    # The split first: resamples end near it, and so begin there.
    for rows in ([0], np.flatnonzero(exists[1:]) + 1):
        rows = np.asarray(rows)
        coefficients = np.tile(result[0], (len(rows), 1))
        for _ in range(MAX_FIT_STEPS):
            if not len(rows):
                break
            log_odds = offset + coefficients @ covariates.T
            small = np.exp(-np.abs(log_odds))
            probability = np.where(log_odds > 0, 1, small) / (1 + small)
            gradient = (weights[rows] * (positive - probability)) @ covariates
            # Not p * (1 - p), which is 0 for log-odds of 40.
            curvature = (weights[rows] * (small / (1 + small) ** 2)) @ products
            curvature = curvature.reshape(len(rows), len(largest), len(largest))
            steps = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
            change = np.abs(steps) @ largest
            coefficients += steps * (np.log1p(change) / np.maximum(change, 1e-300))[:, None]
            # Convergence is quadratic: after a step of 1e-6 the error is about 1e-12.
            arrived = change < 1e-6
            result[rows[arrived]] = coefficients[arrived]
            rows, coefficients = rows[~arrived], coefficients[~arrived]
    return result
