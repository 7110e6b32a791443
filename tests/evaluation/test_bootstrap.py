"""pneumojax.evaluation.bootstrap against closed forms and scipy."""

import math

import numpy as np
import pytest

from pneumojax.evaluation.bootstrap import PatientBootstrap


def test_bootstrap_draws_whole_patients():
    patient_ids = np.array(["b", "a", "b", "c", "a", "b"])
    bootstrap = PatientBootstrap(patient_ids, 400, seed=3)
    assert bootstrap.weights.shape == (401, 6)
    np.testing.assert_array_equal(bootstrap.weights[0], 1)
    weights = bootstrap.weights[1:]
    np.testing.assert_array_equal(weights[:, [0, 0, 1]], weights[:, [2, 5, 4]])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    # Each patient is drawn binomially: 3 draws of chance 1/3.
    np.testing.assert_allclose(weights[:, [0, 1, 3]].mean(axis=0), 1, atol=4 * math.sqrt(2 / 3 / 400))
    assert weights[:, 3].var() == pytest.approx(2 / 3, rel=0.25)
