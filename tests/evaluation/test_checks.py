"""Tests of pneumojax.evaluation.checks: invalid arguments and their messages."""

import numpy as np
import pytest

from pneumojax.evaluation import checks


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "no image"),
        ([0, 1, 1], [0.1, 0.2], "labels 3, scores 2"),
        ([-1, 1], [0.1, 0.2], "Labels must be 0 or more, not -1"),
        ([0, 1, 1], [0.1, np.inf, np.nan], "2 of 3 scores are not finite"),
        ([[0, 1]], [[0.1, 0.2]], "must be lists"),
    ],
)
def test_labels_and_scores(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        checks.check_binary(labels, scores)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [([[0.5] * 4], r"not \[1, 4\]"), ([0.5, 0.5], r"not \[2\]"), ([[3.0, -2.0]], "logits"), ([[np.nan, 1]], "NaN")],
)
def test_probabilities(probabilities, message):
    with pytest.raises(ValueError, match=message):
        checks.check_probabilities(probabilities)


def test_what_is_accepted_is_converted():
    positive, scores = checks.check_binary([0, 2, 1], np.array([0.1, 0.2, 0.3], np.float32))
    assert positive.tolist() == [False, True, True]
    assert scores.dtype == np.float64
    rounded = checks.check_probabilities(np.array([[0.0, 1 + 1e-7]], np.float32))
    assert rounded.dtype == np.float64


def test_indices():
    with pytest.raises(ValueError, match="Each label must be a class index, 0 to 1; found 0 to 2"):
        checks.check_indices("label", np.array([0, 2]), 2)
