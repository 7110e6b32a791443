"""How good a classifier is, with 95 % intervals by patient, and the threshold that turns scores into decisions.

Everything rests on one idea: a bootstrap resample is a weight for each image, how often its patient was drawn. The
scores are sorted once; true and false positives of every resample at every threshold are then running sums of a
[R, N] array of weights, and AUROC, average precision, curves and bands follow from those counts.

Letters beside those of the package: K distinct scores, G points of a grid.

Two layers. Where arrays are returned, NaN stands for "does not exist" (a sensitivity without positive images). Where
results are returned for people and files, there is no NaN: such a metric is None with a reason, and numbers are Python
floats.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.config import CLASS_NAMES

# One resample in each 2.5 % tail: with fewer than 1 / 0.025, the bounds of an interval would be the extremes.
MIN_RESAMPLES_FOR_INTERVAL = 40

# Where bands are computed: steps of 0.005 are about one of the 234 NORMAL images of the test split.
CURVE_GRID = np.linspace(0.0, 1.0, 201)

# Sensitivities at which the specificity is always reported. What radiographs cost elsewhere is false alarms at a
# sensitivity that nobody gives up, so systems are compared there.
TARGET_SENSITIVITIES = (0.95, 0.975, 0.99)

# Why a metric does not exist; {name} is the class that counts as positive.
_REASONS = {
    "auroc": "Needs images of {name} and others; the split has only one of the two.",
    "auprc": "Needs images of {name}; the split has none.",
    "sensitivity": "Needs images of {name}; the split has none.",
    "specificity": "Needs images other than {name}; the split has none.",
    "precision": "Needs decisions for {name}; there is none.",
    "npv": "Needs decisions against {name}; there is none.",
    "f1": "Needs images of {name} or decisions for it; there is neither.",
    "balanced_accuracy": "Needs images of {name} and others; the split has only one of the two.",
    **dict.fromkeys(
        (f"specificity_at_sensitivity_{target:g}" for target in TARGET_SENSITIVITIES),
        "Needs images of {name} and others; the split has only one of the two.",
    ),
}


def compute_binary_scores(probabilities: ArrayLike) -> np.ndarray:
    """Score for pneumonia of any task: 1 - P(NORMAL).

    Args:
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.

    Returns:
      [N] float64, 0..1. The subtraction is done in float64, since in float32 all probabilities of NORMAL under 3e-8
      would become one score.

    Raises:
      ValueError: probabilities are not [N, 2] or [N, 3], or not numbers between 0 and 1.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] not in (2, 3):
        raise ValueError(f"Probabilities must have the shape [N, 2] or [N, 3], not {list(probabilities.shape)}.")
    # A sum of float32 probabilities may pass 1 by its rounding.
    if not np.all((probabilities >= -1e-6) & (probabilities <= 1 + 1e-6)):
        raise ValueError("Probabilities must lie between 0 and 1; these hold other numbers, or NaN. Are they logits?")
    return 1.0 - probabilities[:, 0]


def compute_decisions(scores: ArrayLike, threshold: ArrayLike) -> np.ndarray:
    """Decides for pneumonia where score >= threshold.

    Args:
      scores: [N] float.
      threshold: one for all or [N]; decided in float64. NumPy would round a Python float to the type of float32
        scores, which can move a score that lies just under the threshold onto it.

    Returns:
      [N] int64: 1 for pneumonia, 0 for NORMAL.
    """
    return (np.asarray(scores, np.float64) >= np.asarray(threshold, np.float64)).astype(np.int64)


def compute_confusion(labels: ArrayLike, decisions: ArrayLike, classes: int) -> np.ndarray:
    """Counts images by true class and decided class.

    Args:
      labels: [N] int, 0..classes - 1.
      decisions: [N] int, 0..classes - 1.
      classes: number of classes C.

    Returns:
      [C, C] int64: rows are the true class, columns the decided one.

    Raises:
      ValueError: lengths differ, or an index is outside 0..classes - 1.
    """
    labels, decisions = np.asarray(labels), np.asarray(decisions)
    _check_same_length(labels=labels, decisions=decisions)
    _check_indices("label", labels, classes)
    _check_indices("decision", decisions, classes)
    return _count_confusions(labels, decisions, classes, np.ones((1, len(labels))))[0].astype(np.int64)


def compute_auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a positive image scores higher than a negative one, a tie being half.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), everything above is positive.
      scores: [N] float, higher for positive.

    Returns:
      The area, 0..1, or None when all images are positive or all are negative.

    Raises:
      ValueError: lengths differ, there is no image, or a score is not finite.

    References:
      Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic (ROC) curve, 1982.
    """
    positive, scores = _check_binary(labels, scores)
    return _to_float(_auroc(*_count_positives(positive, scores, np.ones((1, len(scores))))[:2])[0])


def compute_auprc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the precision-recall curve, as average precision.

    Precision at each distinct score, weighted by the recall gained there. No line is drawn between the points, which
    would flatter the curve. Images of equal score enter together.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), everything above is positive.
      scores: [N] float, higher for positive.

    Returns:
      Average precision, 0..1, or None without positive images. A score without information has the prevalence.

    Raises:
      ValueError: lengths differ, there is no image, or a score is not finite.

    References:
      Davis and Goadrich, The relationship between precision-recall and ROC curves, 2006.
    """
    positive, scores = _check_binary(labels, scores)
    return _to_float(_auprc(*_count_positives(positive, scores, np.ones((1, len(scores))))[:2])[0])


def compute_threshold_metrics(labels: ArrayLike, scores: ArrayLike, threshold: ArrayLike) -> dict[str, float | None]:
    """Metrics of the decision score >= threshold, without intervals: cheap enough for each evaluation in training.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), everything above is positive.
      scores: [N] float, higher for positive.
      threshold: where decisions turn positive; one for all or [N].

    Returns:
      accuracy, sensitivity, specificity, precision, f1, npv (the precision of deciding for NORMAL), balanced_accuracy:
      each 0..1, or None where it does not exist.

    Raises:
      ValueError: lengths differ, there is no image, or a score is not finite.
    """
    positive, scores = _check_binary(labels, scores)
    values = compute_decision_values(positive, scores, threshold, np.ones((1, len(scores))))
    return {name: _to_float(value[0]) for name, value in values.items()}


def compute_metrics(
    labels: ArrayLike,
    probabilities: ArrayLike,
    threshold: ArrayLike,
    patient_ids: Sequence[str] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """All metrics of a split, each with its 95 % interval from the bootstrap by patient.

    Two classes: auroc, auprc of the score 1 - P(NORMAL); `specificity_at_sensitivity_0.95`, `_0.975` and `_0.99`, read
    off the split's own ROC curve at the largest threshold that reaches the sensitivity; and accuracy, sensitivity,
    specificity, precision, f1, npv, balanced_accuracy of the decision score >= threshold, with `precision_macro` and
    `f1_macro`, their plain means over NORMAL and PNEUMONIA (the macro recall is the balanced accuracy). Three classes:
    the same but for those two, for pneumonia against NORMAL; and of the decision for the most probable class
    `accuracy_three_class` and, for each class against the others, `{metric}_NORMAL`, `{metric}_BACTERIA`,
    `{metric}_VIRUS` and their plain mean `{metric}_macro`, where metric is one of auroc, auprc, sensitivity,
    specificity, precision, f1. `sensitivity_macro` is what others call the balanced accuracy of three classes.

    The interval holds the middle 95 % of the resamples in which the metric exists; the others are left out. It is
    None where fewer than 40 are left, or where they do not differ, as with a single patient. A metric of exactly 1 or 0
    does not differ between resamples either, but is not certain: there the other end is the exact binomial bound
    0.025 ** (1 / n), with n the patients of the rarest class.

    The order of images has no influence on the result.

    Args:
      labels: [N] int, 0..C - 1.
      probabilities: [N, C] float, 0..1, with C = 2 (NORMAL, PNEUMONIA) or 3 (NORMAL, BACTERIA, VIRUS).
      threshold: of the score for pneumonia, chosen on another split; one for all or [N].
      patient_ids: [N], equal for images of one patient, who are drawn together.
      resamples: number of bootstrap resamples R.
      seed: of the draws; the same seed draws the same patients.

    Returns:
      {name: {"value": float or None, "ci95": [low, high] or None}}; where one of them is None, "reason" says why.

    Raises:
      ValueError: shapes do not fit, a label is no class, a probability is outside 0..1, or there is no image.

    References:
      Efron and Tibshirani, An introduction to the bootstrap, 1993: percentile intervals.
      Clopper and Pearson, The use of confidence or fiducial limits, 1934: the bound where all resamples agree.
      Obuchowski, Nonparametric analysis of clustered ROC curve data, 1997: why images of one patient go together.
    """
    labels, probabilities, patient_ids = np.asarray(labels), np.asarray(probabilities), np.asarray(patient_ids)
    _check_same_length(labels=labels, probabilities=probabilities, patient_ids=patient_ids)
    # Row 0 is the split itself, so a value and its resamples go through the same arithmetic.
    weights = np.concatenate([np.ones((1, len(labels))), compute_bootstrap_weights(patient_ids, resamples, seed)])
    values = compute_metric_values(labels, probabilities, threshold, weights)
    patients = count_patients_of_rarest_class(labels, patient_ids)
    return {name: summarise(value, explain(name), patients) for name, value in values.items()}


def compute_metric_values(
    labels: ArrayLike, probabilities: ArrayLike, threshold: ArrayLike, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics of `compute_metrics` for each row of weights.

    Args:
      labels: [N] int, 0..C - 1.
      probabilities: [N, C] float, 0..1, with C = 2 or 3.
      threshold: of the score for pneumonia; one for all or [N].
      weights: [R, N] float, 0 or more: how often each image counts.

    Returns:
      {name: [R] float64}, NaN where the metric does not exist.

    Raises:
      ValueError: shapes do not fit, a label is no class, a probability is outside 0..1, or there is no image.
    """
    scores = compute_binary_scores(probabilities)
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    _check_same_length(labels=labels, probabilities=probabilities, weights=weights.T)
    classes = probabilities.shape[1]
    _check_indices("label", labels, classes)

    values = compute_score_values(labels > 0, scores, threshold, weights)
    if classes == 2:
        confusions = _count_confusions(labels, compute_decisions(scores, threshold), 2, weights)
        by_class = [_one_vs_rest(confusions, c) for c in range(2)]
        return values | {
            f"{metric}_macro": np.mean([one[metric] for one in by_class], axis=0) for metric in ("precision", "f1")
        }

    confusions = _count_confusions(labels, probabilities.argmax(axis=1), classes, weights)
    values["accuracy_three_class"] = _ratio(np.trace(confusions, axis1=1, axis2=2), confusions.sum(axis=(1, 2)))
    by_class = []
    for c in range(classes):
        true_positives, false_positives, _ = _count_positives(labels == c, probabilities[:, c], weights)
        areas = {"auroc": _auroc(true_positives, false_positives), "auprc": _auprc(true_positives, false_positives)}
        by_class.append(areas | _one_vs_rest(confusions, c))
    for metric in by_class[0]:
        values[f"{metric}_macro"] = np.mean([one[metric] for one in by_class], axis=0)
    for class_name, one in zip(CLASS_NAMES["three_class"], by_class, strict=True):
        values |= {f"{metric}_{class_name}": value for metric, value in one.items()}
    return values


def compute_score_values(
    positive: np.ndarray, scores: np.ndarray, threshold: ArrayLike, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics of two classes of `compute_metrics` for each row of weights.

    Args:
      positive: [N] bool.
      scores: [N] float, higher for positive.
      threshold: where decisions turn positive; one for all or [N].
      weights: [R, N] float, 0 or more: how often each image counts.

    Returns:
      {name: [R] float64}, NaN where the metric does not exist.
    """
    true_positives, false_positives, _ = _count_positives(positive, scores, weights)
    values = {"auroc": _auroc(true_positives, false_positives), "auprc": _auprc(true_positives, false_positives)}
    for target in TARGET_SENSITIVITIES:
        name = f"specificity_at_sensitivity_{target:g}"
        values[name] = _specificity_at_sensitivity(true_positives, false_positives, target)
    return values | compute_decision_values(positive, scores, threshold, weights)


def compute_decision_values(
    positive: np.ndarray, scores: ArrayLike, threshold: ArrayLike, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """The metrics of `compute_threshold_metrics` for each row of weights.

    Args:
      positive: [N] bool.
      scores: [N] float, higher for positive.
      threshold: where decisions turn positive; one for all or [N].
      weights: [R, N] float, 0 or more: how often each image counts.

    Returns:
      {name: [R] float64}, NaN where the metric does not exist.
    """
    confusions = _count_confusions(positive.astype(np.int64), compute_decisions(scores, threshold), 2, weights)
    accuracy = _ratio(np.trace(confusions, axis1=1, axis2=2), confusions.sum(axis=(1, 2)))
    rates = _one_vs_rest(confusions, 1)
    rates["npv"] = _ratio(confusions[:, 0, 0], confusions[:, :, 0].sum(axis=1))
    return {"accuracy": accuracy, **rates, "balanced_accuracy": (rates["sensitivity"] + rates["specificity"]) / 2}


def compute_bootstrap_weights(patient_ids: ArrayLike, resamples: int, seed: int) -> np.ndarray:
    """Draws as many patients as there are, with replacement; an image counts as often as its patient was drawn.

    Args:
      patient_ids: [N], equal for images of one patient.
      resamples: number of rows R.
      seed: of the draws.

    Returns:
      [R, N] float64, whole numbers. They follow the patient ids, not the order of the images.

    Raises:
      ValueError: resamples is negative, or there is no image.
    """
    if resamples < 0:
        raise ValueError(f"The number of resamples must be 0 or more, not {resamples}.")
    patients, patient_of_image = np.unique(np.asarray(patient_ids), return_inverse=True)
    if len(patients) == 0:
        raise ValueError("There is no image to draw from.")
    draws = np.random.default_rng(seed).integers(len(patients), size=(resamples, len(patients)))
    # Rows are told apart by an offset, so that one bincount serves all of them.
    draws += len(patients) * np.arange(resamples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)
    return counts[:, patient_of_image].astype(np.float64)


def count_patients_of_rarest_class(labels: np.ndarray, patient_ids: np.ndarray) -> int:
    """Patients of the class that has the fewest, among the classes that occur: [N] and [N] -> number."""
    return min(len(np.unique(patient_ids[labels == label])) for label in np.unique(labels))


def summarise(values: np.ndarray, reason: str, patients: int | None = None) -> dict:
    """A number of a split with its 95 % interval, as `compute_metrics` describes it.

    Args:
      values: [1 + R] float, of the split itself and of its resamples; NaN where the number does not exist.
      reason: why it does not exist, if it does not.
      patients: of the rarest class, for rates, which have an exact bound at 1 and 0; None for numbers of another kind.

    Returns:
      {"value": float or None, "ci95": [low, high] or None}; where one of them is None, "reason" says why.
    """
    value, resampled = float(values[0]), values[1:]
    if math.isnan(value):
        return {"value": None, "ci95": None, "reason": reason}
    existing = resampled[~np.isnan(resampled)]
    if len(existing) < MIN_RESAMPLES_FOR_INTERVAL:
        few = (
            f"Exists in {len(existing)} of {len(resampled)} resamples; an interval needs {MIN_RESAMPLES_FOR_INTERVAL}."
        )
        return {"value": value, "ci95": None, "reason": few}
    low, high = np.percentile(existing, [2.5, 97.5]).tolist()
    if high - low > 1e-12:  # Else they are equal but for rounding.
        return {"value": value, "ci95": [low, high]}
    if patients is not None:
        bound = 0.025 ** (1 / patients)
        if value > 1 - 1e-12:
            return {"value": value, "ci95": [bound, 1.0]}
        if value < 1e-12:
            return {"value": value, "ci95": [0.0, 1 - bound]}
    return {"value": value, "ci95": None, "reason": "The resamples do not differ, so they give no interval."}


def explain(name: str) -> str:
    """Why a metric of `compute_metrics` does not exist on a split."""
    metric, _, positive = name.rpartition("_")
    if positive == "macro":
        return f"The {metric} of at least one class does not exist."
    if metric not in _REASONS:  # The name has no class behind it: a metric of pneumonia against NORMAL.
        metric, positive = name, "pneumonia"
    return _REASONS.get(metric, "").format(name=positive)  # Accuracies always exist.


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
    """Chooses the threshold of the decision score >= threshold, on a split that is not the one to be scored.

    Rules:
      target_sensitivity: the largest threshold whose sensitivity reaches the target.
      youden: the threshold with the largest sensitivity + specificity - 1; of several, the smallest, which misses the
        fewest patients.
      cost_ratio: the threshold of the smallest expected cost, where a missed patient costs as much as `cost_ratio`
        false alarms and a share `prevalence` of all images is positive; of several, the smallest. Where it costs least
        to decide for nobody, that is the next number above the highest score.
      fixed: the number given.

    All but the last return one of the scores, not a rounded one. JSON keeps every float64, and so every float32, to the
    last bit; hence a threshold that was written and read again makes the same decisions on the same scores
    (`compute_decisions` compares in float64). Counts are compared as whole numbers, so ties do not hang on rounding.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), everything above is positive.
      scores: [N] float, higher for positive.
      rule: one of those above.
      target_sensitivity: above 0, at most 1; needed by the rule of that name.
      cost_ratio: above 0; needed by the rule of that name.
      prevalence: between 0 and 1, for the rule cost_ratio; None: the share of positive images in this split.
      fixed: 0..1; needed by the rule of that name.

    Returns:
      The threshold as a Python float.

    Raises:
      ValueError: the rule is unknown, its number is missing or out of range, or the split lacks the images it needs.

    References:
      Youden, Index for rating diagnostic tests, 1950.
      Metz, Basic principles of ROC analysis, 1978: the threshold of the smallest expected cost.
    """
    if rule == "fixed":
        if fixed is None or not 0 <= fixed <= 1:
            raise ValueError(f"The rule fixed needs a threshold between 0 and 1, not {fixed}.")
        return float(fixed)

    if rule not in ("target_sensitivity", "youden", "cost_ratio"):
        raise ValueError(
            f"Unknown threshold rule {rule!r}; the rules are target_sensitivity, youden, cost_ratio and fixed."
        )
    positive, scores = _check_binary(labels, scores)
    if not positive.any():
        raise ValueError(f"The rule {rule} needs positive images, and the split has none.")
    true_positives, false_positives, thresholds = _count_positives(positive, scores, np.ones((1, len(scores))))
    true_positives, false_positives = true_positives[0], false_positives[0]
    positives, negatives = true_positives[-1], false_positives[-1]

    if rule == "target_sensitivity":
        if target_sensitivity is None or not 0 < target_sensitivity <= 1:
            raise ValueError(f"The target sensitivity must be above 0 and at most 1, not {target_sensitivity}.")
        # Divided, not multiplied: 19 / 20 is the same float as 0.95, while 0.07 * 100 is more than 7.
        return float(thresholds[np.argmax(true_positives / positives >= target_sensitivity)])

    if negatives == 0:
        raise ValueError(f"The rule {rule} needs negative images, and the split has none.")
    if rule == "cost_ratio":
        if cost_ratio is None or not 0 < cost_ratio < math.inf:
            raise ValueError(f"The cost of a miss in false alarms must be above 0, not {cost_ratio}.")
        if prevalence is None:
            prevalence = positives / (positives + negatives)
        if not 0 < prevalence < 1:
            raise ValueError(f"The prevalence must lie between 0 and 1, not {prevalence}.")
        # The first candidate decides for nobody.
        sensitivity = np.append(0.0, true_positives / positives)
        false_positive_rate = np.append(0.0, false_positives / negatives)
        cost = cost_ratio * prevalence * (1 - sensitivity) + (1 - prevalence) * false_positive_rate
        # Equal costs may differ in their last bits.
        cheapest = np.flatnonzero(cost <= cost.min() + 1e-12 * max(cost_ratio, 1.0))[-1]
        return float(np.append(np.nextafter(thresholds[0], np.inf), thresholds)[cheapest])
    youden = true_positives * negatives - false_positives * positives
    return float(thresholds[np.flatnonzero(youden == youden.max())[-1]])


def choose_operating_points(labels: ArrayLike, scores: ArrayLike) -> dict[str, float | None]:
    """The thresholds that are always reported, beside the one that the run decides by.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), everything above is positive.
      scores: [N] float, higher for positive.

    Returns:
      {"target_sensitivity_0.95", "target_sensitivity_0.975", "target_sensitivity_0.99", "youden": threshold each}, None
      where the split lacks the images that the rule needs.

    Raises:
      ValueError: lengths differ, there is no image, or a score is not finite.
    """
    positive, scores = _check_binary(labels, scores)
    points: dict[str, float | None] = {}
    for target in TARGET_SENSITIVITIES:
        name = f"target_sensitivity_{target:g}"
        points[name] = None
        if positive.any():
            points[name] = choose_threshold(positive, scores, "target_sensitivity", target_sensitivity=target)
    has_both = positive.any() and not positive.all()
    return points | {"youden": choose_threshold(positive, scores, "youden") if has_both else None}


def compute_operating_points(
    labels: ArrayLike,
    scores: ArrayLike,
    thresholds: Mapping[str, float | None],
    patient_ids: Sequence[str] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """What decisions at several thresholds, chosen on another split, are worth on this one.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), everything above is positive.
      scores: [N] float, higher for positive.
      thresholds: of `choose_operating_points`.
      patient_ids: [N], equal for images of one patient, who are drawn together.
      resamples: number of bootstrap resamples R.
      seed: of the draws.

    Returns:
      {name: {"threshold": float, "metrics": {name: {"value", "ci95"}}, "confusion_matrix": [2, 2]}}, the metrics being
      those of `compute_threshold_metrics`, with the intervals of `compute_metrics`. Where there is no threshold, it is
      {"threshold": None, "reason": why}.

    Raises:
      ValueError: lengths differ, there is no image, or a score is not finite.
    """
    positive, scores = _check_binary(labels, scores)
    patient_ids = np.asarray(patient_ids)
    _check_same_length(scores=scores, patient_ids=patient_ids)
    weights = np.concatenate([np.ones((1, len(scores))), compute_bootstrap_weights(patient_ids, resamples, seed)])
    patients = count_patients_of_rarest_class(positive, patient_ids)
    points = {}
    for name, threshold in thresholds.items():
        if threshold is None:
            points[name] = {
                "threshold": None,
                "reason": "The split that it is chosen on lacks the images for the rule.",
            }
            continue
        values = compute_decision_values(positive, scores, threshold, weights)
        confusion = compute_confusion(positive.astype(np.int64), compute_decisions(scores, threshold), 2)
        points[name] = {
            "threshold": threshold,
            "metrics": {metric: summarise(value, explain(metric), patients) for metric, value in values.items()},
            "confusion_matrix": confusion.tolist(),
        }
    return points


def compute_roc_curve(
    labels: ArrayLike, scores: ArrayLike, patient_ids: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict | None:
    """ROC curve with its pointwise 95 % band.

    The band holds, at each false positive rate of a grid, the middle 95 % of the sensitivities of the resamples; those
    with one class only are left out. Pointwise means that a whole curve leaves the band more often than one time in 20.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), everything above is positive.
      scores: [N] float, higher for positive.
      patient_ids: [N], equal for images of one patient.
      resamples: number of bootstrap resamples R.
      seed: of the draws.

    Returns:
      {"false_positive_rate": K + 1 floats, "sensitivity": K + 1 floats, "band": {"false_positive_rate", "low", "high":
      G floats each}}, from (0, 0) to (1, 1). The band is None when fewer than 40 resamples have both classes; all is
      None when all images are positive or all are negative.

    Raises:
      ValueError: lengths differ, there is no image, or a score is not finite.
    """
    counted = _count_split_and_resamples(labels, scores, patient_ids, resamples, seed)
    true_positives, false_positives = (np.pad(count, ((0, 0), (1, 0))) for count in counted)
    exists = (true_positives[:, -1] > 0) & (false_positives[:, -1] > 0)
    if not exists[0]:
        return None
    sensitivity = true_positives[exists] / true_positives[exists, -1:]
    false_positive_rate = false_positives[exists] / false_positives[exists, -1:]
    # Where the curve rises upright, np.interp takes the upper end.
    rows = [np.interp(CURVE_GRID, x, y) for x, y in zip(false_positive_rate[1:], sensitivity[1:], strict=True)]
    return {
        "false_positive_rate": false_positive_rate[0].tolist(),
        "sensitivity": sensitivity[0].tolist(),
        "band": _compute_band("false_positive_rate", CURVE_GRID, rows),
    }


def compute_pr_curve(
    labels: ArrayLike, scores: ArrayLike, patient_ids: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict | None:
    """Precision over sensitivity (recall) with its pointwise 95 % band.

    Between two points the curve is a step, as in average precision: a sensitivity has the precision of the highest
    threshold that reaches it.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), everything above is positive.
      scores: [N] float, higher for positive.
      patient_ids: [N], equal for images of one patient.
      resamples: number of bootstrap resamples R.
      seed: of the draws.

    Returns:
      {"sensitivity": up to K floats, rising, "precision": as many, "prevalence": float, "band": {"sensitivity", "low",
      "high": G - 1 floats each}}. The band is None when fewer than 40 resamples have positive images; all is None
      without positive images.

    Raises:
      ValueError: lengths differ, there is no image, or a score is not finite.
    """
    true_positives, false_positives = _count_split_and_resamples(labels, scores, patient_ids, resamples, seed)
    exists = true_positives[:, -1] > 0
    if not exists[0]:
        return None
    sensitivity = true_positives[exists] / true_positives[exists, -1:]
    precision = _ratio(true_positives[exists], true_positives[exists] + false_positives[exists])
    grid = CURVE_GRID[1:]  # At sensitivity 0 nothing need be decided positive, and precision does not exist.
    rows = [y[np.searchsorted(x, grid)] for x, y in zip(sensitivity[1:], precision[1:], strict=True)]
    reached = np.diff(sensitivity[0], prepend=0) > 0
    return {
        "sensitivity": sensitivity[0][reached].tolist(),
        "precision": precision[0][reached].tolist(),
        "prevalence": float(precision[0, -1]),
        "band": _compute_band("sensitivity", grid, rows),
    }


def _count_positives(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of true and false positives at each distinct score, highest first: [R, K], [R, K] and the scores [K]."""
    order = np.argsort(-scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[:, order]
    # Images of equal score pass the threshold together: only the last of them is a point of the curve.
    last = np.append(scores[:-1] != scores[1:], True)
    true_positives = np.cumsum(weights * positive, axis=1)[:, last]
    false_positives = np.cumsum(weights * ~positive, axis=1)[:, last]
    return true_positives, false_positives, scores[last]


def _count_split_and_resamples(
    labels: ArrayLike, scores: ArrayLike, patient_ids: ArrayLike, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives, [1 + R, K] each; row 0 is the split itself."""
    positive, scores = _check_binary(labels, scores)
    _check_same_length(scores=scores, patient_ids=np.asarray(patient_ids))
    weights = np.concatenate([np.ones((1, len(scores))), compute_bootstrap_weights(patient_ids, resamples, seed)])
    return _count_positives(positive, scores, weights)[:2]


def _auroc(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    """[R, K] counts -> [R]. Trapezoids under the curve, which is the rank statistic with midranks for ties."""
    steps = np.diff(false_positives, axis=1, prepend=0)
    twice_height = 2 * true_positives - np.diff(true_positives, axis=1, prepend=0)
    area = np.einsum("rk,rk->r", steps, twice_height)
    return _ratio(area, 2 * true_positives[:, -1] * false_positives[:, -1])


def _auprc(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    """[R, K] counts -> [R]. A score that nobody has in a resample gains no recall, so its precision may be anything."""
    decided = true_positives + false_positives
    precision = np.divide(true_positives, decided, out=np.zeros_like(decided), where=decided > 0)
    gained = np.diff(true_positives, axis=1, prepend=0)
    return _ratio(np.einsum("rk,rk->r", gained, precision), true_positives[:, -1])


def _specificity_at_sensitivity(true_positives: np.ndarray, false_positives: np.ndarray, target: float) -> np.ndarray:
    """[R, K] counts -> [R]: specificity at the largest threshold whose sensitivity reaches the target."""
    positives = true_positives[:, -1:]
    reached = np.argmax(_ratio(true_positives, np.broadcast_to(positives, true_positives.shape)) >= target, axis=1)
    alarms = np.take_along_axis(false_positives, reached[:, None], axis=1)[:, 0]
    negatives = false_positives[:, -1]
    specificity = _ratio(negatives - alarms, negatives)
    return np.where(positives[:, 0] > 0, specificity, np.nan)


def _count_confusions(labels: np.ndarray, decisions: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """[R, C, C] float64: the weight of images of each true class (row) with each decision (column)."""
    cell_of_image = np.eye(classes * classes)[labels * classes + decisions]
    return (weights @ cell_of_image).reshape(-1, classes, classes)


def _one_vs_rest(confusions: np.ndarray, c: int) -> dict[str, np.ndarray]:
    """Rates [R] of deciding for class c against all others, from [R, C, C]."""
    true_positives = confusions[:, c, c]
    false_positives = confusions[:, :, c].sum(axis=1) - true_positives
    false_negatives = confusions[:, c, :].sum(axis=1) - true_positives
    true_negatives = confusions.sum(axis=(1, 2)) - true_positives - false_positives - false_negatives
    return {
        "sensitivity": _ratio(true_positives, true_positives + false_negatives),
        "specificity": _ratio(true_negatives, true_negatives + false_positives),
        "precision": _ratio(true_positives, true_positives + false_positives),
        "f1": _ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives),
    }


def _compute_band(grid_name: str, grid: np.ndarray, rows: list[np.ndarray]) -> dict[str, list[float]] | None:
    if len(rows) < MIN_RESAMPLES_FOR_INTERVAL:
        return None
    low, high = np.percentile(rows, [2.5, 97.5], axis=0)
    return {grid_name: grid.tolist(), "low": low.tolist(), "high": high.tolist()}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator != 0)


def _to_float(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _check_binary(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels as [N] bool and scores as [N] float64."""
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    _check_same_length(labels=labels, scores=scores)
    if labels.ndim != 1 or scores.ndim != 1:
        raise ValueError(f"Labels and scores must be lists, not of shape {labels.shape} and {scores.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.sum(~np.isfinite(scores))} of {len(scores)} scores are not finite numbers.")
    if labels.min() < 0:
        raise ValueError(f"Labels must be 0 or more, not {labels.min()}.")
    return labels > 0, scores


def _check_same_length(**arrays: np.ndarray) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Lengths differ: {', '.join(f'{name} {length}' for name, length in lengths.items())}.")
    if 0 in lengths.values():
        raise ValueError("There is no image to score.")


def _check_indices(what: str, indices: np.ndarray, classes: int) -> None:
    if indices.min() < 0 or indices.max() >= classes:
        raise ValueError(
            f"Each {what} must be a class index, 0 to {classes - 1}; found {indices.min()} to {indices.max()}."
        )
