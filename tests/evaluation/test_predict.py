"""Tests of the prediction of images."""

import numpy as np

from pneumojax.evaluation.predict import compute_probabilities


def test_probabilities_of_sure_cases_stay_apart():
    sure = compute_probabilities(np.array([[0.0, 20.0], [0.0, 21.0], [-2000.0, 2000.0]]))
    assert sure[0, 1] < sure[1, 1] < 1
    np.testing.assert_allclose(sure.sum(1), 1)
