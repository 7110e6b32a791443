"""Evaluates a run on a split, and writes metrics with intervals, predictions, figures and a report."""

import csv
import datetime
import io
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from pneumojax.config import CLASS_NAMES, ThresholdConfig
from pneumojax.data.dataset import Split
from pneumojax.evaluation import point_metrics
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.explain import explain_errors
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration
from pneumojax.evaluation.recalibration import apply_calibration, shift_prevalence
from pneumojax.evaluation.run import Predictor, check_data
from pneumojax.evaluation.summary import compute_curves, compute_statistics, merge_kinds
from pneumojax.files import read_rows, replace_folder, write_json, write_text
from pneumojax.reporting.evaluation_report import make_report
from pneumojax.reporting.figures.evaluation import (
    save_confusion_matrix,
    save_decision_curve,
    save_precision_recall,
    save_predictive_values,
    save_reliability,
    save_roc,
)
from pneumojax.reporting.figures.training import save_learning_curves
from pneumojax.reporting.tables import format_csv
from pneumojax.reporting.worst_errors import ErrorMaps

# The files of an evaluation. A new evaluation removes those that it does not write.
FILES = (
    "metrics.json",
    "predictions.csv",
    "curves.json",
    "report.html",
    "roc.png",
    "precision_recall.png",
    "reliability.png",
    "decision_curve.png",
    "predictive_values.png",
    "confusion_matrix.png",
    "confusion_matrix_three_class.png",
    "learning_curves.png",
    "unreadable.csv",
)


def evaluate(predictor: Predictor, split_name: str, rules: ThresholdConfig | None = None, explain: bool = True) -> dict:
    """Evaluates a run or an ensemble on a split.

    Writes metrics, predictions, curves, figures and a report to `<workdir>/evaluation/<split>/`. The threshold is
    always chosen on the selection split, which is validation except in the leaky protocol.

    Args:
      predictor: from `open_run`, `open_ensemble` or `open_replicas`.
      split_name: validation or test, or train to see how much was memorised.
      rules: the rule that chooses the threshold. None: the rule of the run's config.
      explain: whether the report shows maps of the worst errors. For a large network, they take minutes on CPU.

    Returns:
      The content of metrics.json: the result of `summary.compute_statistics`, and "threshold", "counts" and "run".
      "calibration" also has the content of calibration.json.

    Raises:
      UserError: the split or the run is missing or damaged.
    """
    rules = rules or predictor.config.threshold
    split, probabilities = predictor.score(split_name)
    threshold, calibration = load_or_choose_threshold(predictor, rules), load_or_fit_calibration(predictor)
    maps = None if explain else ErrorMaps()
    return write_evaluation(predictor, split, probabilities, threshold, calibration, rules.prevalence, explained=maps)


def write_evaluation(
    predictor: Predictor,
    split: Split,
    probabilities: np.ndarray,
    threshold: dict,
    calibration: dict,
    prevalence: float | None,
    more: Mapping[str, Any] = MappingProxyType({}),
    task: str | None = None,
    explained: ErrorMaps | None = None,
) -> dict:
    """Evaluates given probabilities and writes the files of the evaluation. `evaluate` calls it after the prediction.

    The new files replace the files of an earlier evaluation all at once, or not at all. Other files in the folder are
    kept.

    Args:
      predictor: the run or ensemble that predicted the probabilities.
      split: the evaluated split.
      probabilities: [N, C] float, 0..1, of the images of the split.
      threshold: content of threshold.json. Its thresholds may be [N] arrays, one for each image.
      calibration: content of calibration.json. Its temperature may be an [N] array, and its biases an [N, C] array.
      prevalence: prevalence of pneumonia where the network will be used; None if unknown.
      more: additional content for metrics.json. "collection" marks images that are not of a prepared data set.
      task: binary for labels without the kinds of pneumonia; None: the task of the run.
      explained: maps of the worst errors for the report. None: they are computed.

    Returns:
      The content of metrics.json. Arrays are replaced by lists of their distinct values.
    """
    task = task or predictor.config.model.task
    class_names, classes = list(CLASS_NAMES[task]), merge_kinds(probabilities, task)
    labels, bootstrap = split.labels(task), PatientBootstrap(split.patient_ids)
    numbers = compute_statistics(split, task, probabilities, threshold, calibration, bootstrap, prevalence)
    results = {
        **numbers,
        "calibration": calibration | numbers["calibration"],
        "threshold": threshold,
        "counts": _count(split, labels, classes, threshold["value"], class_names),
        "run": {
            "workdir": str(predictor.workdir),
            "checkpoint": {"which": predictor.checkpoint, "step": predictor.identity["checkpoint_step"]},
            "split": {"name": split.name, "fingerprint": split.fingerprint},
            "trained_on_this_data": None if "collection" in more else check_data(predictor),
            "test_time_views": predictor.identity["test_time_views"],
            "bootstrap": {"resamples": bootstrap.resamples, "seed": bootstrap.seed, "unit": "patient"},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **predictor.info,
            "class_names": class_names,
        },
        **more,
    }
    curves = compute_curves(split, probabilities, threshold, calibration, bootstrap)
    scores = point_metrics.compute_binary_scores(probabilities)
    decisions = point_metrics.compute_decisions(scores, threshold["value"])
    predictions = _format_predictions(predictor, split, labels, probabilities, results)
    results = _list_distinct(results)
    explained = explain_errors(predictor, split, scores, decisions > 0) if explained is None else explained
    networks = {str(run.workdir): run.info | {"step": run.step} for run in predictor.members}
    with replace_folder(predictor.workdir / "evaluation" / split.name, FILES) as directory:
        write_text(directory / "predictions.csv", predictions)
        write_json(directory / "curves.json", curves)
        _draw(predictor, split, curves, results, directory)
        if "collection" in results:
            rows = results["collection"]["unreadable"]
            write_text(directory / "unreadable.csv", format_csv(("filename", "reason"), rows))
        report = make_report(results, split, scores, decisions, networks, directory, explained)
        write_text(directory / "report.html", report)
        write_json(directory / "metrics.json", results)
    return results


def _list_distinct(content: Any) -> Any:
    """Replaces arrays by lists of their distinct values, which can be stored as JSON."""
    if isinstance(content, dict):
        return {name: _list_distinct(value) for name, value in content.items()}
    return np.unique(content, axis=0).tolist() if isinstance(content, np.ndarray) else content


def _count(
    split: Split, labels: np.ndarray, probabilities: np.ndarray, threshold: float, class_names: list[str]
) -> dict:
    scores = point_metrics.compute_binary_scores(probabilities)
    decisions = point_metrics.compute_decisions(scores, threshold)
    confusion = {"at_threshold": point_metrics.compute_confusion(split.labels("binary"), decisions, 2).tolist()}
    if len(class_names) == 3:
        confusion["most_probable_class"] = point_metrics.compute_confusion(labels, probabilities.argmax(-1), 3).tolist()
    return {
        "images": len(split),
        "patients": len(np.unique(split.patient_ids)),
        "classes": {name: int((labels == i).sum()) for i, name in enumerate(class_names)},
        "confusion_matrix": {"rows": "true class", "columns": "decided class", **confusion},
    }


def _format_predictions(
    predictor: Predictor, split: Split, labels: np.ndarray, probabilities: np.ndarray, results: dict
) -> str:
    """Formats CSV text with a row for each image.

    Floats are not rounded, so that the decisions can be reproduced from the file.
    """
    names = results["run"]["class_names"]
    scores = point_metrics.compute_binary_scores(probabilities)
    decisions = point_metrics.compute_decisions(scores, results["threshold"]["value"])
    calibration, there = results["calibration"], results["at_prevalence"]
    calibrated = point_metrics.compute_binary_scores(
        apply_calibration(probabilities, calibration["temperature"], calibration["biases"])
    )
    calibrated_scores = {"calibrated_score": calibrated}
    if there:
        shifted = shift_prevalence(calibrated, calibration["prevalence"], there["prevalence"])
        calibrated_scores["score_at_prevalence"] = shifted
    by_image = {name: one for name, one in (("threshold", results["threshold"]["value"]),) if np.ndim(one)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    probability_columns = [f"probability_{name}" for name in names]
    class_column = ["most_probable_class"] if len(names) == 3 else []
    classes = probabilities if len(names) == probabilities.shape[1] else merge_kinds(probabilities, "binary")
    columns = ["filename", "patient_id", "label", *probability_columns, "score", "decision", *class_column]
    writer.writerow([*columns, *calibrated_scores, *by_image])
    for i in range(len(split)):
        row = [
            split.filenames[i],
            split.patient_ids[i],
            names[labels[i]],
            *map(float, classes[i]),
            float(scores[i]),
        ]
        row.append("PNEUMONIA" if decisions[i] else "NORMAL")
        row += [names[probabilities[i].argmax()]] if class_column else []
        writer.writerow(row + [float(column[i]) for column in (calibrated_scores | by_image).values()])
    return text.getvalue()


def _draw(predictor: Predictor, split: Split, curves: dict, results: dict, directory: pathlib.Path) -> None:
    values, threshold = results["metrics"], results["threshold"]["value"]
    save_roc(directory / "roc.png", curves["roc"], values, threshold, split.name)
    save_precision_recall(directory / "precision_recall.png", curves["precision_recall"], values, threshold, split.name)
    save_reliability(directory / "reliability.png", curves["reliability"], results["calibration"], split.name)
    save_decision_curve(directory / "decision_curve.png", curves["decision_curve"], split.name)
    save_predictive_values(
        directory / "predictive_values.png", curves["predictive_values"], results["counts"], threshold, split.name
    )
    confusion = results["counts"]["confusion_matrix"]
    save_confusion_matrix(
        directory / "confusion_matrix.png", np.array(confusion["at_threshold"]), ("NORMAL", "PNEUMONIA"), split.name
    )
    if "most_probable_class" in confusion:
        save_confusion_matrix(
            directory / "confusion_matrix_three_class.png",
            np.array(confusion["most_probable_class"]),
            results["run"]["class_names"],
            split.name,
        )
    rows, config = read_rows(predictor.workdir / "metrics.jsonl"), predictor.config
    picture = directory / "learning_curves.png"
    save_learning_curves(picture, rows, config.data.selection_split, select_by=config.train.select_by)
