"""Compares pneumojax.evaluation.bootstrap with closed forms and SciPy."""

import math

import numpy as np
import pytest

from pneumojax.evaluation.bootstrap import PatientBootstrap, compute_band, summarise


def test_bootstrap_draws_whole_patients():
    patient_ids = np.array(["b", "a", "b", "c", "a", "b"])
    bootstrap = PatientBootstrap(patient_ids, 400, seed=3)
    assert bootstrap.weights.shape == (401, 6)
    np.testing.assert_array_equal(bootstrap.weights[0], 1)
    weights = bootstrap.weights[1:]
    np.testing.assert_array_equal(weights[:, [0, 0, 1]], weights[:, [2, 5, 4]])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    # The number of times that a patient is sampled is binomial: 3 trials with probability 1/3.
    np.testing.assert_allclose(weights[:, [0, 1, 3]].mean(axis=0), 1, atol=4 * math.sqrt(2 / 3 / 400))
    assert weights[:, 3].var() == pytest.approx(2 / 3, rel=0.25)


def test_a_seed_draws_the_same_patients_in_every_version():
    # The resamples must not change, so that results can be compared with those of an older version.
    bootstrap = PatientBootstrap(["b", "a", "b", "c"], 3, seed=0)
    draws = np.random.default_rng(0).integers(3, size=(3, 3))
    expected = [[np.sum(row == patient) for patient in (1, 0, 1, 2)] for row in draws]
    np.testing.assert_array_equal(bootstrap.weights[1:], expected)


def test_a_subgroup_keeps_the_draws_of_the_split():
    bootstrap = PatientBootstrap(list("abcab"), 100)
    part = bootstrap.select(np.array([True, False, False, True, True]))
    assert part.patient_ids.tolist() == ["a", "a", "b"]
    np.testing.assert_array_equal(part.weights, bootstrap.weights[:, [0, 3, 4]])
    assert len(bootstrap) == 5 and len(part) == 3


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="0 or more, not -1"):
        PatientBootstrap(["a"], -1)
    with pytest.raises(ValueError, match="no images to resample"):
        PatientBootstrap([])


def test_bands_need_forty_resamples():
    curves = np.random.default_rng(0).random((40, 3))
    assert compute_band(curves[:39]) is None
    np.testing.assert_allclose(compute_band(curves), np.percentile(curves, [2.5, 97.5], axis=0))


def test_an_exact_interval_needs_no_resamples():
    assert summarise(np.array([1.0]), "", patients=3) == {"value": 1.0, "ci95": [0.025 ** (1 / 3), 1.0]}
    assert summarise(np.array([0.0]), "", patients=3)["ci95"] == [0.0, 1 - 0.025 ** (1 / 3)]
    assert "Exists in 0 of 0 resamples" in summarise(np.array([1.0]), "")["reason"]
