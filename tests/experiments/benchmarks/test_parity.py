"""Tests of the comparison of exports with networks: a difference is found, and the page shows it."""

import jax
import numpy as np
import pytest

from experiments.benchmarks import parity, parity_page
from pneumojax.evaluation import export
from pneumojax.exported_program import OUTPUTS
from pneumojax.models import MODELS

WORDS = "--model=cnn --cnn_widths=4,8 --image_px=16 --task=three_class"


def test_the_rows_are_all_networks_and_all_presets():
    names = parity.list_cases()
    assert {name.split()[0] for name in names} == {*MODELS, *(path.stem for path in parity.PRESETS.glob("*.flags"))}


def test_no_random_variable_has_its_initial_value():
    config = parity.parse_config(["--model=resnet18", "--resnet_width=4"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(parity.make_random_variables(config)):
        assert np.isin(leaf, (0, 1)).mean() == 0, path


@pytest.mark.slow
def test_an_export_agrees_and_one_that_leaves_out_the_statistics_does_not(monkeypatch):
    row = parity.measure("small", WORDS)
    assert (row["image_px"], row["classes"], row["reason"], row["platforms"]) == (16, 3, "", ["cpu", "cuda", "tpu"])
    assert row["parameters"] == 375 and {"jax", "onnxruntime"} <= row["versions"].keys()
    for name, file in row["files"].items():
        assert file["bytes"] > 4 * 375 and max(file["differences"].values()) <= 1e-5, name
    assert parity.find_failures([row]) == []

    make_function = export.make_function

    def forget(config, variables, calibration):
        statistics = jax.tree.map(np.round, variables["batch_stats"])
        return make_function(config, variables | {"batch_stats": statistics}, calibration)

    monkeypatch.setattr(export, "make_function", forget)
    wrong = parity.measure("small", WORDS)
    assert wrong["files"]["model.onnx"]["differences"]["calibrated_probabilities"] > 1e-3
    [failure] = parity.find_failures([row, wrong])
    assert failure.startswith(
        "small: the calibrated probabilities of model.stablehlo differ from those of the checkpoint"
    )


def make_row(**fields):
    differences = dict.fromkeys(OUTPUTS, 2e-7)
    files = {name: {"seconds": 1.0, "bytes": 2_000_000, "differences": differences} for name in parity.TOLERANCES}
    files["model.safetensors"]["differences"] = {"weights": 0.0}
    row = {"network": "small", "image_px": 16, "classes": 3, "parameters": 1234, "reason": "", "files": files}
    row |= {"platforms": ["cpu"], "device": {"platform": "cpu"}, "versions": {"jax": "1"}, "commit": "abc"}
    return row | fields


def test_the_page_has_the_latest_row_of_each_network_and_the_reasons():
    rows = [make_row(parameters=1), make_row(), make_row(network="several", reason="It is an ensemble.", files={})]
    page = parity_page.format_page(rows, parity.list_cases())
    assert "| small | 16 | 3 | 1,234 | 2.0e-07 | 2.0e-07 | 2.0e-07 | 2.0e-07 | 2.0e-07 | 2.0e-07 | 0 |" in page
    assert "| small | 2 | 2 | 2 | 1.0 | 1.0 | 1.0 | cpu |" in page and "- several: It is an ensemble." in page
    assert page.endswith("All rows: cpu, jax 1, commit abc.\n")
    assert parity.find_failures(rows)[0] == "small: model.stablehlo is only for cpu."
    assert "- cpu, jax 1, commit def: other\n" in parity_page.format_page(
        [*rows, make_row(network="other", commit="def")], parity.list_cases()
    )


def test_an_ensemble_and_several_views_have_a_reason():
    for words, reason in (("--replicas=2", "an ensemble cannot"), ("--test_time_views=2", "several test-time views")):
        row = parity.measure("small", f"{WORDS} {words}")
        assert reason in row["reason"] and "files" not in row and parity.find_failures([row]) == []
