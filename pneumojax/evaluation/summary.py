"""Everything that is computed of a scored split: one call for the numbers, one for the curves.

Arrays in, plain numbers out that JSON can hold: no run, no files, no network. Whatever scores images (a run, an
ensemble, out-of-fold predictions) is described by the same figures.
"""

from collections.abc import Sequence

import numpy as np

from pneumojax.data.dataset import Split
from pneumojax.evaluation import calibration, decision_curve, metrics, subgroups
from pneumojax.evaluation.prediction_files import Predictions, check_same_images

BOOTSTRAP_RESAMPLES = 1000
BOOTSTRAP_SEED = 0


def compute_statistics(
    split: Split,
    task: str,
    probabilities: np.ndarray,
    threshold: dict,
    fitted: dict,
    prevalence: float | None = None,
) -> dict:
    """All numbers of a split, with 95 % intervals by patient where they exist.

    Args:
      split: what was scored.
      task: binary or three_class.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      threshold: content of threshold.json; value and operating_points are read.
      fitted: content of calibration.json; temperature and prevalence are read.
      prevalence: share of pneumonia where the network will be used; None: not stated.

    Returns:
      "metrics": of `metrics.compute_metrics`;
      "operating_points": of `metrics.compute_operating_points`;
      "calibration": of `calibration.compute_calibration`, "before" and "after" the temperature;
      "at_prevalence": prevalence, ppv and npv of the decision at the threshold; None where none is stated;
      "subgroups": of `subgroups.compute_subgroups`.
    """
    positive, scores = split.labels("binary"), metrics.compute_binary_scores(probabilities)
    bootstrap = (BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED)
    calibrated = calibration.apply_temperature(probabilities, fitted["temperature"])
    at_prevalence = None
    if prevalence is not None:
        values = calibration.compute_predictive_values(
            positive, scores, threshold["value"], split.patient_ids, [prevalence], *bootstrap
        )
        at_prevalence = {"prevalence": prevalence} | {name: value[0] for name, value in values.items()}
    return {
        "metrics": metrics.compute_metrics(
            split.labels(task), probabilities, threshold["value"], split.patient_ids, *bootstrap
        ),
        "operating_points": metrics.compute_operating_points(
            positive, scores, threshold["operating_points"], split.patient_ids, *bootstrap
        ),
        "calibration": {
            "before": calibration.compute_calibration(positive, probabilities, split.patient_ids, *bootstrap),
            "after": calibration.compute_calibration(positive, calibrated, split.patient_ids, *bootstrap),
        },
        "at_prevalence": at_prevalence,
        "subgroups": subgroups.compute_subgroups(split, probabilities, threshold["value"], *bootstrap),
    }


def compute_curves(split: Split, probabilities: np.ndarray, threshold: dict, fitted: dict) -> dict:
    """The numbers behind the pictures.

    Args:
      split: what was scored.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      threshold: content of threshold.json; value is read.
      fitted: content of calibration.json; temperature is read.

    Returns:
      "roc", "precision_recall": of `metrics.compute_roc_curve` and `compute_pr_curve`, None where they do not exist;
      "reliability": of `calibration.compute_reliability`, "before" and "after" the temperature;
      "predictive_values": "prevalence", and "ppv" and "npv" of the decision at the threshold, there;
      "decision_curve": of `decision_curve.compute_decision_curve`, of the scores after the temperature.
    """
    positive, scores = split.labels("binary"), metrics.compute_binary_scores(probabilities)
    bootstrap = (BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED)
    calibrated = metrics.compute_binary_scores(calibration.apply_temperature(probabilities, fitted["temperature"]))
    return {
        "roc": metrics.compute_roc_curve(positive, scores, split.patient_ids, *bootstrap),
        "precision_recall": metrics.compute_pr_curve(positive, scores, split.patient_ids, *bootstrap),
        "reliability": {
            "before": calibration.compute_reliability(positive, scores),
            "after": calibration.compute_reliability(positive, calibrated),
        },
        "decision_curve": decision_curve.compute_decision_curve(positive, calibrated, split.patient_ids, *bootstrap),
        "predictive_values": {"prevalence": calibration.PREVALENCE_GRID.tolist()}
        | calibration.compute_predictive_values(
            positive, scores, threshold["value"], split.patient_ids, calibration.PREVALENCE_GRID, *bootstrap
        ),
    }


def compute_mean_metrics(repeats: Sequence[Predictions]) -> dict[str, dict]:
    """The metrics of several trainings of one system on the same images: their mean, spread and interval.

    The interval is of the mean: each resample draws patients once, for all trainings. So it tells how the figure would
    move with other patients; how it moves with another seed is told by the standard deviation.

    Args:
      repeats: predictions of at least one training, each with the threshold of its own.

    Returns:
      {name of `metrics.compute_metrics`: {"value": mean, "ci95", "standard_deviation": over the trainings, None of one
      alone}}; what does not exist is None, and "reason" says why.

    Raises:
      UserError: the trainings were scored on different images.
    """
    first = repeats[0]
    for other in repeats[1:]:
        check_same_images(first, other)
    draws = metrics.compute_bootstrap_weights(first.patient_ids, BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED)
    weights = np.concatenate([np.ones((1, draws.shape[1])), draws])
    values = [metrics.compute_metric_values(one.labels, one.probabilities, one.threshold, weights) for one in repeats]
    patients = metrics.count_patients_of_rarest_class(first.labels, first.patient_ids)
    result = {}
    for name in values[0]:
        rows = np.stack([one[name] for one in values])
        spread = float(rows[:, 0].std(ddof=1)) if len(rows) > 1 and not np.isnan(rows[:, 0]).any() else None
        summary = metrics.summarise(rows.mean(axis=0), metrics.explain(name), patients)
        result[name] = summary | {"standard_deviation": spread}
    return result
