"""ROC and precision-recall curves with pointwise 95 % bands from the bootstrap by patient.

Additional letters in shapes: K distinct scores, G points of a grid.
"""

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.evaluation.bootstrap import PatientBootstrap, compute_band
from pneumojax.evaluation.checks import check_binary, check_same_length
from pneumojax.evaluation.counts import count_positives, divide

# Points at which bands are computed. The official test split has 234 NORMAL images, so a step of 0.005 is about one.
CURVE_GRID = np.linspace(0.0, 1.0, 201)


def compute_roc_curve(labels: ArrayLike, scores: ArrayLike, bootstrap: PatientBootstrap) -> dict | None:
    """Computes the ROC curve with its pointwise 95 % band.

    At each false positive rate of a grid, the band covers the middle 95 % of the sensitivities of the resamples that
    have both classes. The band is pointwise: it covers each point, but not the whole curve, with probability 0.95.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.
      bootstrap: resamples of the split's patients.

    Returns:
      {"false_positive_rate": K + 1 floats, "sensitivity": K + 1 floats, "band": {"false_positive_rate", "low", "high":
      G floats each}}. The curve runs from (0, 0) to (1, 1). The band is None if fewer than 40 resamples have both
      classes. The result is None if all images are positive or all are negative.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.
    """
    true_positives, false_positives = (
        np.pad(count, ((0, 0), (1, 0))) for count in _count_resamples(labels, scores, bootstrap)
    )
    exists = (true_positives[:, -1] > 0) & (false_positives[:, -1] > 0)
    if not exists[0]:
        return None
    sensitivity = true_positives[exists] / true_positives[exists, -1:]
    false_positive_rate = false_positives[exists] / false_positives[exists, -1:]
    # At a vertical segment of the curve, np.interp returns its upper end.
    rows = [np.interp(CURVE_GRID, x, y) for x, y in zip(false_positive_rate[1:], sensitivity[1:], strict=True)]
    return {
        "false_positive_rate": false_positive_rate[0].tolist(),
        "sensitivity": sensitivity[0].tolist(),
        "band": _name_band("false_positive_rate", CURVE_GRID, rows),
    }


def compute_pr_curve(labels: ArrayLike, scores: ArrayLike, bootstrap: PatientBootstrap) -> dict | None:
    """Computes the precision-recall curve with its pointwise 95 % band.

    The curve is a step function, as in average precision. For each sensitivity (recall), it shows the precision at the
    largest threshold that reaches this sensitivity.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.
      bootstrap: resamples of the split's patients.

    Returns:
      {"sensitivity": up to K floats, increasing, "precision": the same number of floats, "prevalence": float, "band":
      {"sensitivity", "low", "high": G - 1 floats each}}. The band is None if fewer than 40 resamples have positive
      images. The result is None without positive images.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.
    """
    true_positives, false_positives = _count_resamples(labels, scores, bootstrap)
    exists = true_positives[:, -1] > 0
    if not exists[0]:
        return None
    sensitivity = true_positives[exists] / true_positives[exists, -1:]
    precision = divide(true_positives[exists], true_positives[exists] + false_positives[exists])
    grid = CURVE_GRID[1:]  # At sensitivity 0 there may be no predicted positives, and then no precision.
    rows = [y[np.searchsorted(x, grid)] for x, y in zip(sensitivity[1:], precision[1:], strict=True)]
    reached = np.diff(sensitivity[0], prepend=0) > 0
    return {
        "sensitivity": sensitivity[0][reached].tolist(),
        "precision": precision[0][reached].tolist(),
        "prevalence": float(precision[0, -1]),
        "band": _name_band("sensitivity", grid, rows),
    }


def _count_resamples(
    labels: ArrayLike, scores: ArrayLike, bootstrap: PatientBootstrap
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the true and false positives, [1 + R, K] each. Row 0 is the split itself."""
    positive, scores = check_binary(labels, scores)
    check_same_length(scores=scores, patient_ids=bootstrap.patient_ids)
    return count_positives(positive, scores, bootstrap.weights)[:2]


def _name_band(grid_name: str, grid: np.ndarray, rows: list[np.ndarray]) -> dict[str, list[float]] | None:
    band = compute_band(np.asarray(rows))
    return band and {grid_name: grid.tolist(), "low": band[0], "high": band[1]}
