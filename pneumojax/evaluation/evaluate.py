"""Scores a whole split, and writes the numbers with their intervals."""

import csv
import datetime
import io
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from pneumojax.config import ThresholdConfig
from pneumojax.data.dataset import Split
from pneumojax.evaluation import metrics
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.calibration import apply_temperature, shift_prevalence
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration, score_split
from pneumojax.evaluation.run import Ensemble, Run, check_data
from pneumojax.evaluation.summary import compute_curves, compute_statistics
from pneumojax.files import read_rows, write_json, write_text
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


def evaluate(run: Run | Ensemble, split_name: str, rules: ThresholdConfig | None = None) -> dict:
    """Scores a split; writes its numbers, predictions, curves, pictures and report to `<workdir>/evaluation/<split>/`.

    Args:
      run: from `open_run` or `open_ensemble`.
      split_name: validation or test (or train, to see how much was memorised).
      rules: of the threshold; None: the run's own. The threshold comes from the run's selection split, validation but
        for the leaky protocol, whatever split is scored.

    Returns:
      The content of metrics.json: what `summary.compute_statistics` returns, and "threshold", "counts" and "run";
      the temperature stands in "calibration".

    Raises:
      UserError: the split or the run is missing or damaged.
    """
    rules = rules or run.config.threshold
    split, probabilities = score_split(run, split_name)
    return write_evaluation(
        run, split, probabilities, load_or_choose_threshold(run, rules), load_or_fit_calibration(run), rules.prevalence
    )


def write_evaluation(
    run: Run | Ensemble,
    split: Split,
    probabilities: np.ndarray,
    threshold: dict,
    calibration: dict,
    prevalence: float | None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict:
    """Computes and writes what `evaluate` does, of probabilities that are at hand.

    Args:
      run: that they are of.
      split: what was scored.
      probabilities: [N, C] of the split.
      threshold: content of threshold.json; its thresholds may be [N] arrays, one for each image.
      calibration: content of calibration.json; its temperature may be [N] too.
      prevalence: of the rules.
      more: what metrics.json is to hold beside that.

    Returns:
      The content of metrics.json; of an array its distinct values.
    """
    task = run.config.model.task
    labels = split.labels(task)
    bootstrap = PatientBootstrap(split.patient_ids)
    numbers = compute_statistics(split, task, probabilities, threshold, calibration, bootstrap, prevalence)
    results = {
        **numbers,
        "calibration": calibration | numbers["calibration"],
        "threshold": threshold,
        "counts": _count(split, labels, probabilities, threshold["value"], run.info["class_names"]),
        "run": {
            "workdir": str(run.workdir),
            "checkpoint": {"which": run.checkpoint, "step": run.step},
            "split": {"name": split.name, "fingerprint": split.fingerprint},
            "trained_on_this_data": check_data(run),
            "test_time_views": run.test_time_views,
            "bootstrap": {"resamples": bootstrap.resamples, "seed": bootstrap.seed, "unit": "patient"},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **run.info,
        },
        **more,
    }
    directory = run.workdir / "evaluation" / split.name
    write_text(directory / "predictions.csv", _format_predictions(run, split, labels, probabilities, results))
    curves = compute_curves(split, probabilities, threshold, calibration, bootstrap)
    write_json(directory / "curves.json", curves)
    scores = metrics.compute_binary_scores(probabilities)
    decisions = metrics.compute_decisions(scores, threshold["value"])
    results = _list_distinct(results)
    _draw(run, split, curves, results, directory)
    networks = {str(one.workdir): one.info | {"step": one.step} for one in _list_networks(run)}
    write_text(directory / "report.html", make_report(results, split, scores, decisions, networks, directory))
    write_json(directory / "metrics.json", results)  # last: where it is, the rest is too
    return results


def _list_networks(run: Run | Ensemble) -> tuple[Run, ...]:
    return run.members if isinstance(run, Ensemble) else (run,)


def _list_distinct(content: Any) -> Any:
    """Puts lists of their distinct values for arrays, so that JSON can hold the content."""
    if isinstance(content, dict):
        return {name: _list_distinct(value) for name, value in content.items()}
    return np.unique(content).tolist() if isinstance(content, np.ndarray) else content


def _count(
    split: Split, labels: np.ndarray, probabilities: np.ndarray, threshold: float, class_names: list[str]
) -> dict:
    scores = metrics.compute_binary_scores(probabilities)
    decisions = metrics.compute_decisions(scores, threshold)
    confusion = {"at_threshold": metrics.compute_confusion(split.labels("binary"), decisions, 2).tolist()}
    if len(class_names) == 3:
        confusion["most_probable_class"] = metrics.compute_confusion(labels, probabilities.argmax(-1), 3).tolist()
    return {
        "images": len(split),
        "patients": len(np.unique(split.patient_ids)),
        "classes": {name: int((labels == i).sum()) for i, name in enumerate(class_names)},
        "confusion_matrix": {"rows": "true class", "columns": "decided class", **confusion},
    }


def _format_predictions(
    run: Run | Ensemble, split: Split, labels: np.ndarray, probabilities: np.ndarray, results: dict
) -> str:
    """CSV text, a row for each image. Python's shortest exact form of a float: read back, it decides the same."""
    names = run.info["class_names"]
    scores = metrics.compute_binary_scores(probabilities)
    decisions = metrics.compute_decisions(scores, results["threshold"]["value"])
    calibration, there = results["calibration"], results["at_prevalence"]
    calibrated = metrics.compute_binary_scores(apply_temperature(probabilities, calibration["temperature"]))
    calibrated_scores = {"calibrated_score": calibrated}
    if there:
        shifted = shift_prevalence(calibrated, calibration["prevalence"], there["prevalence"])
        calibrated_scores["score_at_prevalence"] = shifted
    by_image = {name: one for name, one in (("threshold", results["threshold"]["value"]),) if np.ndim(one)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    probability_columns = [f"probability_{name}" for name in names]
    class_column = ["most_probable_class"] if len(names) == 3 else []
    columns = ["filename", "patient_id", "label", *probability_columns, "score", "decision", *class_column]
    writer.writerow([*columns, *calibrated_scores, *by_image])
    for i in range(len(split)):
        row = [
            split.filenames[i],
            split.patient_ids[i],
            names[labels[i]],
            *map(float, probabilities[i]),
            float(scores[i]),
        ]
        row.append("PNEUMONIA" if decisions[i] else "NORMAL")
        row += [names[probabilities[i].argmax()]] if class_column else []
        writer.writerow(row + [float(column[i]) for column in (calibrated_scores | by_image).values()])
    return text.getvalue()


def _draw(run: Run | Ensemble, split: Split, curves: dict, results: dict, directory: pathlib.Path) -> None:
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
            run.info["class_names"],
            split.name,
        )
    rows, selection_split = read_rows(run.workdir / "metrics.jsonl"), run.config.data.selection_split
    save_learning_curves(directory / "learning_curves.png", rows, selection_split)
