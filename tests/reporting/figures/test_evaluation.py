"""Tests of the figures of an evaluation: every split has all of them, and none is incomplete."""

import numpy as np
import pytest
from pictures import is_picture

from pneumojax.evaluation import calibration, curves, decision_curve, metrics, point_metrics
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.reporting.figures import evaluation, style

PICTURES = ["confusion.png", "decision.png", "pr.png", "predictive.png", "reliability.png", "roc.png"]


def draw_all(folder, labels, probabilities, threshold):
    """Writes the figures of a split as an evaluation does, and returns the files."""
    bootstrap = PatientBootstrap(np.arange(len(labels)), 50)
    scores = point_metrics.compute_binary_scores(probabilities)
    result = metrics.compute_metrics(labels, probabilities, threshold, bootstrap)
    roc = curves.compute_roc_curve(labels, scores, bootstrap)
    pr = curves.compute_pr_curve(labels, scores, bootstrap)
    confusion = point_metrics.compute_confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    evaluation.save_roc(folder / "roc.png", roc, result, threshold, title="test")
    evaluation.save_precision_recall(folder / "pr.png", pr, result, threshold, title="test")
    evaluation.save_confusion_matrix(folder / "confusion.png", confusion, "ABC"[: len(confusion)])
    fitted = calibration.compute_calibration(labels, probabilities, bootstrap)
    bins = calibration.compute_reliability(labels, scores)
    evaluation.save_reliability(
        folder / "reliability.png",
        {"before": bins, "after": bins},
        {"before": fitted, "after": fitted},
    )
    curve = decision_curve.compute_decision_curve(labels, scores, bootstrap)
    evaluation.save_decision_curve(folder / "decision.png", curve, title="test")
    grid = calibration.PREVALENCE_GRID
    values = calibration.compute_predictive_values(labels, scores, threshold, grid, bootstrap)
    counts = {"images": len(labels), "classes": {"NORMAL": labels.count(0) if isinstance(labels, list) else 20}}
    evaluation.save_predictive_values(folder / "predictive.png", {"prevalence": grid} | values, counts, threshold)
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [2, 3])
def test_pictures_of_a_split(tmp_path, classes):
    labels = np.arange(60) % classes
    probabilities = (np.random.default_rng(0).dirichlet(np.ones(classes), size=60) + np.eye(classes)[labels]) / 2
    assert draw_all(tmp_path, labels, probabilities, 0.5) == PICTURES
    for name in ("pr.png", "roc.png"):
        assert is_picture(tmp_path / name, style.BLUE)  # the curve
        assert is_picture(tmp_path / name, style.ORANGE, top=0.5)  # the operating point, whose text is below
    assert is_picture(tmp_path / "confusion.png")
    assert is_picture(tmp_path / "reliability.png", style.BLUE)
    assert is_picture(tmp_path / "decision.png", style.BLUE, top=0.5)
    assert is_picture(tmp_path / "decision.png", style.ORANGE, top=0.5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "labels",
    [
        [0],
        [1],
        pytest.param([0, 0, 0], marks=pytest.mark.slow),
        pytest.param([1, 1, 1], marks=pytest.mark.slow),
        [0, 1],
    ],
)
@pytest.mark.parametrize(
    "threshold", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(0.99999, marks=pytest.mark.slow), 1.0]
)
def test_pictures_of_splits_that_lack_something(tmp_path, labels, threshold):
    probabilities = np.full((len(labels), 2), 0.5)
    assert draw_all(tmp_path, labels, probabilities, threshold) == PICTURES
    assert is_picture(tmp_path / "roc.png", style.BLUE) == (len(set(labels)) == 2)
    assert is_picture(tmp_path / "pr.png", style.BLUE) == (1 in labels)
    assert is_picture(tmp_path / "reliability.png", style.BLUE)
    # All images have the same score and the same prediction, so only one predictive value exists.
    both, all_positive = len(set(labels)) == 2, threshold <= 0.5
    curves = [is_picture(tmp_path / "predictive.png", colour, top=0.7) for colour in (style.ORANGE, style.BLUE)]
    assert curves == [both and all_positive, both and not all_positive]


@pytest.mark.filterwarnings("error")
def test_predictive_values_with_their_bands(tmp_path):
    labels = np.arange(40) % 2
    decisions = np.where(np.arange(40) < 10, 1 - labels, labels)
    values = calibration.compute_predictive_values(
        labels, decisions, 0.5, [0.1, 0.5, 0.9], PatientBootstrap(np.arange(40), 50)
    )
    counts = {"images": 40, "classes": {"NORMAL": 20}}
    evaluation.save_predictive_values(tmp_path / "a.png", {"prevalence": [0.1, 0.5, 0.9]} | values, counts, 0.5)
    for colour in (style.BLUE, style.ORANGE):
        assert is_picture(tmp_path / "a.png", colour, top=0.7)  # the curves, whose text is below


def test_equal_numbers_make_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        evaluation.save_confusion_matrix(tmp_path / name, np.eye(3, dtype=int), ("NORMAL", "BACTERIA", "VIRUS"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
