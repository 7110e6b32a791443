"""All statistics of a scored split: one call for the numbers, one for the curves.

The functions take arrays and return plain numbers that JSON can hold. They need no run, no files and no network, so the
same statistics describe the predictions of a run, of an ensemble and of cross-validation.
"""

from collections.abc import Sequence

import numpy as np

from pneumojax.data.dataset import Split
from pneumojax.evaluation import calibration, curves, decision_curve, metrics, point_metrics, subgroups, thresholds
from pneumojax.evaluation.bootstrap import PatientBootstrap, summarise
from pneumojax.evaluation.prediction_files import Predictions, check_same_images


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
      split: the split that was scored.
      task: binary or three_class.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      threshold: content of threshold.json, of which value and operating_points are read.
      fitted: content of calibration.json, of which temperature is read.
      bootstrap: resamples of the split's patients.
      prevalence: share of pneumonia where the network will be used; None: not stated.

    Returns:
      "metrics": of `metrics.compute_metrics`;
      "operating_points": of `thresholds.compute_operating_points`;
      "calibration": of `calibration.compute_calibration`, "before" and "after" the temperature is applied;
      "at_prevalence": prevalence, and ppv and npv of the decision at the threshold; None without a prevalence;
      "subgroups": of `subgroups.compute_subgroups`.
    """
    positive, scores = split.labels("binary"), point_metrics.compute_binary_scores(probabilities)
    calibrated = calibration.apply_temperature(probabilities, fitted["temperature"])
    at_prevalence = None
    if prevalence is not None:
        values = calibration.compute_predictive_values(positive, scores, threshold["value"], [prevalence], bootstrap)
        at_prevalence = {"prevalence": prevalence} | {name: value[0] for name, value in values.items()}
    return {
        "metrics": metrics.compute_metrics(split.labels(task), probabilities, threshold["value"], bootstrap),
        "operating_points": thresholds.compute_operating_points(
            positive, scores, threshold["operating_points"], bootstrap
        ),
        "calibration": {
            "before": calibration.compute_calibration(positive, probabilities, bootstrap),
            "after": calibration.compute_calibration(positive, calibrated, bootstrap),
        },
        "at_prevalence": at_prevalence,
        "subgroups": subgroups.compute_subgroups(split, probabilities, threshold["value"], bootstrap),
    }


def compute_curves(
    split: Split, probabilities: np.ndarray, threshold: dict, fitted: dict, bootstrap: PatientBootstrap
) -> dict:
    """Computes the curves that the figures show.

    Args:
      split: the split that was scored.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      threshold: content of threshold.json, of which value is read.
      fitted: content of calibration.json, of which temperature is read.
      bootstrap: resamples of the split's patients.

    Returns:
      "roc", "precision_recall": of `curves.compute_roc_curve` and `curves.compute_pr_curve`, None where they do not
        exist;
      "reliability": of `calibration.compute_reliability`, "before" and "after" the temperature is applied;
      "decision_curve": of `decision_curve.compute_decision_curve`, for the scores after the temperature is applied;
      "predictive_values": "prevalence", and "ppv" and "npv" of the decision at the threshold at each prevalence.
    """
    positive, scores = split.labels("binary"), point_metrics.compute_binary_scores(probabilities)
    calibrated = point_metrics.compute_binary_scores(
        calibration.apply_temperature(probabilities, fitted["temperature"])
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

    The interval is that of the mean. Each resample draws the same patients for all trainings, so the interval shows how
    the mean would vary with other patients. The standard deviation shows how a training varies with the seed.

    Args:
      repeats: predictions of at least one training, each with its own threshold.

    Returns:
      {name of `metrics.compute_metrics`: {"value": mean, "ci95", "standard_deviation": over the trainings, None for a
      single one}}; what does not exist is None, and "reason" says why.

    Raises:
      UserError: the trainings were scored on different images.
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
        # A mean of 1 means that every training has 1. Of their exact intervals, that of the fewest patients is widest.
        fewest = min(one[name] for one in patients) if name in patients[0] else None
        summary = summarise(rows.mean(axis=0), metrics.explain(name), fewest)
        result[name] = summary | {"standard_deviation": spread}
    return result
