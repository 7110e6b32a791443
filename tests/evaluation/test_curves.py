"""Compares pneumojax.evaluation.curves with scikit-learn and closed forms."""

import json
import math

import numpy as np
import pytest
from generated_splits import approx, examples, resample, scored
from hypothesis import given
from scored import make_split
from sklearn import metrics as oracle

from pneumojax.evaluation import (
    curves,
    metrics,
    point_metrics,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap


def test_roc_curve_equals_scikit_learn_and_lies_in_its_band():
    labels, probabilities, patient_ids = make_split(200, 2, step=0.5)
    scores = point_metrics.compute_binary_scores(probabilities)
    curve = curves.compute_roc_curve(labels, scores, PatientBootstrap(patient_ids))
    x, y, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve["false_positive_rate"], x, atol=1e-12)
    np.testing.assert_allclose(curve["sensitivity"], y, atol=1e-12)
    grid, low, high = (np.array(curve["band"][key]) for key in ("false_positive_rate", "low", "high"))
    at_grid = np.interp(grid, x, y)
    assert np.all((low <= at_grid + 1e-12) & (at_grid <= high + 1e-12))
    assert np.all(np.diff(low) >= 0) and high[-1] == low[-1] == 1
    # The areas under the lower and the upper band contain the interval of the area.
    low_area, high_area = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patient_ids))["auroc"][
        "ci95"
    ]
    assert np.trapezoid(low, grid) < low_area < high_area < np.trapezoid(high, grid)


def test_band_width_is_that_of_a_proportion():
    # At a false positive rate between the two negatives, the sensitivity is a proportion of 300 positives.
    labels = np.array([1] * 300 + [0] * 300)
    scores = np.array([3.0] * 240 + [1.0] * 60 + [2.0] * 300)
    band = curves.compute_roc_curve(labels, scores, PatientBootstrap(np.arange(600), 2000))["band"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 300)
    assert [band["low"][0], band["high"][0]] == pytest.approx([0.8 - half, 0.8 + half], abs=0.15 * half)


def test_precision_recall_curve_is_the_average_precision_and_lies_in_its_band():
    labels, probabilities, patient_ids = make_split(200, 2, step=0.5)
    scores = point_metrics.compute_binary_scores(probabilities)
    curve = curves.compute_pr_curve(labels, scores, PatientBootstrap(patient_ids))
    area = np.sum(np.diff(curve["sensitivity"], prepend=0) * curve["precision"])
    assert area == pytest.approx(oracle.average_precision_score(labels, scores), abs=1e-12)
    precision, recall, _ = oracle.precision_recall_curve(labels, scores)
    points = set(zip(recall.round(9), precision.round(9), strict=True))
    assert set(zip(np.round(curve["sensitivity"], 9), np.round(curve["precision"], 9), strict=True)) <= points
    assert np.all(np.diff(curve["sensitivity"]) > 0)
    assert curve["prevalence"] == labels.mean()
    grid, low, high = (np.array(curve["band"][key]) for key in ("sensitivity", "low", "high"))
    at_grid = np.array(curve["precision"])[np.searchsorted(curve["sensitivity"], grid - 1e-12)]
    assert np.mean((low <= at_grid) & (at_grid <= high)) > 0.97
    low_area, high_area = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patient_ids))["auprc"][
        "ci95"
    ]
    assert low.mean() < low_area < high_area < high.mean()


def test_curves_survive_strict_json_and_small_splits():
    for curve in (curves.compute_roc_curve, curves.compute_pr_curve):
        result = curve([0, 1], [0.2, 0.8], PatientBootstrap(["a", "b"], 200))
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert curve([0, 1], [0.2, 0.8], PatientBootstrap(["a", "b"], 20))["band"] is None


@examples
@given(scored())
def test_roc_curves(split):
    labels, scores, patients, _ = split
    curve = curves.compute_roc_curve(labels, scores, resample(patients))
    if len(set(labels.tolist())) < 2:
        assert curve is None
        return
    x, y, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    assert curve["false_positive_rate"] == approx(x) and curve["sensitivity"] == approx(y)
    if curve["band"]:
        low, high = np.array(curve["band"]["low"]), np.array(curve["band"]["high"])
        assert np.all((low >= 0) & (low <= high) & (high <= 1)) and np.all(np.diff(low) >= -1e-12)


@examples
@given(scored())
def test_precision_recall_curves(split):
    labels, scores, patients, _ = split
    curve = curves.compute_pr_curve(labels, scores, resample(patients))
    if not labels.any():
        assert curve is None
        return
    positive = labels > 0
    points = [(np.mean(scores[positive] >= t), np.mean(positive[scores >= t])) for t in np.unique(scores)[::-1]]
    expected = [point for i, point in enumerate(points) if point[0] > (points[i - 1][0] if i else 0)]
    assert [*zip(curve["sensitivity"], curve["precision"], strict=True)] == [approx(point) for point in expected]
    assert curve["prevalence"] == approx(positive.mean())
    if curve["band"]:
        low, high = np.array(curve["band"]["low"]), np.array(curve["band"]["high"])
        assert np.all((low >= 0) & (low <= high) & (high <= 1))
