"""Compares pneumojax.evaluation.bootstrap with closed forms and SciPy."""

import math

import numpy as np
import pytest
from generated_splits import approx, check_summary, examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pneumojax.evaluation import (
    bootstrap,
)
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


@examples
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(0, 60), st.integers(0, 9))
def test_resamples_draw_whole_patients(patients, resamples, seed):
    drawn = PatientBootstrap(patients, resamples, seed)
    assert drawn.weights.shape == (resamples + 1, len(patients)) and len(drawn) == len(patients)
    np.testing.assert_array_equal(drawn.weights[0], 1)
    first = [patients.index(patient) for patient in sorted(set(patients))]
    of_patient = {patient: drawn.weights[:, patients.index(patient)] for patient in patients}
    for i, patient in enumerate(patients):
        np.testing.assert_array_equal(drawn.weights[:, i], of_patient[patient])
    np.testing.assert_array_equal(drawn.weights[1:, first].sum(axis=1), len(first))
    mask = np.arange(len(patients)) % 2 == 0
    assert drawn.count_patients(mask) == len(set(patients[::2]))
    part = drawn.select(mask)
    np.testing.assert_array_equal(part.weights, drawn.weights[:, mask])
    np.testing.assert_array_equal(part.patient_ids, patients[::2])


@examples
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=9))
def test_pairs_of_patients_are_as_many_as_a_search_finds(images):
    patients, positive = np.array([one[0] for one in images]), np.array([one[1] for one in images])
    edges = {
        frozenset((p, q)) for p in set(patients[positive].tolist()) for q in set(patients[~positive].tolist()) if p != q
    }

    def match(edges):
        if not edges:
            return 0
        first = next(iter(edges))
        rest = edges - {first}
        return max(match(rest), 1 + match({edge for edge in rest if not edge & first}))

    assert PatientBootstrap(patients, 0).count_pairs(positive) == match(edges)


@examples
@given(
    st.sampled_from((math.nan, 0.0, 0.25, 1.0)),
    st.integers(0, 90),
    st.sampled_from((0.0, 0.3)),
    st.sampled_from((0, 1, 9)),
    st.integers(0, 99),
    st.one_of(st.none(), st.integers(0, 9)),
)
def test_summaries(value, resamples, missing, decimals, seed, patients):
    random = np.random.default_rng(seed)
    resampled = random.random(resamples).round(decimals)
    resampled[random.random(resamples) < missing] = np.nan
    values = [value, *resampled.tolist()]
    one = bootstrap.summarise(np.array(values), "why", patients)
    check_summary(one)
    existing = [value for value in values[1:] if not math.isnan(value)]
    if math.isnan(values[0]):
        assert one == {"value": None, "ci95": None, "reason": "why"}
    elif values[0] in (0, 1) and patients:
        exact = stats.binomtest(int(values[0]) * patients, patients).proportion_ci(0.95, "exact")
        assert one["ci95"] == approx([exact.low, exact.high])
    elif len(existing) < 40:
        assert one["ci95"] is None
    elif one["ci95"]:
        assert one["ci95"] == approx(np.percentile(existing, [2.5, 97.5]))
    else:
        assert np.ptp(np.percentile(existing, [2.5, 97.5])) < 1e-11
