"""Compares pneumojax.evaluation.recalibration with scikit-learn, SciPy and closed forms."""

import math

import numpy as np
import pytest
from generated_splits import examples, splits
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from sklearn import metrics as oracle
from sklearn.linear_model import LogisticRegression

from pneumojax.evaluation import recalibration

SEPARATED = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]


def make_split(images, classes, sharpness, biases):
    """Labels, and probabilities whose logits were multiplied by a sharpness and shifted by biases."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(images, classes)) * 1.5
    true = special.softmax(logits, axis=1)
    labels = (rng.random((images, 1)) > np.cumsum(true, axis=1)).sum(axis=1)
    return labels, special.softmax(sharpness * (logits - biases[:classes]), axis=1)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_with_two_classes_it_is_the_logistic_regression_of_scikit_learn(sharpness):
    labels, probabilities = make_split(500, 2, sharpness, [0, 1.2])
    temperature, biases = recalibration.fit_calibration(labels, probabilities)
    log_odds = np.diff(np.log(probabilities), axis=1)
    expected = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10000).fit(log_odds, labels)
    assert 1 / temperature == pytest.approx(expected.coef_[0, 0], rel=1e-5)
    assert biases == pytest.approx([0, expected.intercept_[0]], rel=1e-5)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_with_three_classes_it_finds_the_sharpness_and_the_biases(sharpness):
    labels, probabilities = make_split(3000, 3, sharpness, [0, 1.2, -0.7])
    temperature, biases = recalibration.fit_calibration(labels, probabilities)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    assert biases == pytest.approx([0, 1.2, -0.7], abs=0.2)
    # At the maximum, the mean probability of each class is its share of the labels.
    calibrated = recalibration.apply_calibration(probabilities, temperature, biases)
    np.testing.assert_allclose(calibrated.mean(axis=0), np.bincount(labels) / len(labels), atol=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_logits_are_divided_and_shifted(classes):
    logits = np.random.default_rng(0).normal(size=(20, classes))
    probabilities, biases = special.softmax(logits, axis=1), np.array([0, 1.5, -0.3])[:classes]
    calibrated = recalibration.apply_calibration(probabilities, 2.5, biases)
    np.testing.assert_allclose(calibrated, special.softmax(logits / 2.5 + biases, axis=1), rtol=1e-12)
    same = recalibration.apply_calibration(probabilities, 1.0, np.zeros(classes))
    np.testing.assert_allclose(same, probabilities, rtol=1e-12)
    by_image = recalibration.apply_calibration(probabilities, np.full(20, 2.5), np.tile(biases, (20, 1)))
    np.testing.assert_array_equal(by_image, calibrated)


def test_ten_images_of_each_of_two_scores_are_the_closed_form():
    # 2 of 10 are positive at log-odds 1, and 8 of 10 at log-odds 3: log-odds -log(4) and log(4) after calibration.
    log_odds = np.repeat([1.0, 3.0], 10)
    labels = [1] * 2 + [0] * 8 + [1] * 8 + [0] * 2
    probabilities = np.stack([1 / (1 + np.exp(log_odds)), 1 / (1 + np.exp(-log_odds))], axis=1)
    temperature, biases = recalibration.fit_calibration(labels, probabilities)
    assert 1 / temperature == pytest.approx(np.log(4), rel=1e-7)
    assert biases == pytest.approx([0, -2 * np.log(4)], rel=1e-7)


@pytest.mark.parametrize(
    ("labels", "why"), [([0, 1, 1], "all right"), ([1, 0, 0], "all wrong"), ([0, 0, 0], "one class has no image")]
)
def test_no_calibration_is_optimal_where_scores_separate_the_classes(labels, why):
    assert recalibration.fit_calibration(labels, SEPARATED) is None, why


def test_scores_that_are_worse_than_chance_are_not_turned_round():
    labels, probabilities = make_split(200, 2, 1.0, [0, 0])
    assert recalibration.fit_calibration(1 - labels, probabilities) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5])
def test_numbers_that_are_no_probabilities_are_refused(bad):
    labels, probabilities = make_split(30, 2, 1.0, [0, 0])
    probabilities[3, 1] = bad
    with pytest.raises(ValueError, match="between 0 and 1"):
        recalibration.fit_calibration(labels, probabilities)
    with pytest.raises(ValueError, match="between 0 and 1"):
        recalibration.apply_calibration(probabilities, 1.5, [0, 0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        recalibration.shift_prevalence(probabilities[:, 1], 0.5, 0.2)


@examples
@given(splits())
def test_calibration_maximises_the_likelihood(split):
    labels, probabilities, _, _ = split
    logits, classes = np.log(probabilities), probabilities.shape[1]
    fitted = recalibration.fit_calibration(labels, probabilities)
    if fitted is None:
        return
    temperature, biases = fitted

    def compute_loss(parameters):
        scaled = special.log_softmax(logits * parameters[0] + np.append(0, parameters[1:]), axis=1)
        return -np.mean(scaled[np.arange(len(labels)), labels])

    assert temperature > 0
    found = np.append(1 / temperature, biases[1:])
    at = compute_loss(found)
    # The loss is convex, so a minimum among its neighbours is the minimum.
    for step in 1e-3 * np.concatenate([np.eye(classes), -np.eye(classes)]):
        assert at <= compute_loss(found + step * np.maximum(np.abs(found), 1)) + 1e-9
    calibrated = recalibration.apply_calibration(probabilities, temperature, biases)
    assert oracle.log_loss(labels, calibrated, labels=np.arange(classes)) == pytest.approx(at, abs=1e-9)


def test_prevalence_shift_is_bayes_rule():
    # Odds of 0.6 / 0.4 at prevalence 0.5 are a likelihood ratio of 1.5. At prevalence 0.2, the prior odds are 0.25, so
    # the odds are 0.375 and the probability is 3 / 11.
    np.testing.assert_allclose(recalibration.shift_prevalence([0.6, 0.0, 1.0], 0.5, 0.2), [3 / 11, 0, 1])
    scores = np.random.default_rng(0).random(50)
    np.testing.assert_allclose(recalibration.shift_prevalence(scores, 0.7, 0.7), scores)
    there = recalibration.shift_prevalence(scores, 0.74, 0.1)
    np.testing.assert_allclose(recalibration.shift_prevalence(there, 0.1, 0.74), scores)
    # If 9 of 10 NORMAL images of a calibrated set are removed, the shifted scores are calibrated for the rest.
    with_pneumonia, without = np.array([10.0, 40.0, 90.0]), np.array([90.0, 60.0, 10.0])
    old, new = 140 / 300, 140 / (140 + 16)
    shifted = recalibration.shift_prevalence(with_pneumonia / 100, old, new)
    np.testing.assert_allclose(shifted, with_pneumonia / (with_pneumonia + without / 10))


@pytest.mark.parametrize("share", [-0.5, 0, 1, 1.5, math.nan])
def test_a_prevalence_that_is_not_between_0_and_1_is_refused(share):
    for shares in ((share, 0.5), (0.5, share)):
        with pytest.raises(ValueError, match="A prevalence must be between 0 and 1, not"):
            recalibration.shift_prevalence([0.5], *shares)


@examples
@given(splits(), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_prevalence_shift_is_bayes_rule_and_its_own_inverse(split, old, new):
    scores = np.clip(1 - split[1][:, 0], 1e-9, 1 - 1e-9)
    shifted = recalibration.shift_prevalence(scores, old, new)
    likelihood_ratio = (scores / (1 - scores)) / (old / (1 - old))
    odds = likelihood_ratio * new / (1 - new)
    np.testing.assert_allclose(shifted, odds / (1 + odds), rtol=1e-6)
    np.testing.assert_allclose(recalibration.shift_prevalence(shifted, new, old), scores, rtol=1e-6)
