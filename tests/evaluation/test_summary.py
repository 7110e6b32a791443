"""Tests of pneumojax.evaluation.summary: the statistics of a split, and means over trainings."""

import pathlib

import numpy as np
import pytest

from pneumojax.evaluation.prediction_files import Predictions
from pneumojax.evaluation.summary import compute_mean_metrics


def make_predictions(labels, decisions):
    """Makes predictions with threshold 0.5 and one image for each patient."""
    decisions = np.asarray(decisions)
    return Predictions(
        workdir=pathlib.Path("runs/a"),
        class_names=["NORMAL", "PNEUMONIA"],
        filenames=np.array([f"image{i:03}" for i in range(len(labels))]),
        patient_ids=np.array([f"person{i}" for i in range(len(labels))]),
        labels=np.asarray(labels),
        probabilities=np.stack([1 - decisions, decisions], axis=1) * 0.8 + 0.1,
        threshold=0.5,
        fingerprint="f",
    )


def test_exact_interval_of_a_mean_is_that_of_the_training_with_the_fewest_patients():
    labels = np.repeat([0, 1], 50)
    few, many = np.zeros(100, int), np.zeros(100, int)
    few[-2:], many[-20:] = 1, 1
    mean = compute_mean_metrics([make_predictions(labels, few), make_predictions(labels, many)])
    assert mean["precision"]["value"] == 1
    assert mean["precision"]["ci95"] == pytest.approx([0.025 ** (1 / 2), 1])
    assert mean["specificity"]["ci95"] == pytest.approx([0.025 ** (1 / 50), 1])
    assert mean["f1"]["value"] < 1


def test_a_metric_that_one_training_lacks_has_no_mean():
    labels = np.repeat([0, 1], 20)
    mean = compute_mean_metrics([make_predictions(labels, labels), make_predictions(labels, np.zeros(40, int))])
    assert mean["precision"] | {"reason": ""} == {
        "value": None,
        "ci95": None,
        "reason": "",
        "standard_deviation": None,
    }
