"""Compares pneumojax.evaluation.thresholds with scikit-learn and brute force."""

import json

import numpy as np
import pytest
from generated_splits import approx, check_summary, compute_rates, count, examples, resample, scored
from hypothesis import assume, given
from hypothesis import strategies as st
from scored import make_split
from sklearn import metrics as oracle

from pneumojax.evaluation import (
    metrics,
    point_metrics,
    thresholds,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.thresholds import choose_uncertain_band


def brute_force_rates(labels, scores):
    """Computes {threshold: (sensitivity, specificity)} for each score."""
    positive = np.asarray(labels) > 0
    return {t: (np.mean(scores[positive] >= t), np.mean(scores[~positive] < t)) for t in np.unique(scores)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [0.05, 0.5, 0.95, 1.0])
def test_target_sensitivity_by_brute_force(seed, target):
    labels, probabilities, _ = make_split(40, 3, seed=seed, step=0.5)
    scores = point_metrics.compute_binary_scores(probabilities)
    chosen = thresholds.choose_threshold(labels, scores, "target_sensitivity", target_sensitivity=target)
    rates = brute_force_rates(labels, scores)
    assert chosen == max(t for t, (sensitivity, _) in rates.items() if sensitivity >= target)


@pytest.mark.parametrize("seed", range(5))
def test_youden_by_brute_force(seed):
    labels, probabilities, _ = make_split(12, 2, seed=seed, step=1.0)
    scores = point_metrics.compute_binary_scores(probabilities)
    chosen = thresholds.choose_threshold(labels, scores, "youden")
    youden = {t: sum(rates) - 1 for t, rates in brute_force_rates(labels, scores).items()}
    assert chosen == min(t for t, value in youden.items() if value > max(youden.values()) - 1e-9)


def test_youden_takes_the_smallest_of_equals():
    # Thresholds 0.9, 0.5 and 0.3 have sensitivity + specificity of 1/3 + 1, 2/3 + 2/3 and 1 + 1/3.
    labels, scores = [1, 0, 1, 0, 1, 0], [0.9, 0.6, 0.5, 0.4, 0.3, 0.1]
    assert thresholds.choose_threshold(labels, scores, "youden") == 0.3


@pytest.mark.parametrize("prevalence", [None, 0.05, 0.9])
@pytest.mark.parametrize("cost_ratio", [0.1, 1.0, 7.0])
def test_cost_ratio_by_brute_force(cost_ratio, prevalence):
    labels, probabilities, _ = make_split(40, 2, step=0.5)
    scores = point_metrics.compute_binary_scores(probabilities)
    chosen = thresholds.choose_threshold(labels, scores, "cost_ratio", cost_ratio=cost_ratio, prevalence=prevalence)
    share = labels.mean() if prevalence is None else prevalence
    rates = {**brute_force_rates(labels, scores), np.nextafter(scores.max(), 2): (0.0, 1.0)}
    costs = {
        t: cost_ratio * share * (1 - sensitivity) + (1 - share) * (1 - specificity)
        for t, (sensitivity, specificity) in rates.items()
    }
    assert chosen == min(t for t, cost in costs.items() if cost < min(costs.values()) + 1e-9)


@pytest.mark.parametrize(("cost_ratio", "threshold"), [(8.9, 0.2), (3.0, 0.3), (1.0, 0.5), (0.3, 0.8)])
def test_cost_ratio_of_true_probabilities_is_the_odds_of_the_threshold(cost_ratio, threshold):
    # Three of ten images with score 0.3 are positive. Predicting them positive is cheaper if score / (1 - score) >=
    # 1 / cost_ratio (Elkan, The foundations of cost-sensitive learning, 2001). In case of a tie, the smaller threshold
    # is chosen.
    tenths = np.repeat(np.arange(1, 10), 10)
    labels = (np.tile(np.arange(10), 9) < tenths).astype(int)
    assert thresholds.choose_threshold(labels, tenths / 10, "cost_ratio", cost_ratio=cost_ratio) == threshold


def test_where_alarms_cost_most_nobody_is_decided_for():
    threshold = thresholds.choose_threshold([0, 1, 0, 1], [0.1, 0.2, 1.0, 1.0], "cost_ratio", cost_ratio=0.01)
    assert threshold > 1.0 and not point_metrics.compute_decisions([0.1, 0.2, 1.0, 1.0], threshold).any()


def test_operating_points_equal_scikit_learn_on_the_other_split():
    labels, probabilities, patient_ids = make_split(200, 3, seed=1)
    scores = point_metrics.compute_binary_scores(probabilities)
    other_labels, other_probabilities, _ = make_split(200, 2)
    chosen = thresholds.choose_operating_points(other_labels, other_probabilities[:, 1])
    assert list(chosen) == [*(f"target_sensitivity_{t}" for t in ("0.95", "0.975", "0.99")), "youden"]
    points = thresholds.compute_operating_points(labels, scores, chosen, PatientBootstrap(patient_ids))
    assert json.loads(json.dumps(points, allow_nan=False)) == points
    for name, point in points.items():
        decisions = scores >= chosen[name]
        assert point["threshold"] == chosen[name]
        assert point["metrics"]["sensitivity"]["value"] == pytest.approx(oracle.recall_score(labels > 0, decisions))
        specificity = oracle.recall_score(labels == 0, ~decisions)
        assert point["metrics"]["specificity"]["value"] == pytest.approx(specificity)
        np.testing.assert_array_equal(point["confusion_matrix"], oracle.confusion_matrix(labels > 0, decisions))
        whole = metrics.compute_metrics(labels, probabilities, chosen[name], PatientBootstrap(patient_ids))
        assert point["metrics"]["specificity"] == whole["specificity"]


@pytest.mark.parametrize("label", [0, 1])
def test_operating_points_of_a_validation_split_of_one_class(label):
    chosen = thresholds.choose_operating_points([label] * 3, [0.1, 0.2, 0.3])
    assert chosen["youden"] is None and (chosen["target_sensitivity_0.95"] is None) == (label == 0)
    points = thresholds.compute_operating_points([0, 1], [0.1, 0.9], chosen, PatientBootstrap(["a", "b"]))
    assert points["youden"] == {
        "threshold": None,
        "reason": "The split on which this threshold is chosen lacks the images that the rule needs.",
    }


def test_target_is_met_exactly_in_spite_of_rounding():
    # 0.07 * 100 is 7.000000000000001, so a product would require an eighth image.
    scores = np.linspace(0.0, 1.0, 100)
    chosen = thresholds.choose_threshold(np.ones(100), scores, "target_sensitivity", target_sensitivity=0.07)
    assert np.sum(scores >= chosen) == 7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threshold_makes_the_same_decisions_after_json(dtype):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=500)
    # The scores are so close that any rounding would move some of them across the threshold.
    scores = (0.7 + 4e-8 * rng.integers(-20, 20, size=500)).astype(dtype)
    for rule in ("target_sensitivity", "youden"):
        threshold = thresholds.choose_threshold(labels, scores, rule, target_sensitivity=0.8)
        assert type(threshold) is float
        assert threshold in scores.astype(np.float64)
        read_again = json.loads(json.dumps({"value": threshold}))["value"]
        before, after = (point_metrics.compute_decisions(scores, t) for t in (threshold, read_again))
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("labels", "rule", "numbers", "message"),
    [
        ([0, 0], "target_sensitivity", {"target_sensitivity": 0.9}, "needs positive images"),
        ([0, 0], "youden", {}, "needs positive images"),
        ([1, 2], "youden", {}, "needs negative images"),
        ([0, 1], "target_sensitivity", {}, "above 0 and at most 1, not None"),
        ([0, 1], "target_sensitivity", {"target_sensitivity": 1.1}, "above 0 and at most 1, not 1.1"),
        ([0, 1], "cost_ratio", {}, "above 0, not None"),
        ([0, 1], "cost_ratio", {"cost_ratio": 0.0}, "above 0, not 0.0"),
        ([0, 1], "cost_ratio", {"cost_ratio": 2.0, "prevalence": 1.0}, "between 0 and 1, not 1.0"),
        ([1, 1], "cost_ratio", {"cost_ratio": 2.0}, "cost_ratio needs negative images"),
        ([0, 1], "fixed", {}, "between 0 and 1, not None"),
        ([0, 1], "best", {}, "Unknown threshold rule 'best'"),
        ([], "youden", {}, "Lengths differ"),
    ],
)
def test_threshold_that_cannot_be_chosen(labels, rule, numbers, message):
    with pytest.raises(ValueError, match=message):
        thresholds.choose_threshold(labels, [0.2, 0.8], rule, **numbers)


def test_fixed_threshold_is_the_number_given():
    assert thresholds.choose_threshold([0, 0], [0.2, 0.8], "fixed", fixed=0.5) == 0.5


def test_operating_points_have_exact_intervals_by_their_own_predictions():
    labels, scores = np.repeat([1, 0], 50), np.linspace(1, 0, 100)
    points = thresholds.compute_operating_points(labels, scores, {"a": scores[1]}, PatientBootstrap(np.arange(100)))
    assert points["a"]["metrics"]["precision"]["ci95"] == pytest.approx([0.025 ** (1 / 2), 1])
    assert points["a"]["metrics"]["specificity"]["ci95"] == pytest.approx([0.025 ** (1 / 50), 1])


@examples
@given(scored(), st.floats(0.01, 1), st.floats(0.05, 20), st.one_of(st.none(), st.floats(0.01, 0.99)))
def test_threshold_rules(split, target, cost_ratio, prevalence):
    labels, scores, _, _ = split
    positive = labels > 0
    assume(positive.any())
    rates = {t: compute_rates(positive, scores >= t) for t in np.unique(scores)}
    chosen = thresholds.choose_threshold(labels, scores, "target_sensitivity", target_sensitivity=target)
    assert chosen == max(t for t, rate in rates.items() if rate["sensitivity"] >= target)
    assume(not positive.all())
    youden = {t: rate["sensitivity"] + rate["specificity"] for t, rate in rates.items()}
    best = min(t for t, value in youden.items() if value > max(youden.values()) - 1e-9)
    assert thresholds.choose_threshold(labels, scores, "youden") == best

    share = positive.mean() if prevalence is None else prevalence
    rates[np.nextafter(scores.max(), 2)] = {"sensitivity": 0.0, "specificity": 1.0}
    chosen = thresholds.choose_threshold(labels, scores, "cost_ratio", cost_ratio=cost_ratio, prevalence=prevalence)
    costs = {
        t: cost_ratio * share * (1 - one["sensitivity"]) + (1 - share) * (1 - one["specificity"])
        for t, one in rates.items()
    }
    assert costs[chosen] == pytest.approx(min(costs.values()), abs=1e-9)


@examples
@given(scored(), scored())
def test_operating_points(validation, split):
    points = thresholds.choose_operating_points(*validation[:2])
    labels, scores, patients, _ = split
    results = thresholds.compute_operating_points(labels, scores, points, resample(patients))
    assert list(results) == list(points)
    for name, result in results.items():
        if points[name] is None:
            assert result["threshold"] is None and result["reason"]
            continue
        decisions = scores >= points[name]
        assert {name: one["value"] for name, one in result["metrics"].items()} == approx(
            compute_rates(labels, decisions)
        )
        tp, fn, fp, tn = count(labels, decisions)
        assert result["confusion_matrix"] == [[tn, fp], [fn, tp]]
        for one in result["metrics"].values():
            check_summary(one)


def find_narrowest_band(labels, scores, threshold, share):
    """Searches the band among all pairs of ends."""
    wrong = (scores >= threshold) != labels
    ends = np.unique(np.append(scores[wrong], threshold))
    bands = []
    for low in ends[ends <= threshold]:
        for high in ends[ends >= threshold]:
            if (wrong & (scores >= low) & (scores <= high)).sum() >= share * wrong.sum():
                bands.append((high - low, low, high))
    return min(bands)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_uncertain_band_is_the_narrowest_that_holds_its_share_of_the_errors(share):
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = rng.integers(0, 2, 60).astype(bool)
        scores = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1)
        threshold = float(rng.uniform(0.2, 0.8))
        band = choose_uncertain_band(labels, scores, threshold, share)
        width, low, high = find_narrowest_band(labels, scores, threshold, share)
        assert (band["low"], band["high"]) == (low, high)
        assert band["high"] - band["low"] == width
        wrong, inside = (scores >= threshold) != labels, (scores >= low) & (scores <= high)
        numbers = (wrong.sum(), (wrong & inside).sum(), inside.sum())
        assert (band["errors"], band["errors_inside"], band["images_inside"]) == numbers
        assert band["errors_inside"] >= share * band["errors"]
        assert json.loads(json.dumps(band)) == band


def test_the_uncertain_band_without_errors_is_the_threshold():
    band = choose_uncertain_band([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], 0.5)
    assert band == {"low": 0.5, "high": 0.5, "share": 0.5, "errors": 0, "errors_inside": 0, "images_inside": 0}


def test_among_equal_bands_the_one_with_more_false_negatives_is_chosen():
    band = choose_uncertain_band([1, 0], [0.25, 0.75], 0.5)
    assert (band["low"], band["high"], band["errors_inside"]) == (0.25, 0.5, 1)
