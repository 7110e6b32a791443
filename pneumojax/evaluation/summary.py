"""Computes all statistics of an evaluated split: the numbers and the curves.

The functions take arrays and return plain numbers that can be stored as JSON. They need neither a run nor its files, so
they are used for a run, an ensemble and a cross-validation alike.
"""

from collections.abc import Sequence

import numpy as np

from pneumojax.data.dataset import Split
from pneumojax.evaluation import calibration, curves, decision_curve, metrics, point_metrics, subgroups, thresholds
from pneumojax.evaluation.bootstrap import PatientBootstrap, summarise
from pneumojax.evaluation.label_noise import estimate_label_noise
from pneumojax.evaluation.prediction_files import Predictions, check_same_images
from pneumojax.evaluation.recalibration import apply_calibration


def compute_statistics(
    split: Split,
    task: str,
    probabilities: np.ndarray,
    threshold: dict,
    fitted: dict,
    bootstrap: PatientBootstrap,
    prevalence: float | None = None,
) -> dict:
    """Computes all numbers of a split, with 95 % intervals where they exist.

    Args:
      split: the evaluated split.
      task: binary or three_class.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL. C may be 3 for the task binary: see `merge_kinds`.
      threshold: content of threshold.json. "value" and "operating_points" are used.
      fitted: content of calibration.json. "temperature" and "biases" are used.
      bootstrap: resamples of the split's patients.
      prevalence: prevalence of pneumonia where the network will be used; None if unknown.

    Returns:
      A dict with
        "metrics": from `metrics.compute_metrics`.
        "operating_points": from `thresholds.compute_operating_points`.
        "calibration": {"before", "after": from `calibration.compute_calibration`}: as trained, and recalibrated.
        "at_prevalence": {"prevalence", "ppv", "npv"} of the decision at the threshold; None without a prevalence.
        "subgroups": from `subgroups.compute_subgroups`.
        "label_noise": from `label_noise.estimate_label_noise`, with the calibrated probabilities.
    """
    positive, scores = split.labels("binary"), point_metrics.compute_binary_scores(probabilities)
    calibrated = apply_calibration(probabilities, fitted["temperature"], fitted["biases"])
    at_prevalence = None
    if prevalence is not None:
        values = calibration.compute_predictive_values(positive, scores, threshold["value"], [prevalence], bootstrap)
        at_prevalence = {"prevalence": prevalence} | {name: value[0] for name, value in values.items()}
    return {
        "metrics": metrics.compute_metrics(
            split.labels(task), merge_kinds(probabilities, task), threshold["value"], bootstrap
        ),
        "operating_points": thresholds.compute_operating_points(
            positive, scores, threshold["operating_points"], bootstrap
        ),
        "calibration": {
            "before": calibration.compute_calibration(positive, probabilities, bootstrap),
            "after": calibration.compute_calibration(positive, calibrated, bootstrap),
        },
        "at_prevalence": at_prevalence,
        "subgroups": subgroups.compute_subgroups(split, probabilities, threshold["value"], bootstrap),
        "label_noise": estimate_label_noise(split.labels(task), merge_kinds(calibrated, task)),
    }


def merge_kinds(probabilities: np.ndarray, task: str) -> np.ndarray:
    """Adds the probabilities of the kinds of pneumonia if the task is binary and the network distinguishes them.

    Args:
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      task: binary or three_class. Labels of pneumonia without its kind make the task binary.

    Returns:
      [N, 2] for a binary task, otherwise the probabilities themselves.
    """
    if task != "binary" or probabilities.shape[1] == 2:
        return probabilities
    scores = point_metrics.compute_binary_scores(probabilities)
    return np.stack([1 - scores, scores], axis=1)


def compute_curves(
    split: Split, probabilities: np.ndarray, threshold: dict, fitted: dict, bootstrap: PatientBootstrap
) -> dict:
    """Computes the curves that the figures show.

    Args:
      split: the evaluated split.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      threshold: content of threshold.json. "value" is used.
      fitted: content of calibration.json. "temperature" and "biases" are used.
      bootstrap: resamples of the split's patients.

    Returns:
      A dict with
        "roc": from `curves.compute_roc_curve`; None if the curve does not exist.
        "precision_recall": from `curves.compute_pr_curve`; None if the curve does not exist.
        "reliability": {"before", "after": from `calibration.compute_reliability`}: as trained, and recalibrated.
        "decision_curve": from `decision_curve.compute_decision_curve`, for the calibrated scores.
        "predictive_values": {"prevalence", "ppv", "npv"} of the decision at the threshold, on a grid of prevalences.
    """
    positive, scores = split.labels("binary"), point_metrics.compute_binary_scores(probabilities)
    calibrated = point_metrics.compute_binary_scores(
        apply_calibration(probabilities, fitted["temperature"], fitted["biases"])
    )
    return {
        "roc": curves.compute_roc_curve(positive, scores, bootstrap),
        "precision_recall": curves.compute_pr_curve(positive, scores, bootstrap),
        "reliability": {
            "before": calibration.compute_reliability(positive, scores),
            "after": calibration.compute_reliability(positive, calibrated),
        },
        "decision_curve": decision_curve.compute_decision_curve(positive, calibrated, bootstrap),
        "predictive_values": {"prevalence": calibration.PREVALENCE_GRID.tolist()}
        | calibration.compute_predictive_values(
            positive, scores, threshold["value"], calibration.PREVALENCE_GRID, bootstrap
        ),
    }


def compute_mean_metrics(repeats: Sequence[Predictions]) -> dict[str, dict]:
    """Computes the metrics of several trainings of one system on the same images: mean, interval and spread.

    The interval is for the mean. Each resample contains the same patients for all trainings, so the interval shows how
    the mean would vary with other patients. The standard deviation shows how the metric varies with the seed.

    Args:
      repeats: predictions of at least one training, each with its own threshold.

    Returns:
      {name of a metric: {"value": mean, "ci95", "standard_deviation": over the trainings}}, with the metrics of
      `metrics.compute_metrics`. The standard deviation of a single training is None. A value that does not exist is
      None, and "reason" says why.

    Raises:
      UserError: the trainings were evaluated on different images.
    """
    first = repeats[0]
    for other in repeats[1:]:
        check_same_images(first, other)
    bootstrap = PatientBootstrap(first.patient_ids)
    values = [
        metrics.compute_metric_values(one.labels, one.probabilities, one.threshold, bootstrap.weights)
        for one in repeats
    ]
    patients = [metrics.count_denominators(one.labels, one.probabilities, one.threshold, bootstrap) for one in repeats]
    result = {}
    for name in values[0]:
        rows = np.stack([one[name] for one in values])
        spread = float(rows[:, 0].std(ddof=1)) if len(rows) > 1 and not np.isnan(rows[:, 0]).any() else None
        # If the mean is 1, every training has 1. Of their exact intervals, the widest has the fewest patients.
        fewest = min(one[name] for one in patients) if name in patients[0] else None
        summary = summarise(rows.mean(axis=0), metrics.explain(name), fewest)
        result[name] = summary | {"standard_deviation": spread}
    return result
