"""Tests of the measurement of the gate."""

import dataclasses
import shutil

import numpy as np
import pytest

from pneumojax.data.dataset import load_split
from pneumojax.data.decode import decode_image
from pneumojax.evaluation import gate_probes, gate_report, gate_training
from pneumojax.evaluation.classifier import make_classifier
from pneumojax.evaluation.gate_report import measure_gate, read_files
from pneumojax.evaluation.run import open_run


@pytest.fixture(scope="module")
def opened(make_run, tmp_path_factory):
    """A run, and its classifier with a gate."""
    run = open_run(shutil.copytree(make_run(image_px=32), tmp_path_factory.mktemp("gate") / "run"))
    classifier = make_classifier(run, 16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_training, "MAX_ITERATIONS", 40)
        return run, dataclasses.replace(classifier, gate=gate_training.load_or_train_gate(run, classifier))


@pytest.mark.slow
@pytest.mark.parametrize("folds", [None, 2])
def test_the_files_of_a_split_are_in_its_order(opened, folds):
    config = dataclasses.replace(opened[0].config.data, folds=folds)
    split = load_split(config, "validation")
    decoded = [decode_image(data, config.image_px) for data in read_files(config, split)]
    np.testing.assert_array_equal(np.stack(decoded), split.images)


@pytest.mark.slow
def test_the_tables_count_the_flags_of_each_kind(opened, monkeypatch):
    monkeypatch.setattr(gate_probes, "CROPS", 2)
    monkeypatch.setattr(gate_probes, "GENERATED_IMAGES", 2)
    run, classifier = opened
    shares = {}

    def find_flags(classifier, files):
        flags = original(classifier, files)
        shares[len(shares)] = np.mean([bool(one) for one in flags])
        return flags

    original = gate_report.find_flags
    monkeypatch.setattr(gate_report, "find_flags", find_flags)
    false_flags, *tables = measure_gate(run, classifier)
    assert len(tables) == len(gate_report.HEADINGS)
    number = len(load_split(run.config.data, "validation"))
    assert false_flags.rows[0][:3] == ["any", str(number), str(round(shares[0] * number))]
    rows = [row for table in tables for row in table.rows]
    assert len(rows) == len(shares) - 1
    for row, share in zip(rows, list(shares.values())[1:], strict=True):
        assert row[2].startswith(f"{100 * share:.1f} (") and row[2].endswith(") %")
    assert {row[0]: row[2] for row in rows}["photographs in colour"].startswith("100.0")
