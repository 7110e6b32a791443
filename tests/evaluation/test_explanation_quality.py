"""Tests of the measures of explanations."""

import json

import numpy as np
import pytest
from scipy import stats

from pneumojax.evaluation.explanation_quality import (
    COLUMNS,
    CONTROL,
    compute_share_outside,
    correlate_ranks,
    make_table,
    measure_explanations,
    randomise,
)
from pneumojax.evaluation.run import open_run

pytest.importorskip("tensorflow_datasets")


def test_the_measures_are_written_next_to_the_audit(workdir):
    results = measure_explanations(open_run(workdir), "train", 20)
    assert json.loads((workdir / "evaluation" / "train" / "explanations.json").read_text()) == results
    assert results["counts"]["images"] == 20
    for method, row in results["methods"].items():
        measured = set(COLUMNS) - ({"head", "all"} if method == CONTROL else set())
        assert set(row) == measured | {"empty"}
        for name in ("deletion", "insertion", "outside"):
            assert row[name]["value"] is None or 0 <= row[name]["value"] <= 1
    table = make_table(results)
    assert len(table.rows) == 4 and table.rows[-1][-1] == "-"
    assert measure_explanations(open_run(workdir), "train", 20)["methods"] == results["methods"]


def test_a_perceptron_is_measured_without_grad_cam(make_run):
    results = measure_explanations(open_run(make_run()), "validation", 5)
    assert list(results["methods"]) == ["occlusion", "integrated_gradients", CONTROL]


def test_the_share_outside_of_a_uniform_map_is_the_area():
    maps = np.stack([np.ones((100, 100)), np.zeros((100, 100)), -np.ones((100, 100))])
    maps[2, 20:80, 20:80] *= 3
    share = compute_share_outside(maps)
    assert share[0] == pytest.approx(0.3, abs=0.01)
    assert np.isnan(share[1]) and share[2] < 0.2


def test_ranks_are_correlated_as_scipy_does():
    rng = np.random.default_rng(0)
    maps, others = rng.normal(size=(2, 4, 5, 5))
    others[3] = 0
    result = correlate_ranks(maps, others)
    for i in range(3):
        assert result[i] == pytest.approx(stats.spearmanr(np.abs(maps[i]).ravel(), np.abs(others[i]).ravel())[0])
    assert np.isnan(result[3])
    np.testing.assert_allclose(correlate_ranks(maps, -maps), 1)


def test_the_head_or_all_layers_become_random(workdir):
    run = open_run(workdir)
    head, everything = randomise(run, "head"), randomise(run, "all")
    for name, layer in run.variables["params"].items():
        for leaf, value in layer.items():
            kept = head["params"][name][leaf] is value
            assert kept == (name != "head")
    assert not np.array_equal(everything["params"]["conv1"]["kernel"], run.variables["params"]["conv1"]["kernel"])
    assert everything["params"].keys() == run.variables["params"].keys()
