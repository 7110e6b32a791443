"""Compares pneumojax.evaluation.comparison with scikit-learn and SciPy."""

import json
import math

import numpy as np
import pytest
from generated_splits import (
    approx,
    check_summary,
    examples,
    resample,
    scored,
    splits,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scored import make_pair
from sklearn import metrics as oracle

from pneumojax.evaluation import (
    comparison,
    metrics,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap


def to_probabilities(scores):
    return np.stack([1 - scores, scores], axis=1)


def compute_components(labels, scores):
    """Computes structural components by ranks (Sun and Xu, Fast implementation of DeLong's algorithm, 2014)."""
    positive = labels == 1
    ranks = stats.rankdata(scores)
    of_positive = (ranks[positive] - stats.rankdata(scores[positive])) / np.sum(~positive)
    of_negative = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / np.sum(positive)
    return of_positive, of_negative


@pytest.mark.parametrize("step", [None, 0.5])
@pytest.mark.parametrize("images", [40, 300])
def test_delong_equals_ranks_by_scipy(images, step):
    labels, a, b = make_pair(images, step=step)
    result = comparison.compute_delong(labels, a, b)
    assert result["auroc_a"] == pytest.approx(oracle.roc_auc_score(labels, a), abs=1e-12)
    assert result["auroc_b"] == pytest.approx(oracle.roc_auc_score(labels, b), abs=1e-12)
    (a10, a01), (b10, b01) = compute_components(labels, a), compute_components(labels, b)
    covariance = np.cov(a10, b10) / len(a10) + np.cov(a01, b01) / len(a01)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert result["standard_error"] == pytest.approx(error, rel=1e-9)
    assert result["p"] == pytest.approx(2 * stats.norm.sf(abs(result["difference"]) / error), rel=1e-9)
    assert result["ci95"] == pytest.approx(stats.norm.interval(0.95, result["difference"], error), abs=1e-7)
    swapped = comparison.compute_delong(labels, b, a)
    assert (swapped["z"], swapped["p"]) == pytest.approx((-result["z"], result["p"]))


def test_delong_and_bootstrap_agree():
    labels, a, b = make_pair(600)
    delong = comparison.compute_delong(labels, a, b)
    paired = comparison.compute_differences(
        labels, to_probabilities(a), to_probabilities(b), 0.5, 0.5, PatientBootstrap(np.arange(600))
    )
    assert paired["auroc"]["difference"]["value"] == pytest.approx(delong["difference"])
    assert paired["auroc"]["difference"]["ci95"] == pytest.approx(delong["ci95"], abs=0.2 * np.ptp(delong["ci95"]))
    # An unpaired interval would be wider, because most of the variation comes from the common images.
    alone = metrics.compute_metrics(labels, to_probabilities(a), 0.5, PatientBootstrap(np.arange(600)))["auroc"]["ci95"]
    other = metrics.compute_metrics(labels, to_probabilities(b), 0.5, PatientBootstrap(np.arange(600)))["auroc"]["ci95"]
    assert np.ptp(paired["auroc"]["difference"]["ci95"]) < 0.9 * math.hypot(np.ptp(alone), np.ptp(other))


def test_delong_holds_its_level_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    p = []
    for _ in range(400):
        labels = np.arange(120) % 2
        common = labels + rng.normal(size=120)
        p.append(comparison.compute_delong(labels, common + rng.normal(size=120), common + rng.normal(size=120))["p"])
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.085
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_delong_without_spread_or_classes():
    same = comparison.compute_delong([0, 1, 0, 1], [0.1, 0.4, 0.3, 0.2], [1, 4, 3, 2])
    assert (same["difference"], same["p"]) == (0.0, None)
    assert "same difference" in same["reason"]
    assert comparison.compute_delong([1, 1, 0], [1, 2, 3], [1, 2, 3])["auroc_a"] is None


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (9, 2), (20, 4), (15, 10), (150, 86)])
def test_mcnemar_equals_scipy(only_a, only_b):
    right_a = np.repeat([True, False, True, False], [only_a, only_b, 30, 7])
    right_b = np.repeat([False, True, True, False], [only_a, only_b, 30, 7])
    result = comparison.compute_mcnemar(right_a, right_b)
    assert (result["only_a_right"], result["only_b_right"]) == (only_a, only_b)
    number = only_a + only_b
    if number < 25:
        expected = stats.binomtest(only_a, number).pvalue if number else 1.0
    else:
        expected = stats.chi2.sf((only_a - only_b) ** 2 / number, 1)
    assert result["p"] == pytest.approx(expected, rel=1e-9)
    assert result["method"] == ("exact" if number < 25 else "chi_square")


def test_differences_equal_scikit_learn_and_draw_whole_patients():
    labels, a, b = make_pair(200)
    doubled = [np.repeat(one, 2, axis=0) for one in (labels, to_probabilities(a), to_probabilities(b))]
    once = comparison.compute_differences(
        labels, to_probabilities(a), to_probabilities(b), 0.4, 0.6, PatientBootstrap(np.arange(200))
    )
    twice = comparison.compute_differences(*doubled, 0.4, 0.6, PatientBootstrap(np.repeat(np.arange(200), 2)))
    assert once["accuracy"]["a"] == pytest.approx(oracle.accuracy_score(labels, a >= 0.4))
    assert once["accuracy"]["b"] == pytest.approx(oracle.accuracy_score(labels, b >= 0.6))
    for name, one in once.items():
        assert one["difference"]["value"] == pytest.approx(one["a"] - one["b"])
        # The same patients are sampled, each with two equal images, so the interval does not change.
        assert twice[name]["difference"]["ci95"] == pytest.approx(one["difference"]["ci95"])
    nothing = comparison.compute_differences(
        labels, to_probabilities(a), to_probabilities(a), 0.4, 0.4, PatientBootstrap(np.arange(200))
    )
    assert all(one["difference"]["value"] == 0 for one in nothing.values())
    assert all("give the same value" in one["difference"]["reason"] for one in nothing.values())


def test_delong_of_a_perfect_and_a_constant_score_says_why_there_is_no_test():
    result = comparison.compute_delong([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.5, 0.5, 0.5, 0.5])
    assert (result["difference"], result["standard_error"], result["p"], result["ci95"]) == (0.5, 0, None, None)
    assert "same difference" in result["reason"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_delong_refuses_scores_that_are_no_numbers(bad):
    for pair in (([0.1, 0.2, bad, 0.9], [0.1, 0.2, 0.3, 0.4]), ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, bad, 0.9])):
        with pytest.raises(ValueError, match="1 of 4 scores are not finite"):
            comparison.compute_delong([0, 0, 1, 1], *pair)
    with pytest.raises(ValueError, match="labels 4, scores 3"):
        comparison.compute_delong([0, 0, 1, 1], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4])


@examples
@given(scored(), st.data())
def test_delong_equals_the_definition_and_is_antisymmetric(split, data):
    labels, scores, _, _ = split
    n = len(labels)
    others = np.array(data.draw(st.lists(st.integers(0, 3).map(float), min_size=n, max_size=n)))
    result = comparison.compute_delong(labels, scores, others)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    ill, well = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    if min(len(ill), len(well)) < 2:
        assert result["auroc_a"] is None and result["reason"]
        return
    wins = [[[np.heaviside(one[i] - one[j], 0.5) for j in well] for i in ill] for one in (scores, others)]
    difference = np.subtract(*wins)
    variance = np.var(difference.mean(axis=1), ddof=1) / len(ill) + np.var(difference.mean(axis=0), ddof=1) / len(well)
    assert [result["auroc_a"], result["auroc_b"]] == approx(np.mean(wins, axis=(1, 2)))
    assert result["standard_error"] == approx(math.sqrt(variance))
    swapped = comparison.compute_delong(labels, others, scores)
    assert swapped["difference"] == approx(-result["difference"])
    assert swapped["p"] == approx(result["p"])
    if result["p"] is None:
        assert variance < 1e-18 and result["reason"]
    else:
        assert 0 <= result["p"] <= 1
        assert result["p"] == approx(2 * stats.norm.sf(abs(difference.mean()) / math.sqrt(variance)))


@examples
@given(st.tuples(*[st.integers(0, 40)] * 4))
def test_mcnemar(counts):
    cells = ((True, True), (True, False), (False, True), (False, False))
    pairs = [cell for cell, number in zip(cells, counts, strict=True) for _ in range(number)]
    a, b = [one[0] for one in pairs], [one[1] for one in pairs]
    result = comparison.compute_mcnemar(a, b)
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    number = only_a + only_b
    assert (result["only_a_right"], result["only_b_right"]) == (only_a, only_b)
    if number < 25:
        tail = sum(math.comb(number, k) for k in range(min(only_a, only_b) + 1)) / 2**number
        assert result["p"] == approx(min(1, 2 * tail))
    else:
        assert result["p"] == approx(math.erfc(abs(only_a - only_b) / math.sqrt(2 * number)))
    assert comparison.compute_mcnemar(b, a)["p"] == approx(result["p"])


@examples
@given(splits(), st.data())
def test_differences(split, data):
    labels, probabilities, patients, threshold = split
    others = probabilities[data.draw(st.permutations(range(len(labels))))]
    drawn = resample(patients)
    result = comparison.compute_differences(labels, probabilities, others, threshold, 0.5, drawn)
    a = metrics.compute_metrics(labels, probabilities, threshold, drawn)
    b = metrics.compute_metrics(labels, others, 0.5, drawn)
    for name, one in result.items():
        assert (one["a"], one["b"]) == (approx(a[name]["value"]), approx(b[name]["value"]))
        check_summary(one["difference"], -1, 1)
        exists = None not in (one["a"], one["b"])
        assert one["difference"]["value"] == (approx(one["a"] - one["b"]) if exists else None)
