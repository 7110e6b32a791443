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


def make_export(run, out, onnx=False, gate=True):
    classifier = make_classifier(run, 8)
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
    assert differences == content["parity"] and 0 <= max(differences.values()) <= 1e-5
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


@pytest.mark.parametrize("name", ["model.stablehlo", "gate.npz", "model.safetensors"])
def test_a_changed_byte_is_found(exported, tmp_path, name):
    out = shutil.copytree(exported[0], tmp_path / "copy")
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} was changed after the export: export the run again"):
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
    (out / "model.json").write_text(json.dumps(content))
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
    half = dataclasses.replace(
        run, config=dataclasses.replace(run.config, model=dataclasses.replace(run.config.model, dtype="bfloat16"))
    )
    with pytest.raises(UserError, match="ONNX is written for float32 only, and this run has bfloat16"):
        module.check_export(half, out, True)
    monkeypatch.setitem(module.TOLERANCES, "model.stablehlo", -1.0)
    with pytest.raises(UserError, match="model.stablehlo differs from the checkpoint by"):
        make_export(run, out, gate=False)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(UserError, match="out exists already. Name a new folder with --out"):
        module.check_export(run, out, False)
