"""Compares pneumojax.evaluation.point_metrics with scikit-learn, closed forms and brute force."""

import numpy as np
import pytest
from generated_splits import (
    approx,
    compute_areas,
    compute_rates,
    examples,
    scored,
    splits,
)
from hypothesis import given
from scored import make_split
from sklearn import metrics as oracle

from pneumojax.evaluation import (
    curves,
    metrics,
    point_metrics,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap


@pytest.mark.parametrize("step", [None, 1.0])
def test_areas_equal_scikit_learn(step):
    labels, probabilities, _ = make_split(200, 2, step=step)
    scores = point_metrics.compute_binary_scores(probabilities)
    assert (len(np.unique(scores)) < 50) == (step is not None)
    assert point_metrics.compute_auroc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
    expected = oracle.average_precision_score(labels, scores)
    assert point_metrics.compute_auprc(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_hand_counted_pairs():
    # The positive at 0.4 wins 1 + 1/2 + 0 of its pairs with the negatives 0.1, 0.4, 0.6, the one at 0.8 wins 3 of 3.
    assert point_metrics.compute_auroc([0, 1, 0, 0, 1], [0.1, 0.4, 0.4, 0.6, 0.8]) == pytest.approx(4.5 / 6)
    assert point_metrics.compute_auroc([0, 0, 1, 1], [0.3, 0.3, 0.3, 0.3]) == 0.5
    assert point_metrics.compute_auprc([0, 0, 1, 0], [0.3, 0.3, 0.3, 0.3]) == 0.25


def test_threshold_metrics_equal_scikit_learn():
    labels, probabilities, _ = make_split(200, 2, step=0.25)
    scores = point_metrics.compute_binary_scores(probabilities)
    threshold = scores[7]
    decisions = scores >= threshold
    assert point_metrics.compute_threshold_metrics(labels, scores, threshold) == pytest.approx({
        "accuracy": oracle.accuracy_score(labels, decisions),
        "sensitivity": oracle.recall_score(labels, decisions),
        "specificity": oracle.recall_score(labels, decisions, pos_label=0),
        "precision": oracle.precision_score(labels, decisions),
        "npv": oracle.precision_score(labels, decisions, pos_label=0),
        "f1": oracle.f1_score(labels, decisions),
        "balanced_accuracy": oracle.balanced_accuracy_score(labels, decisions),
    })  # fmt: skip


def test_confusion_equals_scikit_learn():
    labels, probabilities, _ = make_split(100, 3)
    decisions = probabilities.argmax(axis=1)
    confusion = point_metrics.compute_confusion(labels, decisions, 3)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, oracle.confusion_matrix(labels, decisions))
    np.testing.assert_array_equal(point_metrics.compute_confusion([1], [0], 2), [[0, 0], [1, 0]])


def test_binary_score_keeps_confident_images_apart():
    probabilities = np.array([[1e-9, 1 - 1e-9], [1e-8, 1 - 1e-8]], np.float32)
    high, low = point_metrics.compute_binary_scores(probabilities)
    assert high > low


def test_decisions_do_not_round_the_threshold_to_float32():
    score = np.float32(0.7)
    above = float(np.nextafter(np.float64(score), 1.0))
    assert point_metrics.compute_decisions(np.array([score]), float(score))[0] == 1
    assert point_metrics.compute_decisions(np.array([score]), above)[0] == 0


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "no image"),
        ([0, 1, 1], [0.1, 0.2], "labels 3, scores 2"),
        ([-1, 1], [0.1, 0.2], "Labels must be 0 or more, not -1"),
        ([0, 1], [0.1, np.inf], "1 of 2 scores are not finite"),
        ([[0, 1]], [[0.1, 0.2]], "must be lists"),
    ],
)
def test_areas_of_bad_input(labels, scores, message):
    for compute in (point_metrics.compute_auroc, point_metrics.compute_auprc):
        with pytest.raises(ValueError, match=message):
            compute(labels, scores)


@examples
@given(scored())
def test_areas_and_rates(split):
    labels, scores, _, threshold = split
    areas = {"auroc": point_metrics.compute_auroc(labels, scores), "auprc": point_metrics.compute_auprc(labels, scores)}
    assert areas == approx(compute_areas(labels > 0, scores))
    expected = compute_rates(labels, scores >= threshold)
    assert point_metrics.compute_threshold_metrics(labels, scores, threshold) == approx(expected)
    assert point_metrics.compute_auroc(1 - labels, -scores) == approx(areas["auroc"])


@examples
@given(splits())
def test_confusions(split):
    labels, probabilities, _, _ = split
    classes = probabilities.shape[1]
    confusion = point_metrics.compute_confusion(labels, probabilities.argmax(axis=1), classes)
    expected = oracle.confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(classes))
    np.testing.assert_array_equal(confusion, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_and_thresholds_that_are_no_numbers_are_refused(bad):
    bootstrap = PatientBootstrap(list("abc"))
    for compute in (
        lambda: point_metrics.compute_decisions([0.1, bad, 0.9], 0.5),
        lambda: point_metrics.compute_threshold_metrics([0, 1, 1], [0.1, bad, 0.9], 0.5),
        lambda: metrics.compute_binary_metrics([0, 1, 1], [0.1, bad, 0.9], 0.5, bootstrap),
        lambda: curves.compute_roc_curve([0, 1, 1], [0.1, bad, 0.9], bootstrap),
        lambda: curves.compute_pr_curve([0, 1, 1], [0.1, bad, 0.9], bootstrap),
    ):
        with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
            compute()
    for compute in (
        lambda: point_metrics.compute_decisions([0.1, 0.5, 0.9], np.nan),
        lambda: point_metrics.compute_threshold_metrics([0, 1, 1], [0.1, 0.5, 0.9], [0.5, np.nan, 0.5]),
        lambda: metrics.compute_metrics([0, 1, 1], [[0.5, 0.5]] * 3, np.nan, bootstrap),
    ):
        with pytest.raises(ValueError, match="threshold is not a number"):
            compute()
