"""Cross-validation: each training image is scored once, by the run that was not trained on its patient.

There is one run for each fold of a config (`DataConfig.folds`). The epoch, threshold and calibration of a run are
chosen on its own validation split and apply only to the images of its fold. A single threshold for all folds would have
to be chosen on images that are also scored, because each image is in the test split of one fold. AUROC and AUPRC over
all images rank the scores of several networks together. They may therefore be lower than the means over the folds,
which are reported as well.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from pneumojax.data.dataset import Split, load_split, load_training_images
from pneumojax.evaluation import metrics
from pneumojax.evaluation.ensemble import Ensemble
from pneumojax.evaluation.evaluate import write_evaluation
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import Run
from pneumojax.reporting.worst_errors import ErrorMaps


def evaluate_folds(runs: Sequence[Run], workdir: str | pathlib.Path) -> dict:
    """Evaluates each run on its own fold, and all folds together.

    The files of an evaluation, as `evaluate` writes them, are in `<workdir>/evaluation/out_of_fold/`.

    Args:
      runs: from `open_run`, one for each fold of a config.
      workdir: folder of the cross-validation.

    Returns:
      The content of metrics.json, as from `evaluate`, but with lists of the folds' thresholds, temperatures and
      biases. In addition, it has
        "folds": a list of {"workdir", "images", "threshold", "temperature", "metrics": {name: float or None}};
        "over_folds": {name: {"mean", "standard_deviation"}}, which are None if a fold lacks the metric.

    Raises:
      UserError: a run or the data are damaged.
    """
    images = load_training_images(runs[0].config.data)
    rules = runs[0].config.threshold
    rows = {filename: i for i, filename in enumerate(images.filenames)}
    probabilities = np.full((len(images), len(runs[0].info["class_names"])), np.nan)
    value, temperature = np.full((2, len(images)), np.nan)
    biases = np.full(probabilities.shape, np.nan)
    points: dict[str, np.ndarray] = {}
    prevalences, folds = [], []
    for run in runs:
        held_out = load_split(run.config.data, "test")
        at = [rows[filename] for filename in held_out.filenames]
        probabilities[at] = compute_probabilities(run.predict(held_out.images))
        threshold, calibration = load_or_choose_threshold(run, rules), load_or_fit_calibration(run)
        value[at], temperature[at], biases[at] = threshold["value"], calibration["temperature"], calibration["biases"]
        for name, point in threshold["operating_points"].items():
            points.setdefault(name, np.full(len(images), np.nan))[at] = np.nan if point is None else point
        prevalences.append(calibration["prevalence"])
        folds.append(_describe_fold(run, held_out, probabilities[at], threshold, calibration))

    operating_points = {name: None if np.isnan(point).any() else point for name, point in points.items()}
    together = Ensemble(pathlib.Path(workdir).expanduser(), tuple(runs))
    identity = {"checkpoint_step": together.identity["checkpoint_step"], "data_fingerprint": images.fingerprint}
    calibration = {"temperature": temperature, "biases": biases, "prevalence": float(np.mean(prevalences))}
    calibration["split"] = "validation"
    return write_evaluation(
        together,
        images,
        probabilities,
        threshold | identity | {"value": value, "operating_points": operating_points},
        calibration | identity,
        rules.prevalence,
        {"folds": folds, "over_folds": _summarise([fold["metrics"] for fold in folds])},
        explained=ErrorMaps(note="There are no maps of the decisions, because several networks made them."),
    )


def _describe_fold(run: Run, held_out: Split, probabilities: np.ndarray, threshold: dict, calibration: dict) -> dict:
    labels, once = held_out.labels(run.config.model.task), np.ones((1, len(held_out)))
    values = metrics.compute_metric_values(labels, probabilities, threshold["value"], once)
    return {
        "workdir": str(run.workdir),
        "images": len(held_out),
        "threshold": threshold["value"],
        "temperature": calibration["temperature"],
        "metrics": {name: None if np.isnan(value[0]) else float(value[0]) for name, value in values.items()},
    }


def _summarise(folds: Sequence[dict]) -> dict:
    """Computes mean and standard deviation of each metric over the folds."""
    summary = {}
    for name in folds[0]:
        values = [fold[name] for fold in folds]
        exists = None not in values
        summary[name] = {
            "mean": float(np.mean(values)) if exists else None,
            "standard_deviation": float(np.std(values, ddof=1)) if exists else None,
        }
    return summary
