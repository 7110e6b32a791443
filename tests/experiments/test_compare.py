"""Tests of experiments/compare.py on the files of two evaluations."""

import functools
import json

import numpy as np
import pytest
from forked import run_script
from scored import make_pair, write_evaluation

from experiments import compare
from pneumojax.evaluation import comparison
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.prediction_files import check_same_images, read_predictions
from pneumojax.evaluation.run import open_run


@pytest.fixture
def run(processes, tmp_path):
    """`run(...)`: runs the script."""
    return functools.partial(run_script, processes, tmp_path, "experiments/compare.py")


def test_script_prints_a_table_and_writes_json(run, tmp_path):
    labels, a, b = make_pair(120)
    for name, scores in (("a", a), ("b", b)):
        write_evaluation(tmp_path / name, labels, scores)
    done = run(tmp_path / "a", tmp_path / "b", "--split=test")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "a" / "evaluation" / "test" / "compared_with_b.json").read_text())
    delong = comparison.compute_delong(labels, a, b)
    assert results["delong"].pop("ci95") == pytest.approx(delong.pop("ci95"))
    assert results["delong"] == pytest.approx(delong)
    assert f"p = {delong['p']:.2g}" in done.stdout
    only_a = int(np.sum(((a >= 0.5) == labels) & ((b >= 0.5) != labels)))
    assert results["mcnemar"]["all"]["only_a_right"] == only_a
    parts = [results["mcnemar"][name]["only_a_right"] for name in ("PNEUMONIA", "NORMAL")]
    assert sum(parts) == only_a
    assert f"{results['metrics']['auroc']['difference']['value']:+.4f}" in done.stdout


def test_script_refuses_what_it_cannot_compare(run, tmp_path):
    labels, a, _ = make_pair(10)
    write_evaluation(tmp_path / "a", labels, a)
    for arguments, sentence in (
        ([tmp_path / "a"], "needs RUN RUN"),
        ([tmp_path / "a", tmp_path / "c"], "was not evaluated on validation"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("label", [0, 1])
def test_classes_are_left_out_where_one_of_them_contains_all_images(tmp_path, label):
    _, a, b = make_pair(20)
    runs = [
        read_predictions(write_evaluation(tmp_path / name, np.full(20, label), scores), "test")
        for name, scores in (("a", a), ("b", b))
    ]
    results = compare.compare(*runs)
    assert list(results["mcnemar"]) == ["all"]
    assert "McNemar's test of the decisions, all:" in compare.format_results(results, "test")


def test_runs_of_two_tasks_are_compared_on_pneumonia(make_run):
    runs = [open_run(make_run(task=task)) for task in ("binary", "three_class")]
    values = [evaluate(run, "validation")["metrics"] for run in runs]
    a, b = (read_predictions(run.workdir, "validation") for run in runs)
    check_same_images(a, b)
    results = compare.compare(a.to_binary(), b.to_binary())
    # The macro means are over two classes in one task and over three in the other.
    for name in (name for name in values[0] if not name.endswith("_macro")):
        assert results["metrics"][name]["a"] == pytest.approx(values[0][name]["value"])
        assert results["metrics"][name]["b"] == pytest.approx(values[1][name]["value"])
