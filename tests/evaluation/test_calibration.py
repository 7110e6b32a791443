"""Compares pneumojax.evaluation.calibration with scikit-learn, SciPy, closed forms and a published example."""

import json
import math

import numpy as np
import pytest
from generated_splits import approx, check_summary, compute_rates, divide, examples, resample, scored, splits
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn import calibration as oracle_calibration
from sklearn import metrics as oracle
from sklearn.linear_model import LogisticRegression

from pneumojax.evaluation import (
    calibration,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap


def make_split(images, classes=2, sharpness=1.0, seed=0):
    """Labels of probabilities that are then made overconfident (sharpness above 1). Patients have two images."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, classes)) * 1.5
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((images, 1)) > np.cumsum(true, axis=1)).sum(axis=1)
    sharp = np.exp(sharpness * logits)
    return labels, sharp / sharp.sum(axis=1, keepdims=True), np.array([f"person{i // 2}" for i in range(images)])


def test_log_odds_of_near_certain_images_stay_apart():
    probabilities = np.array([[1e-17, 1.0], [1e-30, 1.0], [0.0, 1.0], [1.0, 0.0], [0.25, 0.75]])
    log_odds = calibration.compute_log_odds(probabilities)
    np.testing.assert_allclose(log_odds[[0, 1, 4]], [17 * np.log(10), 30 * np.log(10), np.log(3)])
    assert np.isfinite(log_odds).all()


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_calibration_equals_scikit_learn(sharpness):
    labels, probabilities, patient_ids = make_split(300, sharpness=sharpness)
    result = calibration.compute_calibration(labels, probabilities, PatientBootstrap(patient_ids))
    scores, log_odds = probabilities[:, 1], np.log(probabilities[:, 1] / probabilities[:, 0])
    assert result["brier"]["value"] == pytest.approx(oracle.brier_score_loss(labels, scores), abs=1e-12)

    share, mean_score = oracle_calibration.calibration_curve(labels, scores, n_bins=10, strategy="quantile")
    assert result["ece"]["value"] == pytest.approx(np.mean(np.abs(share - mean_score)), abs=1e-12)

    logistic = LogisticRegression(C=np.inf, tol=1e-10).fit(log_odds[:, None], labels)
    assert result["calibration_slope"]["value"] == pytest.approx(logistic.coef_[0, 0], rel=1e-5)
    assert result["calibration_intercept"]["value"] == pytest.approx(logistic.intercept_[0], abs=1e-5)
    # At the maximum likelihood, the mean probability is the share of pneumonia.
    shift = optimize.brentq(lambda a: np.mean(1 / (1 + np.exp(-a - log_odds))) - labels.mean(), -9, 9)
    assert result["calibration_in_the_large"]["value"] == pytest.approx(shift, abs=1e-8)

    assert result["calibration_slope"]["value"] == pytest.approx(1 / sharpness, rel=0.3)
    for metric in (result[name] for name in result if name != "ece"):
        assert metric["ci95"][0] <= metric["value"] <= metric["ci95"][1]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_slopes_of_resamples_equal_scikit_learn_with_sample_weight():
    labels, probabilities, _ = make_split(80, sharpness=2.0)
    log_odds = calibration.compute_log_odds(probabilities)
    weights = np.random.default_rng(3).integers(3, size=(5, 80)).astype(float)
    covariates = np.stack([np.ones(80), log_odds], axis=1)
    fitted = calibration._fit_logistic(labels > 0, covariates, np.zeros(80), weights, np.ones(5, bool))
    for row, weight in zip(fitted, weights, strict=True):
        logistic = LogisticRegression(C=np.inf, tol=1e-10).fit(log_odds[:, None], labels, sample_weight=weight)
        np.testing.assert_allclose(row, [logistic.intercept_[0], logistic.coef_[0, 0]], rtol=1e-4, atol=1e-5)


def test_interval_of_the_slope_is_as_wide_as_its_standard_error_says():
    labels, probabilities, _ = make_split(600)
    result = calibration.compute_calibration(labels, probabilities, PatientBootstrap(np.arange(600)))[
        "calibration_slope"
    ]
    log_odds = calibration.compute_log_odds(probabilities)
    x = np.stack([np.ones(600), log_odds], axis=1)
    variance = probabilities[:, 0] * probabilities[:, 1]
    half = 1.96 * np.sqrt(np.linalg.inv(x.T @ (x * variance[:, None]))[1, 1])
    assert np.ptp(result["ci95"]) / 2 == pytest.approx(half, rel=0.2)


def test_fit_arrives_from_log_odds_of_hundreds():
    # Two confident mistakes among confident images, for which Newton's method without damping diverges.
    log_odds = np.array([-300.0, -200, -100, -50, 250, 50, 100, 200, 300, -250])
    positive = np.arange(10) >= 5
    shift = calibration._fit_logistic(positive, np.ones((10, 1)), log_odds, np.ones((1, 10)), np.ones(1, bool))[0, 0]
    assert np.mean(1 / (1 + np.exp(-shift - log_odds))) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "scores", [[0.1, 0.2, 0.7, 0.9], [0.9, 0.8, 0.1, 0.2], [0.5, 0.5, 0.5, 0.5], [0.2, 0.4, 0.4, 0.5]]
)
def test_no_slope_where_classes_do_not_overlap(scores):
    probabilities = np.stack([1 - np.array(scores), scores], axis=1)
    result = calibration.compute_calibration([0, 0, 1, 1], probabilities, PatientBootstrap(list("abcd")))
    for name in ("calibration_slope", "calibration_intercept"):
        assert result[name]["value"] is None
        assert "overlap" in result[name]["reason"]
    assert result["calibration_in_the_large"]["value"] is not None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1])
def test_split_of_one_class(label):
    _, probabilities, patient_ids = make_split(30)
    result = calibration.compute_calibration([label] * 30, probabilities, PatientBootstrap(patient_ids))
    assert result["brier"]["value"] is not None
    assert result["ece"]["value"] is not None
    assert "only one of the two" in result["calibration_in_the_large"]["reason"]
    assert result["calibration_slope"]["value"] is None
    values = calibration.compute_predictive_values(
        [label] * 30, probabilities[:, 1], 0.5, [0.3], PatientBootstrap(patient_ids)
    )
    assert "only one of the two" in values["ppv"][0]["reason"]


@pytest.mark.parametrize("images", [100, 624])
def test_reliability_equals_scikit_learn_with_wilson_intervals(images):
    labels, probabilities, _ = make_split(images)
    result = calibration.compute_reliability(labels, probabilities[:, 1])
    if images % 10 == 0:  # Otherwise scikit-learn puts the borders of the bins between other images.
        share, score = oracle_calibration.calibration_curve(labels, probabilities[:, 1], n_bins=10, strategy="quantile")
        np.testing.assert_allclose(result["share"], share)
        np.testing.assert_allclose(result["mean_score"], score)
    assert sum(result["images"]) == images
    assert np.ptp(result["images"]) <= 1
    for share, low, high, number in zip(*(result[key] for key in ("share", "low", "high", "images")), strict=True):
        wilson = stats.binomtest(round(share * number), number).proportion_ci(method="wilson")
        assert [low, high] == pytest.approx([wilson.low, wilson.high], abs=1e-6)


def test_images_of_equal_score_share_a_bin_in_any_order():
    scores = np.repeat([0.2, 0.6, 0.9], [7, 2, 1])
    labels = np.array([1, 0, 0, 0, 0, 0, 1, 1, 0, 1])
    result = calibration.compute_reliability(labels, scores)
    assert result["images"] == [7, 2, 1]
    assert result["share"] == pytest.approx([2 / 7, 1 / 2, 1])
    assert calibration.compute_reliability(labels[::-1], scores[::-1]) == result


def test_predictive_values_of_a_published_example():
    # Altman and Bland, Diagnostic tests 2, 1994: liver scans, 231 true and 32 false positives, 27 false and 54 true
    # negatives: sensitivity 0.90, specificity 0.63. At the prevalence of the sample, 0.75, PPV 0.88 and NPV 0.67; at
    # 0.25, PPV 0.45 and NPV 0.95.
    labels = np.repeat([1, 1, 0, 0], [231, 27, 32, 54])
    scores = np.repeat([1.0, 0.0, 1.0, 0.0], [231, 27, 32, 54])
    values = calibration.compute_predictive_values(
        labels, scores, 0.5, [258 / 344, 0.25], PatientBootstrap(np.arange(344))
    )
    assert values["ppv"][0]["value"] == pytest.approx(oracle.precision_score(labels, scores), abs=1e-12)
    assert [round(one["value"], 2) for one in values["ppv"]] == [0.88, 0.45]
    assert [round(one["value"], 2) for one in values["npv"]] == [0.67, 0.95]
    for one in values["ppv"] + values["npv"]:
        assert one["ci95"][0] < one["value"] < one["ci95"][1]


def test_perfect_decisions_have_no_interval_that_ignores_the_prevalence():
    # With 20 NORMAL images, the specificity is at least 0.83. At a prevalence of 0.01, the PPV is at least 0.06.
    labels = np.repeat([0, 1], 20)
    ppv = calibration.compute_predictive_values(labels, labels, 0.5, [0.01], PatientBootstrap(np.arange(40)))["ppv"][0]
    assert (ppv["value"], ppv["ci95"]) == (1.0, None)
    assert "give the same value" in ppv["reason"]


@pytest.mark.filterwarnings("error")
def test_nobody_decided_for_has_no_ppv():
    values = calibration.compute_predictive_values(
        [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], 0.5, [0.3, 0.5], PatientBootstrap(list("abcd"))
    )
    assert [one["value"] for one in values["ppv"]] == [None, None]
    assert "there is none" in values["ppv"][0]["reason"]
    assert [one["value"] for one in values["npv"]] == pytest.approx([0.7, 0.5])
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration.compute_predictive_values([0, 1], [0.1, 0.9], 0.5, [0.0], PatientBootstrap(["a", "b"]))


def test_a_fit_that_does_not_converge_has_no_value():
    # The optimal shift is -62.5, far from 0. Newton's method without damping oscillates between two points here.
    log_odds = np.array([20.0, 160.0])
    probabilities = np.stack([np.exp(-log_odds), np.ones(2)], axis=1)
    result = calibration.compute_calibration([0, 1], probabilities, PatientBootstrap(["a", "b"]))
    in_the_large = result["calibration_in_the_large"]
    assert (in_the_large["value"], in_the_large["ci95"]) == (None, None)
    assert "did not converge" in in_the_large["reason"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5])
def test_numbers_that_are_no_probabilities_are_refused(bad):
    labels, probabilities, patient_ids = make_split(30)
    probabilities[3, 1] = bad
    bootstrap = PatientBootstrap(patient_ids, 40)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration.compute_log_odds(probabilities)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration.compute_calibration(labels, probabilities, bootstrap)
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration.compute_reliability(labels, probabilities[:, 1])
    if not np.isfinite(bad):
        with pytest.raises(ValueError, match="1 of 30 scores are not finite"):
            calibration.compute_predictive_values(labels, probabilities[:, 1], 0.5, [0.3], bootstrap)


@pytest.mark.filterwarnings("error")
def test_saturated_scores_have_no_slope_instead_of_a_singular_matrix():
    log_odds = np.array([300.0, 50.0, -690.0, -690.0])
    probabilities = np.exp(np.stack([-np.maximum(log_odds, 0), np.minimum(log_odds, 0)], axis=1))
    result = calibration.compute_calibration([0, 0, 0, 1], probabilities, PatientBootstrap(np.arange(4), 60))
    for name in ("calibration_slope", "calibration_intercept"):
        assert result[name]["value"] is None or np.isfinite(result[name]["value"])
        assert result[name]["ci95"] is None or np.isfinite(result[name]["ci95"]).all()


@examples
@given(splits())
def test_calibration_measures(split):
    labels, probabilities, patients, _ = split
    result = calibration.compute_calibration(labels, probabilities, resample(patients))
    for name, one in result.items():
        check_summary(one, *((0, 1) if name in ("brier", "ece") else (-math.inf, math.inf)))
    positive, scores = labels > 0, 1 - probabilities[:, 0]
    log_odds = calibration.compute_log_odds(probabilities)
    expected = special.logsumexp(np.log(probabilities[:, 1:]), axis=1) - np.log(probabilities[:, 0])
    np.testing.assert_allclose(log_odds, expected, atol=1e-12)
    assert result["brier"]["value"] == approx(np.mean((scores - positive) ** 2))
    shift = result["calibration_in_the_large"]["value"]
    if shift is not None:
        assert positive.any() and not positive.all()
        assert special.expit(shift + log_odds).sum() == pytest.approx(positive.sum(), abs=1e-6)
    a, b = (result[f"calibration_{name}"]["value"] for name in ("intercept", "slope"))
    if b is not None:  # The score equations of the maximum likelihood.
        residuals = special.expit(a + b * log_odds) - positive
        assert [residuals.sum(), residuals @ log_odds] == pytest.approx([0, 0], abs=1e-5)


@examples
@given(scored(), st.integers(1, 12))
def test_reliability_bins(split, bins):
    labels, scores, _, _ = split
    result = calibration.compute_reliability(labels, scores, bins)
    number = np.array(result["images"])
    assert number.sum() == len(labels) and len(number) <= bins and np.all(number > 0)
    assert np.dot(number, result["share"]) == approx(labels.sum())
    assert np.dot(number, result["mean_score"]) == approx(scores.sum())
    assert np.all(np.diff(result["mean_score"]) > 0)
    bin_of_image = [sum(other < score for other in scores) * bins // len(scores) for score in scores]
    assert result["images"] == [bin_of_image.count(i) for i in sorted(set(bin_of_image))]
    for share, low, high, n in zip(*(result[key] for key in ("share", "low", "high", "images")), strict=True):
        # Wilson's bounds are the proportions that are 1.96 standard errors away from the share.
        assert low <= share <= high
        for bound in {low, high} - {0.0, 1.0}:
            assert abs(share - bound) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(bound * (1 - bound) / n))


@examples
@given(scored(), st.floats(0.01, 0.99))
def test_predictive_values_are_bayes_rule(split, prevalence):
    labels, scores, patients, threshold = split
    values = calibration.compute_predictive_values(labels, scores, threshold, [prevalence], resample(patients))
    rates = compute_rates(labels, scores >= threshold)
    sensitivity, specificity = rates["sensitivity"], rates["specificity"]
    for one in (values["ppv"][0], values["npv"][0]):
        check_summary(one)
    if None in (sensitivity, specificity):
        assert values["ppv"][0]["value"] is values["npv"][0]["value"] is None
        return
    found, alarms = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    missed, passed = prevalence * (1 - sensitivity), (1 - prevalence) * specificity
    assert values["ppv"][0]["value"] == approx(divide(found, found + alarms))
    assert values["npv"][0]["value"] == approx(divide(passed, passed + missed))
