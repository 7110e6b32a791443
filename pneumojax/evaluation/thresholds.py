"""Operating points: chooses thresholds on one split by a rule, and computes their metrics on another split."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.evaluation.bootstrap import PatientBootstrap, summarise
from pneumojax.evaluation.checks import check_binary, check_same_length
from pneumojax.evaluation.counts import count_positives
from pneumojax.evaluation.metrics import TARGET_SENSITIVITIES, count_binary_denominators, explain
from pneumojax.evaluation.point_metrics import compute_confusion, compute_decision_values, compute_decisions


def choose_threshold(
    labels: ArrayLike,
    scores: ArrayLike,
    rule: str,
    *,
    target_sensitivity: float | None = None,
    cost_ratio: float | None = None,
    prevalence: float | None = None,
    fixed: float | None = None,
) -> float:
    """Chooses the threshold of the decision score >= threshold, on a split other than the evaluated one.

    Rules:
      target_sensitivity: the largest threshold whose sensitivity reaches the target.
      youden: the threshold with the largest sensitivity + specificity - 1. Among ties it is the smallest, which has
        the fewest false negatives.
      cost_ratio: the threshold with the smallest expected cost. A false negative costs as much as `cost_ratio` false
        positives, and a share `prevalence` of the images is positive. Among ties it is the smallest. If it is cheapest
        to predict no positives, the threshold is the next float above the highest score.
      fixed: the given threshold.

    Except for the last two cases, the threshold is exactly one of the scores. JSON stores a float64 exactly, so a
    threshold that is written and read again gives the same decisions (`compute_decisions` compares in float64).
    Counts are compared as whole numbers, so ties do not depend on rounding.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.
      rule: target_sensitivity, youden, cost_ratio or fixed.
      target_sensitivity: above 0, at most 1; required by the rule of that name.
      cost_ratio: above 0; required by the rule of that name.
      prevalence: between 0 and 1, for the rule cost_ratio; None: the share of positive images in this split.
      fixed: 0..1; required by the rule of that name.

    Returns:
      The threshold as a Python float.

    Raises:
      ValueError: the rule is unknown, its number is missing or out of range, or the split lacks a required class.

    References:
      Youden, Index for rating diagnostic tests, 1950.
      Metz, Basic principles of ROC analysis, 1978: the threshold with the smallest expected cost.
    """
    if rule == "fixed":
        if fixed is None or not 0 <= fixed <= 1:
            raise ValueError(f"The rule fixed needs a threshold between 0 and 1, not {fixed}.")
        return float(fixed)
    if rule not in ("target_sensitivity", "youden", "cost_ratio"):
        raise ValueError(
            f"Unknown threshold rule {rule!r}; the rules are target_sensitivity, youden, cost_ratio and fixed."
        )
    positive, scores = check_binary(labels, scores)
    if not positive.any():
        raise ValueError(f"The rule {rule} needs positive images, and the split has none.")
    true_positives, false_positives, thresholds = count_positives(positive, scores, np.ones((1, len(scores))))
    true_positives, false_positives = true_positives[0], false_positives[0]
    positives, negatives = true_positives[-1], false_positives[-1]

    if rule == "target_sensitivity":
        if target_sensitivity is None or not 0 < target_sensitivity <= 1:
            raise ValueError(f"The target sensitivity must be above 0 and at most 1, not {target_sensitivity}.")
        # The counts are divided because 19 / 20 is the same float as 0.95, whereas 0.07 * 100 is more than 7.
        return float(thresholds[np.argmax(true_positives / positives >= target_sensitivity)])
    if negatives == 0:
        raise ValueError(f"The rule {rule} needs negative images, and the split has none.")
    if rule == "cost_ratio":
        return _minimise_cost(true_positives, false_positives, thresholds, cost_ratio, prevalence)
    youden = true_positives * negatives - false_positives * positives
    return float(thresholds[np.flatnonzero(youden == youden.max())[-1]])


def _minimise_cost(
    true_positives: np.ndarray,
    false_positives: np.ndarray,
    thresholds: np.ndarray,
    cost_ratio: float | None,
    prevalence: float | None,
) -> float:
    """Applies the rule cost_ratio of `choose_threshold` to the counts [K] at the thresholds [K]."""
    positives, negatives = true_positives[-1], false_positives[-1]
    if cost_ratio is None or not 0 < cost_ratio < math.inf:
        raise ValueError(
            f"The cost of a false negative, in false positives, must be a number above 0, not {cost_ratio}."
        )
    if prevalence is None:
        prevalence = positives / (positives + negatives)
    if not 0 < prevalence < 1:
        raise ValueError(f"The prevalence must be between 0 and 1, not {prevalence}.")
    # The first candidate predicts no positives.
    sensitivity = np.append(0.0, true_positives / positives)
    false_positive_rate = np.append(0.0, false_positives / negatives)
    cost = cost_ratio * prevalence * (1 - sensitivity) + (1 - prevalence) * false_positive_rate
    # Equal costs can differ in their last bits.
    cheapest = np.flatnonzero(cost <= cost.min() + 1e-12 * max(cost_ratio, 1.0))[-1]
    return float(np.append(np.nextafter(thresholds[0], np.inf), thresholds)[cheapest])


def choose_uncertain_band(labels: ArrayLike, scores: ArrayLike, threshold: float, share: float = 0.5) -> dict:
    """Chooses the scores around a threshold at which a decision is marked as uncertain.

    The rule: the band is the narrowest range of scores that contains the threshold and at least this share of the
    split's false positives and false negatives. Its ends are the threshold, or scores of wrong decisions. Among bands
    of equal width, it is the one with more false negatives.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.
      threshold: the threshold of the decision score >= threshold.
      share: share of the wrong decisions that the band contains, 0..1.

    Returns:
      {"low", "high", "share", "errors", "errors_inside", "images_inside"}: the ends, both of which are inside the band,
      the argument, and numbers of images. Without wrong decisions, both ends are the threshold.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.
    """
    positive, scores = check_binary(labels, scores)
    decided = scores >= threshold
    # The scores of wrong decisions by their distance from the threshold. Entry i is the end of a band with i of them.
    lows = np.append(threshold, np.sort(scores[positive & ~decided])[::-1])
    highs = np.append(threshold, np.sort(scores[~positive & decided]))
    errors = len(lows) + len(highs) - 2
    wanted = math.ceil(share * errors)
    false_negatives = np.arange(max(0, wanted - len(highs) + 1), min(wanted, len(lows) - 1) + 1)
    widths = highs[wanted - false_negatives] - lows[false_negatives]
    chosen = false_negatives[np.flatnonzero(widths == widths.min())[-1]]
    low, high = float(lows[chosen]), float(highs[wanted - chosen])
    inside = (scores >= low) & (scores <= high)
    return {
        "low": low,
        "high": high,
        "share": share,
        "errors": errors,
        "errors_inside": int((inside & (positive != decided)).sum()),
        "images_inside": int(inside.sum()),
    }


def choose_operating_points(labels: ArrayLike, scores: ArrayLike) -> dict[str, float | None]:
    """Chooses the thresholds that are always reported, in addition to the threshold of the run.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.

    Returns:
      {name: threshold} for "target_sensitivity_0.95", "target_sensitivity_0.975", "target_sensitivity_0.99" and
      "youden". A threshold is None if the split lacks a class that the rule needs.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.
    """
    positive, scores = check_binary(labels, scores)
    points: dict[str, float | None] = {}
    for target in TARGET_SENSITIVITIES:
        name = f"target_sensitivity_{target:g}"
        points[name] = None
        if positive.any():
            points[name] = choose_threshold(positive, scores, "target_sensitivity", target_sensitivity=target)
    has_both = positive.any() and not positive.all()
    return points | {"youden": choose_threshold(positive, scores, "youden") if has_both else None}


def compute_operating_points(
    labels: ArrayLike, scores: ArrayLike, thresholds: Mapping[str, ArrayLike | None], bootstrap: PatientBootstrap
) -> dict[str, dict]:
    """Computes the metrics of several thresholds that were chosen on another split.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.
      thresholds: {name: threshold}, as from `choose_operating_points`: a float, or [N] with one for each image.
      bootstrap: resamples of the split's patients.

    Returns:
      {name: {"threshold": as given, "metrics": {name: {"value", "ci95"}}, "confusion_matrix": [2, 2]}}. The metrics
      are as in `compute_threshold_metrics`, with intervals as in `compute_metrics`. A threshold of None gives
      {"threshold": None, "reason": why}.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.
    """
    positive, scores = check_binary(labels, scores)
    check_same_length(scores=scores, patient_ids=bootstrap.patient_ids)
    points: dict[str, dict] = {}
    for name, threshold in thresholds.items():
        if threshold is None:
            reason = "The split on which this threshold is chosen lacks the images that the rule needs."
            points[name] = {"threshold": None, "reason": reason}
            continue
        values = compute_decision_values(positive, scores, threshold, bootstrap.weights)
        patients = count_binary_denominators(positive, scores, threshold, bootstrap)
        confusion = compute_confusion(positive.astype(np.int64), compute_decisions(scores, threshold), 2)
        points[name] = {
            "threshold": threshold,
            "metrics": {
                metric: summarise(value, explain(metric), patients.get(metric)) for metric, value in values.items()
            },
            "confusion_matrix": confusion.tolist(),
        }
    return points
