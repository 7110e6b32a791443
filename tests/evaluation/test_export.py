"""Tests of exports: what is written, what is refused, and that an export predicts as its run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from pneumojax.errors import UserError
from pneumojax.evaluation import export as module
from pneumojax.evaluation.classifier import make_classifier
from pneumojax.evaluation.ensemble import open_ensemble
from pneumojax.evaluation.export import export, is_export, open_export, read_export
from pneumojax.evaluation.gate_training import load_or_train_gate
from pneumojax.evaluation.run import open_run
from pneumojax.exported_program import OUTPUTS


def make_export(run, out, onnx=False, gate=True):
    classifier = make_classifier(module.check_export(run, out, onnx), 8)
    if gate:
        classifier = dataclasses.replace(classifier, gate=load_or_train_gate(run, classifier))
    return export(run, classifier, out, onnx, "print('example')\n"), classifier


@pytest.fixture(scope="module")
def exported(make_run, tmp_path_factory):
    """(folder, differences, run, classifier) of an export. Tests must not change it."""
    out = tmp_path_factory.mktemp("exports") / "small"
    run = open_run(make_run(task="three_class"))
    differences, classifier = make_export(run, out, onnx=True)
    return out, differences, run, classifier


def test_an_export_has_all_files_and_predicts_as_its_run(exported):
    out, differences, run, classifier = exported
    content = json.loads((out / "model.json").read_text())
    files = {path.name for path in out.iterdir()}
    assert files == {*content["files"], "model.json"}
    assert files >= {"model.stablehlo", "model.onnx", "model.safetensors", "gate.npz", "example.py", "model_card.md"}
    assert differences == content["parity"] and differences["model.safetensors"] == {"weights": 0.0}
    for name in ("model.stablehlo", "model.onnx"):
        assert differences[name].keys() == set(OUTPUTS) and 0 < max(differences[name].values()) <= 1e-5
    assert is_export(out) and not is_export(run.workdir)
    opened = open_export(out, 3, gate=True)
    assert (opened.model, opened.threshold, opened.calibration, opened.squares, opened.columns) == (
        classifier.model,
        classifier.threshold,
        classifier.calibration,
        classifier.squares,
        classifier.columns,
    )
    images = {classifier.squares[0]: np.random.default_rng(1).integers(0, 256, (3, 16, 16), np.uint8)}
    for found, expected in zip(opened.predict(images), classifier.predict(images), strict=True):
        numbers = {name for name, value in expected.items() if isinstance(value, float)}
        assert {name: found[name] for name in expected if name not in numbers} == {
            name: expected[name] for name in expected if name not in numbers
        }
        np.testing.assert_allclose([found[name] for name in numbers], [expected[name] for name in numbers], atol=1e-5)
    assert [open_export(out, 3, gate=False).predict(images)[0]["flags"]] == [[]]


def test_the_weights_are_those_of_the_checkpoint(exported):
    out, _, run, _ = exported
    weights = load_file(out / "model.safetensors")
    assert sum(leaf.size for leaf in weights.values()) == sum(leaf.size for leaf in jax.tree.leaves(run.variables))
    for name, leaf in weights.items():
        stored = run.variables
        for part in name.split("."):
            stored = stored[part]
        np.testing.assert_array_equal(leaf, stored)


def test_a_changed_byte_of_any_file_is_a_sentence(exported, tmp_path):
    out = shutil.copytree(exported[0], tmp_path / "copy")
    for path in sorted(out.iterdir()):
        content = path.read_bytes()
        middle, last = len(content) // 2, len(content) - 1
        # Some bytes of model.json make it another valid description, such as one with another threshold.
        for position in range(0, len(content), 3) if path.name == "model.json" else (0, middle, last):
            changed = bytearray(content)
            changed[position] ^= 1
            path.write_bytes(changed)
            sentence = (
                rf"({path.name} was changed .*|model.json is damaged|this version reads .*): export the run again"
            )
            with pytest.raises(UserError, match=sentence):
                read_export(out)
        path.write_bytes(content)
    read_export(out)


def test_a_missing_file_another_version_and_a_damaged_description_are_sentences(exported, tmp_path):
    out = shutil.copytree(exported[0], tmp_path / "copy")
    content = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps(content | {"format": "pneumojax export 0"}))
    with pytest.raises(UserError, match="has the format 'pneumojax export 0', and this version reads"):
        read_export(out)
    for damaged in ("{", "[]", "{}", json.dumps({"format": module.FORMAT, "files": 3})):
        (out / "model.json").write_text(damaged)
        with pytest.raises(UserError, match=r"model.json is damaged: export the run again"):
            read_export(out)
    shutil.copy(exported[0] / "model.json", out)
    (out / "gate.npz").unlink()
    with pytest.raises(UserError, match=r"gate.npz is missing: export the run again"):
        read_export(out)


def test_an_export_without_a_gate_needs_nogate(make_run, tmp_path):
    make_export(open_run(make_run()), tmp_path / "out", gate=False)
    with pytest.raises(UserError, match="was exported with --nogate"):
        open_export(tmp_path / "out", 8, gate=True)
    assert open_export(tmp_path / "out", 8, gate=False).gate is None


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(make_run, tmp_path, monkeypatch):
    run, out = open_run(make_run()), tmp_path / "out"
    ensemble = open_ensemble([make_run(), make_run(seed=1)])
    with pytest.raises(UserError, match="an ensemble cannot be exported"):
        module.check_export(ensemble, out, False)
    with pytest.raises(UserError, match="several test-time views cannot be exported"):
        module.check_export(open_run(run.workdir, test_time_views=2), out, False)
    monkeypatch.setitem(module.TOLERANCES, "model.stablehlo", -1.0)
    with pytest.raises(
        UserError, match="the calibrated probabilities of model.stablehlo differ from those of the checkpoint by"
    ):
        make_export(run, out, gate=False)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(UserError, match="out exists already. Name a new folder with --out"):
        module.check_export(run, out, False)


@pytest.mark.slow
def test_a_run_in_bfloat16_is_exported_in_float32(make_run, tmp_path):
    run = open_run(make_run(dtype="bfloat16"))
    differences, _ = make_export(run, tmp_path / "out", onnx=True, gate=False)
    assert differences["model.onnx"]["calibrated_probabilities"] <= 1e-5
    assert json.loads((tmp_path / "out" / "model.json").read_text())["network"]["dtype"] == "float32"
    assert "bfloat16" in (tmp_path / "out" / "model_card.md").read_text()
