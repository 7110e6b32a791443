"""Compares pneumojax.evaluation.decision_curve with scikit-learn's confusion matrices and closed forms."""

import json
import math

import numpy as np
import pytest
from generated_splits import approx, count, examples, resample, scored
from hypothesis import given
from sklearn import metrics as oracle

from pneumojax.evaluation import (
    decision_curve,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.decision_curve import compute_decision_curve


def make_split(images, seed=0):
    """Samples labels from the scores, so that the scores are calibrated."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.6, 0.5, size=images)
    return (rng.random(images) < scores).astype(int), scores


def test_net_benefit_equals_scikit_learns_confusion_matrix():
    labels, scores = make_split(200)
    curve = compute_decision_curve(labels, scores, PatientBootstrap(np.arange(200)))
    assert json.loads(json.dumps(curve, allow_nan=False)) == curve
    assert len(curve["threshold"]) == 99
    for t, benefit, treat_all, low, high in zip(
        *(curve[name] for name in ("threshold", "net_benefit", "treat_all")), *curve["band"].values(), strict=True
    ):
        (_, false_alarms), (_, hits) = oracle.confusion_matrix(labels, scores >= t)
        assert benefit == pytest.approx(hits / 200 - false_alarms / 200 * t / (1 - t), abs=1e-12)
        (_, false_alarms), (_, hits) = oracle.confusion_matrix(labels, np.ones(200), labels=[0, 1])
        assert treat_all == pytest.approx(hits / 200 - false_alarms / 200 * t / (1 - t), abs=1e-12)
        assert low <= benefit <= high


def test_treat_all_is_worth_nothing_at_the_prevalence():
    labels = np.repeat([1, 0], [30, 70])
    curve = compute_decision_curve(labels, np.full(100, 0.3), PatientBootstrap(np.arange(100), 0))
    at = np.searchsorted(curve["threshold"], 0.3 - 1e-9)
    assert curve["treat_all"][at] == pytest.approx(0, abs=1e-12)
    # If all scores equal the prevalence, the decision is to treat all up to this threshold, and none above it.
    np.testing.assert_allclose(curve["net_benefit"][:at], curve["treat_all"][:at])
    np.testing.assert_array_equal(curve["net_benefit"][at + 1 :], 0)
    assert curve["band"] is None


def test_perfect_scores_have_the_prevalence_everywhere_and_calibrated_ones_harm_nowhere():
    labels, scores = make_split(20000)
    patients = np.arange(20000)
    perfect = compute_decision_curve(labels, labels, PatientBootstrap(patients, 0))
    np.testing.assert_allclose(perfect["net_benefit"], labels.mean())
    curve = compute_decision_curve(labels, scores, PatientBootstrap(patients, 0))
    assert np.all(np.array(curve["net_benefit"]) > np.maximum(curve["treat_all"], 0) - 0.005)


def test_band_is_that_of_a_proportion():
    # There are 40 true positives among 100 images and no false positives, so the net benefit is a proportion.
    labels = np.repeat([1, 0], [40, 60])
    band = compute_decision_curve(labels, labels, PatientBootstrap(np.arange(100), 4000))["band"]
    half = 1.96 * math.sqrt(0.4 * 0.6 / 100)
    assert [band["low"][20], band["high"][20]] == pytest.approx([0.4 - half, 0.4 + half], abs=0.15 * half)


def test_patients_of_two_images_widen_the_band():
    labels, scores = make_split(150)
    by_image = compute_decision_curve(np.repeat(labels, 2), np.repeat(scores, 2), PatientBootstrap(np.arange(300)))[
        "band"
    ]
    by_patient = compute_decision_curve(
        np.repeat(labels, 2), np.repeat(scores, 2), PatientBootstrap(np.arange(300) // 2)
    )["band"]
    ratio = np.ptp([by_patient["low"], by_patient["high"]], axis=0) / np.ptp(
        [by_image["low"], by_image["high"]], axis=0
    )
    assert np.median(ratio) == pytest.approx(math.sqrt(2), rel=0.15)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_split_of_one_class(label):
    curve = compute_decision_curve([label] * 5, [0.1, 0.3, 0.5, 0.7, 0.9], PatientBootstrap(list("abcde")))
    assert curve["treat_all"][49] == pytest.approx(1 if label else -1)
    with pytest.raises(ValueError, match="labels 1, scores 2"):
        compute_decision_curve([0], [0.1, 0.2], PatientBootstrap(["a", "b"]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        compute_decision_curve([0, 1, 1], [0.1, bad, 0.9], PatientBootstrap(list("abc")))


@examples
@given(scored())
def test_decision_curves(split):
    labels, scores, patients, _ = split
    curve = decision_curve.compute_decision_curve(labels, scores, resample(patients))
    for i in range(0, 99, 7):
        t = curve["threshold"][i]
        for name, decisions in (("net_benefit", scores >= t), ("treat_all", np.ones(len(labels)))):
            tp, _, fp, _ = count(labels, decisions)
            assert curve[name][i] == approx((tp - fp * t / (1 - t)) / len(labels))
        assert curve["band"]["low"][i] <= curve["band"]["high"][i]
