"""Tests of the measures of explanations."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.explanation_quality import (
    COLUMNS,
    CONTROL,
    compute_share_outside,
    correlate_ranks,
    make_tables,
    measure_explanations,
    read_explanations,
)
from pneumojax.evaluation.run import open_run

pytest.importorskip("tensorflow_datasets")


@pytest.mark.slow
def test_the_measures_are_written_next_to_the_audit(workdir):
    results = measure_explanations(open_run(workdir), "train", 20)
    assert json.loads((workdir / "evaluation" / "train" / "explanations.json").read_text()) == results
    assert results["counts"]["images"] == 20
    for method, row in results["methods"].items():
        assert set(row) == {*COLUMNS, "cascade", "empty"}
        assert list(row["cascade"]) == ([] if method == CONTROL else ["head", "conv2", "conv1"])
        assert all(one["value"] is None or -1 <= one["value"] <= 1 for one in row["cascade"].values())
        for name in ("deletion", "insertion", "outside"):
            assert row[name]["value"] is None or 0 <= row[name]["value"] <= 1
    table, cascade = make_tables(results)
    assert [row[0] for row in table.rows][-1] == "Random blobs" and len(table.rows) == 4
    assert [row[0] for row in cascade.rows] == ["head", "conv2 to output", "all layers"]
    assert cascade.columns[1:] == tuple(row[0] for row in table.rows[:-1])


def test_a_perceptron_is_measured_without_grad_cam(make_run):
    results = measure_explanations(open_run(make_run()), "validation", 5)
    assert list(results["methods"]) == ["occlusion", "integrated_gradients", CONTROL]
    assert measure_explanations(open_run(make_run()), "validation", 5)["methods"] == results["methods"]


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


def test_only_results_of_this_checkpoint_and_these_images_are_read(make_run):
    run = open_run(make_run(seed=5))
    split = load_split(run.config.data, "validation")
    assert read_explanations(run, split) is None
    results = measure_explanations(run, "validation", 3)
    assert read_explanations(run, split) == results
    assert read_explanations(dataclasses.replace(run, step=run.step + 1), split) is None
    assert read_explanations(run, dataclasses.replace(split, fingerprint="0" * 64)) is None
    path = run.workdir / "evaluation" / "validation" / "explanations.json"
    for row in results["methods"].values():
        row.pop("cascade")
    path.write_text(json.dumps(results))
    assert read_explanations(run, split) is None
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(UserError, match="explanations.json is damaged.*explain.py --measure=200 again"):
            read_explanations(run, split)
