"""Tests of pneumojax.evaluation.summary: the statistics of a split, and means over trainings."""

import pathlib
import statistics

import numpy as np
import pytest
from generated_splits import approx, check_summary, examples, mean_of, splits
from hypothesis import given
from hypothesis import strategies as st

from pneumojax.errors import UserError
from pneumojax.evaluation import (
    metrics,
    summary,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap
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


@examples
@given(splits(), st.integers(1, 3))
def test_means_over_trainings(split, trainings):
    labels, probabilities, patients, threshold = split
    repeats = [
        Predictions(
            workdir=pathlib.Path(f"runs/{i}"),
            class_names=["NORMAL", "BACTERIA", "VIRUS"],
            filenames=np.arange(len(labels)).astype(str),
            patient_ids=patients,
            labels=labels,
            probabilities=np.roll(probabilities, i, axis=0),
            threshold=threshold,
            fingerprint="f",
        )
        for i in range(trainings)
    ]
    result = summary.compute_mean_metrics(repeats)
    alone = [
        metrics.compute_metrics(one.labels, one.probabilities, threshold, PatientBootstrap(patients, 0))
        for one in repeats
    ]
    for name, one in result.items():
        spread = one.pop("standard_deviation")
        check_summary(one)
        values = [metric[name]["value"] for metric in alone]
        assert one["value"] == approx(mean_of(values))
        exists = trainings > 1 and None not in values
        assert spread == (approx(np.std(values, ddof=1)) if exists else None)


def make_noisy_predictions(seed, workdir="run"):
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    scores = np.clip(0.3 * labels + 0.7 * rng.random(60), 0, 1)
    names = np.array([f"{i:03}" for i in range(60)])
    return Predictions(
        pathlib.Path(workdir),
        ["NORMAL", "PNEUMONIA"],
        names,
        names,
        labels,
        np.stack([1 - scores, scores], 1),
        0.5,
        "x",
    )


def test_the_mean_of_one_training_is_its_metrics():
    one = make_noisy_predictions(0)
    expected = metrics.compute_metrics(one.labels, one.probabilities, one.threshold, PatientBootstrap(one.patient_ids))
    result = compute_mean_metrics([one])
    assert {name: {**metric, "standard_deviation": None} for name, metric in expected.items()} == result


def test_the_interval_is_of_the_mean_and_the_spread_is_between_trainings():
    repeats = [make_noisy_predictions(seed) for seed in range(3)]
    result = compute_mean_metrics(repeats)["accuracy"]
    right = np.stack([(one.probabilities[:, 1] >= 0.5) == (one.labels > 0) for one in repeats])
    assert result["value"] == pytest.approx(right.mean())
    assert result["standard_deviation"] == pytest.approx(statistics.stdev(right.mean(1)))
    # Each patient has one image, so the mean over trainings is a mean of 60 numbers with a known standard error.
    low, high = result["ci95"]
    assert (high - low) / (2 * 1.96) == pytest.approx(right.mean(0).std() / np.sqrt(60), rel=0.1)


def test_trainings_that_saw_other_images_have_no_mean():
    one = make_noisy_predictions(0)
    other = make_noisy_predictions(1, "other")
    other.patient_ids[0] = "someone else"
    with pytest.raises(UserError, match="scored on different data"):
        compute_mean_metrics([one, other])
