"""Metrics of a classifier, with 95 % intervals from the bootstrap by patient.

Every metric is computed from weighted counts: an image of weight 2 counts twice. The scores are sorted once. The true
and false positives of all resamples at all thresholds are then cumulative sums over a [R, N] array of weights. AUROC,
average precision and curves follow from these counts.

The module has two layers. The functions `compute_..._values` return arrays with a value for each row of weights. NaN
means that the metric does not exist; an example is the sensitivity of a split without positive images. The other
functions return Python floats, and None with a reason instead of NaN.

Additional letters in shapes: K distinct scores.
"""

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.config import CLASS_NAMES
from pneumojax.evaluation.bootstrap import PatientBootstrap, summarise
from pneumojax.evaluation.checks import (
    check_binary,
    check_indices,
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
from pneumojax.evaluation.point_metrics import compute_binary_scores, compute_decision_values, compute_decisions

# Sensitivities at which the specificity is always reported. Screening systems are usually compared by the false
# positives that they cause at a high sensitivity.
TARGET_SENSITIVITIES = (0.95, 0.975, 0.99)

_NEEDS_BOTH = "Needs images of {name} and others; the split has only one of the two."

# {metric: why it does not exist}. {name} is replaced by the class that counts as positive.
_REASONS = {
    "auroc": _NEEDS_BOTH,
    "auprc": "Needs images of {name}; the split has none.",
    "sensitivity": "Needs images of {name}; the split has none.",
    "specificity": "Needs images other than {name}; the split has none.",
    "precision": "Needs images predicted as {name}; there is none.",
    "npv": "Needs images predicted as other than {name}; there is none.",
    "f1": "Needs images of {name} or images predicted as {name}; there is neither.",
    "balanced_accuracy": _NEEDS_BOTH,
    **{f"specificity_at_sensitivity_{target:g}": _NEEDS_BOTH for target in TARGET_SENSITIVITIES},
}


def compute_metrics(
    labels: ArrayLike, probabilities: ArrayLike, threshold: ArrayLike, bootstrap: PatientBootstrap
) -> dict[str, dict]:
    """Computes all metrics of a split, each with its 95 % interval.

    Metrics of pneumonia against NORMAL, for both tasks:
      auroc, auprc: areas under the curves of the score 1 - P(NORMAL).
      specificity_at_sensitivity_0.95, _0.975, _0.99: specificity at the largest threshold that reaches the
        sensitivity on this split.
      accuracy, sensitivity, specificity, precision, f1, npv, balanced_accuracy: metrics of the decision
        score >= threshold.

    Additional metrics with two classes:
      precision_macro, f1_macro: means over NORMAL and PNEUMONIA. (The macro recall is balanced_accuracy.)

    Additional metrics with three classes, where the predicted class is the most probable one:
      accuracy_three_class.
      {metric}_NORMAL, {metric}_BACTERIA, {metric}_VIRUS: each class against the others. metric is auroc, auprc,
        sensitivity, specificity, precision or f1.
      {metric}_macro: mean over the three classes. (sensitivity_macro is the balanced accuracy of three classes.)

    Args:
      labels: [N] int, 0..C - 1.
      probabilities: [N, C] float, 0..1, with C = 2 (NORMAL, PNEUMONIA) or 3 (NORMAL, BACTERIA, VIRUS).
      threshold: threshold of the score for pneumonia, chosen on another split: a float, or [N] with one for each image.
      bootstrap: resamples of the split's patients.

    Returns:
      {name: {"value": float or None, "ci95": [low, high] or None}}, from `bootstrap.summarise`. If one of them is None,
      "reason" says why.

    Raises:
      ValueError: shapes do not match, a label is not a class, a probability is not in 0..1, or there are no images.
    """
    values = compute_metric_values(labels, probabilities, threshold, bootstrap.weights)
    patients = count_denominators(labels, probabilities, threshold, bootstrap)
    return {name: summarise(value, explain(name), patients.get(name)) for name, value in values.items()}


def compute_binary_metrics(
    labels: ArrayLike, scores: ArrayLike, threshold: ArrayLike, bootstrap: PatientBootstrap
) -> dict[str, dict]:
    """Computes the metrics of `compute_metrics` for pneumonia against NORMAL, from scores instead of probabilities.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, higher for positive.
      threshold: a float, or [N] with one for each image.
      bootstrap: resamples of the patients of these images.

    Returns:
      {name: {"value": float or None, "ci95": [low, high] or None}}, without the macro means.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.
    """
    positive, scores = check_binary(labels, scores)
    check_same_length(scores=scores, patient_ids=bootstrap.patient_ids)
    values = compute_score_values(positive, scores, threshold, bootstrap.weights)
    patients = count_binary_denominators(positive, scores, threshold, bootstrap)
    return {name: summarise(value, explain(name), patients.get(name)) for name, value in values.items()}


def compute_metric_values(
    labels: ArrayLike, probabilities: ArrayLike, threshold: ArrayLike, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes the metrics of `compute_metrics` for each row of weights.

    Args:
      labels: [N] int, 0..C - 1.
      probabilities: [N, C] float, 0..1, with C = 2 or 3.
      threshold: threshold of the score for pneumonia: a float, or [N] with one for each image.
      weights: [R, N] float, at least 0: how often each image counts in each resample.

    Returns:
      {name: [R] float64}, NaN where the metric does not exist.

    Raises:
      ValueError: shapes do not match, a label is not a class, a probability is not in 0..1, or there are no images.
    """
    scores = compute_binary_scores(probabilities)
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    check_same_length(labels=labels, probabilities=probabilities, weights=weights.T)
    classes = probabilities.shape[1]
    check_indices("label", labels, classes)

    values = compute_score_values(labels > 0, scores, threshold, weights)
    if classes == 2:
        confusions = count_confusions(labels, compute_decisions(scores, threshold), 2, weights)
        by_class = [one_vs_rest(confusions, c) for c in range(2)]
        return values | {
            f"{metric}_macro": np.mean([one[metric] for one in by_class], axis=0) for metric in ("precision", "f1")
        }

    confusions = count_confusions(labels, probabilities.argmax(axis=1), classes, weights)
    values["accuracy_three_class"] = divide(np.trace(confusions, axis1=1, axis2=2), confusions.sum(axis=(1, 2)))
    by_class = []
    for c in range(classes):
        true_positives, false_positives, _ = count_positives(labels == c, probabilities[:, c], weights)
        areas = {
            "auroc": area_under_roc(true_positives, false_positives),
            "auprc": average_precision(true_positives, false_positives),
        }
        by_class.append(areas | one_vs_rest(confusions, c))
    for metric in by_class[0]:
        values[f"{metric}_macro"] = np.mean([one[metric] for one in by_class], axis=0)
    for class_name, one in zip(CLASS_NAMES["three_class"], by_class, strict=True):
        values |= {f"{metric}_{class_name}": value for metric, value in one.items()}
    return values


def compute_score_values(
    positive: np.ndarray, scores: np.ndarray, threshold: ArrayLike, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Computes the metrics of `compute_binary_metrics` for each row of weights.

    Args:
      positive: [N] bool.
      scores: [N] float, higher for positive.
      threshold: a float, or [N] with one for each image.
      weights: [R, N] float, at least 0: how often each image counts in each resample.

    Returns:
      {name: [R] float64}, NaN where the metric does not exist.
    """
    true_positives, false_positives, _ = count_positives(positive, scores, weights)
    values = {
        "auroc": area_under_roc(true_positives, false_positives),
        "auprc": average_precision(true_positives, false_positives),
    }
    for target in TARGET_SENSITIVITIES:
        name = f"specificity_at_sensitivity_{target:g}"
        values[name] = specificity_at_sensitivity(true_positives, false_positives, target)
    return values | compute_decision_values(positive, scores, threshold, weights)


def specificity_at_sensitivity(true_positives: np.ndarray, false_positives: np.ndarray, target: float) -> np.ndarray:
    """Computes the specificity at the largest threshold whose sensitivity reaches the target.

    Args:
      true_positives: [R, K] float, from `count_positives`.
      false_positives: [R, K] float, from `count_positives`.
      target: the sensitivity to reach, 0..1.

    Returns:
      [R] float64.
    """
    positives = true_positives[:, -1:]
    reached = np.argmax(divide(true_positives, np.broadcast_to(positives, true_positives.shape)) >= target, axis=1)
    false_positives_there = np.take_along_axis(false_positives, reached[:, None], axis=1)[:, 0]
    negatives = false_positives[:, -1]
    specificity = divide(negatives - false_positives_there, negatives)
    return np.where(positives[:, 0] > 0, specificity, np.nan)


def count_denominators(
    labels: ArrayLike, probabilities: ArrayLike, threshold: ArrayLike, bootstrap: PatientBootstrap
) -> dict[str, int]:
    """Counts the patients, or pairs of patients, in the denominator of each metric that can have an exact interval.

    Args:
      labels: [N] int, 0..C - 1.
      probabilities: [N, C] float, 0..1, with C = 2 or 3.
      threshold: threshold of the score for pneumonia: a float, or [N] with one for each image.
      bootstrap: resamples whose patients are counted.

    Returns:
      {name: number}. For a proportion, it is the number of patients in the denominator. For an AUROC, it is the number
      of disjoint pairs of patients. Other metrics are not included, because they are not proportions of independent
      images: areas under the precision-recall curve, F1, means, and specificities at a sensitivity of the same split.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    patients = count_binary_denominators(labels > 0, compute_binary_scores(probabilities), threshold, bootstrap)
    if probabilities.shape[1] == 2:
        return patients
    predicted = probabilities.argmax(axis=1)
    patients["accuracy_three_class"] = patients["accuracy"]
    for c, name in enumerate(CLASS_NAMES["three_class"]):
        patients[f"auroc_{name}"] = bootstrap.count_pairs(labels == c)
        patients[f"sensitivity_{name}"] = bootstrap.count_patients(labels == c)
        patients[f"specificity_{name}"] = bootstrap.count_patients(labels != c)
        patients[f"precision_{name}"] = bootstrap.count_patients(predicted == c)
    return patients


def count_binary_denominators(
    positive: np.ndarray, scores: np.ndarray, threshold: ArrayLike, bootstrap: PatientBootstrap
) -> dict[str, int]:
    """Counts the denominators of the metrics of `compute_binary_metrics`. See `count_denominators`.

    Args:
      positive: [N] bool.
      scores: [N] float, higher for positive.
      threshold: a float, or [N] with one for each image.
      bootstrap: resamples whose patients are counted.

    Returns:
      {name: number of patients or of pairs of patients}.
    """
    predicted = compute_decisions(scores, threshold) > 0
    return {
        "auroc": bootstrap.count_pairs(positive),
        "accuracy": bootstrap.count_patients(positive | ~positive),
        "sensitivity": bootstrap.count_patients(positive),
        "specificity": bootstrap.count_patients(~positive),
        "precision": bootstrap.count_patients(predicted),
        "npv": bootstrap.count_patients(~predicted),
    }


def explain(name: str) -> str:
    """Returns a sentence that explains why a metric does not exist.

    Args:
      name: name of a metric of `compute_metrics`.
    """
    metric, _, positive = name.rpartition("_")
    if positive == "macro":
        return f"The {metric} of at least one class does not exist."
    if metric not in _REASONS:  # The name has no class at its end: a metric of pneumonia against NORMAL.
        metric, positive = name, "pneumonia"
    return _REASONS.get(metric, "").format(name=positive)  # Accuracies always exist.
