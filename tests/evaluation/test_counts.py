"""Compares pneumojax.evaluation.counts with counts by hand."""

import numpy as np
import pytest

from pneumojax.evaluation import counts

# Labels 1, 0, 1, 0 at the scores 0.9, 0.5, 0.5, 0.1. In the second row of weights, the third image counts twice.
POSITIVE, SCORES = np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1])
WEIGHTS = np.array([[1.0, 1, 1, 1], [0, 1, 2, 1]])


def test_images_of_equal_score_are_counted_together():
    true_positives, false_positives, thresholds = counts.count_positives(POSITIVE, SCORES, WEIGHTS)
    np.testing.assert_array_equal(thresholds, [0.9, 0.5, 0.1])
    np.testing.assert_array_equal(true_positives, [[1, 2, 2], [0, 2, 2]])
    np.testing.assert_array_equal(false_positives, [[0, 1, 2], [0, 1, 2]])
    # The first row has 4 pairs: 3 in the right order and 1 tie. The second row has 2 in the right order and 2 ties.
    assert counts.area_under_roc(true_positives, false_positives) == pytest.approx([3.5 / 4, 3 / 4])
    # 0.5 * 1 + 0.5 * 2 / 3, and 1 * 2 / 3.
    assert counts.average_precision(true_positives, false_positives) == pytest.approx([5 / 6, 2 / 3])


def test_weighted_confusions_and_rates():
    confusions = counts.count_confusions(POSITIVE.astype(int), np.array([1, 1, 0, 0]), 2, WEIGHTS)
    np.testing.assert_array_equal(confusions, [[[1, 1], [1, 1]], [[1, 1], [2, 0]]])
    rates = counts.one_vs_rest(confusions, 1)
    assert rates["sensitivity"] == pytest.approx([0.5, 0])
    assert rates["specificity"] == pytest.approx([0.5, 0.5])
    assert rates["f1"] == pytest.approx([0.5, 0])


def test_a_quotient_by_zero_does_not_exist():
    np.testing.assert_array_equal(counts.divide(np.array([1.0, 0.0]), np.array([2.0, 0.0])), [0.5, np.nan])
