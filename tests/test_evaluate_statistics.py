"""The statistics of an evaluation, from a trained run to its files."""

import dataclasses
import json
import pathlib

import pytest

from pneumojax.config import config_from_dict
from pneumojax.evaluate import evaluate, open_run
from pneumojax.train import fit


@pytest.fixture(scope="module")
def make_run(data_dir, tmp_path_factory):
    """`make_run(**fields)`: trains a small perceptron on the phantom set and returns its workdir."""
    made = {}

    def make(**fields):
        key = json.dumps(fields, sort_keys=True)
        if key not in made:
            workdir = tmp_path_factory.mktemp("runs") / f"run{len(made)}"
            small = {"data_dir": str(data_dir), "image_px": 16, "model": "mlp", "mlp_widths": [16], "epochs": 2}
            fit(config_from_dict(small | fields), workdir, report=lambda *_: None)
            made[key] = workdir
        return made[key]

    return make


def read_results(workdir, split="validation"):
    return json.loads((pathlib.Path(workdir) / "evaluation" / split / "metrics.json").read_text())


def test_operating_points_come_from_validation_and_keep_their_target_there(make_run):
    run = open_run(make_run())
    results = evaluate(run, "validation")
    assert results == read_results(run.workdir)
    for target in (0.95, 0.975, 0.99):
        point = results["operating_points"][f"target_sensitivity_{target:g}"]
        assert point["metrics"]["sensitivity"]["value"] >= target
        own = results["metrics"][f"specificity_at_sensitivity_{target:g}"]
        assert point["metrics"]["specificity"]["value"] == own["value"]
    on_test = evaluate(run, "test")["operating_points"]
    assert {name: point["threshold"] for name, point in on_test.items()} == {
        name: point["threshold"] for name, point in results["operating_points"].items()
    }


def test_threshold_follows_the_rule_that_is_asked_for(make_run):
    run = open_run(make_run())
    own = run.config.threshold
    rules = [dataclasses.replace(own, threshold_rule="cost_ratio", cost_ratio=ratio) for ratio in (0.2, 50.0)]
    cheap, dear = (evaluate(run, "validation", rule)["threshold"] for rule in rules)
    assert dear["value"] < cheap["value"]
    assert (dear["rule"], dear["cost_ratio"], dear["prevalence"]) == ("cost_ratio", 50.0, None)
    rare = dataclasses.replace(own, threshold_rule="cost_ratio", cost_ratio=50.0, prevalence=0.001)
    assert evaluate(run, "validation", rare)["threshold"]["value"] > dear["value"]
    assert evaluate(run, "validation", own)["threshold"]["rule"] == "target_sensitivity"
