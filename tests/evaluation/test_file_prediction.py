"""Tests of the prediction of many files: rows, order, resuming, and agreement with the evaluation."""

import csv
import io
import json
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image
from scored import read_csv

from pneumojax.data.image_sources import ImageSource, find_images
from pneumojax.errors import UserError
from pneumojax.evaluation import file_prediction
from pneumojax.evaluation.classifier import make_classifier
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.file_prediction import predict_files, predict_stream
from pneumojax.evaluation.run import open_run
from tfds_builder import kermany_pneumonia


def make_jpeg(seed, size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0]), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def classifier(make_run):
    return make_classifier(open_run(make_run()), batch_size=8)


@pytest.fixture
def folder(tmp_path):
    """A folder with 20 images and two files that are none."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for i in range(20):
        (folder / ("sub" if i % 2 else "") / f"{i:02}.jpeg").write_bytes(make_jpeg(i))
    (folder / "07 empty.png").write_bytes(b"")
    (folder / "sub" / "notes.txt").write_text("not an image")
    return folder


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def test_files(data_dir, tmp_path_factory):
    """The synthetic test images as files: {file name: path}."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("files")
    builder = tfds.builder_from_directory(kermany_pneumonia.dataset_dir("phantom", data_dir))
    source = builder.as_data_source("test", decoders={"image": tfds.decode.SkipDecoding()})
    for example in source:
        (folder / example["filename"].decode()).write_bytes(example["image"])
    return folder


@pytest.mark.parametrize("task", ["binary", "three_class"])
def test_scores_and_decisions_are_those_of_the_evaluation(make_run, test_files, tmp_path, task):
    run = open_run(make_run(task=task))
    results = evaluate(run, "test")
    expected = {row["filename"]: row for row in read_csv(run.workdir, "test")}
    out = tmp_path / "out.csv"
    counts = predict_files(make_classifier(run, batch_size=5), find_images([str(test_files)]), out)
    rows = read_table(out)
    assert counts.files == counts.predicted == len(rows) == len(expected)
    band = results["threshold"]["uncertain"]
    assert counts.uncertain == sum(row["uncertain"] == "true" for row in rows)
    for row in rows:
        theirs = expected[pathlib.Path(row["file"]).name]
        assert float(row["score"]) == pytest.approx(float(theirs["score"]), abs=1e-6)
        ours = float(row["calibrated_probability_PNEUMONIA"])
        assert ours == pytest.approx(float(theirs["calibrated_score"]), abs=1e-6)
        assert row["decision"] == theirs["decision"]
        assert row["uncertain"] == str(band["low"] <= float(row["score"]) <= band["high"]).lower()
        if task == "three_class":
            assert float(row["calibrated_probability_BACTERIA"]) + float(
                row["calibrated_probability_VIRUS"]
            ) == pytest.approx(ours)
