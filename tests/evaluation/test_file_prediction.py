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

from pneumojax.data import decoder_process
from pneumojax.data.dicom import HEADER_FLAGS
from pneumojax.data.image_files import ReadImage
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


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "binary"},
        pytest.param(
            {"task": "three_class", "pixel_scaling": "image", "resize": "crop", "test_time_views": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_scores_and_decisions_are_those_of_the_evaluation(make_run, test_files, tmp_path, fields):
    run = open_run(make_run(**fields))
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
        if fields["task"] == "three_class":
            assert float(row["calibrated_probability_BACTERIA"]) + float(
                row["calibrated_probability_VIRUS"]
            ) == pytest.approx(ours)


def test_bad_files_are_rows_in_the_order_of_the_input(classifier, folder, tmp_path):
    out = tmp_path / "new" / "out.csv"
    counts = predict_files(classifier, find_images([str(folder), str(tmp_path / "missing.png")]), out)
    rows = read_table(out)
    assert (counts.files, counts.predicted, counts.failed) == (23, 20, 3)
    names = [str(pathlib.Path(row["file"]).relative_to(tmp_path)) for row in rows]
    first = sorted([f"images/{i:02}.jpeg" for i in range(0, 20, 2)] + ["images/07 empty.png"])
    second = [f"images/sub/{i:02}.jpeg" for i in range(1, 20, 2)] + ["images/sub/notes.txt"]
    assert names == [*first, *second, "missing.png"]
    errors = {pathlib.Path(row["file"]).name: row["error"] for row in rows if row["error"]}
    assert errors == {
        "07 empty.png": "it is empty",
        "notes.txt": "it is neither JPEG, PNG, TIFF, GIF, BMP, WEBP nor DICOM",
        "missing.png": "No such file or directory",
    }
    for row in rows:
        assert bool(row["error"]) == (row["decision"] == "") == (row["score"] == "")
        assert row["model"] == classifier.model
    alone = read_table(predict_alone(classifier, folder / "sub" / "03.jpeg", tmp_path))
    assert float(alone[0]["score"]) == pytest.approx(float(rows[names.index("images/sub/03.jpeg")]["score"]), abs=1e-6)


def predict_alone(classifier, path, tmp_path):
    predict_files(classifier, find_images([str(path)]), tmp_path / "alone.csv")
    return tmp_path / "alone.csv"


def test_json_lines_hold_the_same_values_with_their_types(classifier, folder, tmp_path):
    for suffix in ("csv", "jsonl"):
        predict_files(classifier, find_images([str(folder)]), tmp_path / f"out.{suffix}")
    rows = read_table(tmp_path / "out.csv")
    objects = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == len(objects)
    for row, one in zip(rows, objects, strict=True):
        assert list(row) == list(one) == classifier.columns
        assert row["file"] == one["file"] and row["error"] == (one["error"] or "")
        assert row["notices"] == "; ".join(one["notices"])
        assert row["flags"] == "; ".join(one["flags"] or [])
        if one["score"] is None:
            assert one["uncertain"] is None and row["uncertain"] == ""
        else:
            assert float(row["score"]) == one["score"]
            assert row["uncertain"] == json.dumps(one["uncertain"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_stopped_command_resumes_from_every_byte(classifier, folder, tmp_path, suffix):
    (folder / "sub" / 'a "name",\nof two lines.jpeg').write_bytes(make_jpeg(99))
    sources, out = list(find_images([str(folder)])), tmp_path / f"out.{suffix}"
    whole = predict_files(classifier, sources, out)
    expected = out.read_bytes()
    predicted = {}

    def predict_stored(classifier, sources):
        for source in sources:
            yield [predicted[source.name]]

    for rows in predict_stream(classifier, sources):
        predicted |= {row["file"]: row for row in rows}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_prediction, "predict_stream", predict_stored)
        for length in range(0, len(expected), 7):
            out.write_bytes(expected[:length])
            assert predict_files(classifier, sources, out) == whole
            assert out.read_bytes() == expected, length
        assert predict_files(classifier, sources, out) == whole
        assert out.read_bytes() == expected


def test_a_file_that_failed_is_tried_again(classifier, folder, tmp_path):
    out = tmp_path / "out.csv"
    predict_files(classifier, find_images([str(folder)]), out)
    before = read_table(out)
    (folder / "07 empty.png").write_bytes(make_jpeg(60))
    counts = predict_files(classifier, find_images([str(folder)]), out)
    assert (counts.files, counts.predicted, counts.failed) == (22, 21, 1)
    rows = read_table(out)
    assert [row["file"] for row in rows] == [row["file"] for row in before]
    changed = [row["file"] for row, old in zip(rows, before, strict=True) if row != old]
    assert changed == [str(folder / "07 empty.png")]
    assert predict_files(classifier, find_images([str(folder / "00.jpeg")]), out) == counts  # Other rows are kept.


def test_a_stop_leaves_whole_batches_and_files_that_came_later_are_appended(classifier, folder, tmp_path):
    out, reports = tmp_path / "out.csv", []
    sources = find_images([str(folder)])
    counts = predict_files(classifier, sources, out, lambda counts: reports.append(counts.files), lambda: True)
    assert (counts.files, reports) == (8, [8])
    early = out.read_text()
    (folder / "00 first.jpeg").write_bytes(make_jpeg(50))
    counts = predict_files(classifier, find_images([str(folder)]), out)
    assert counts.files == 23
    assert out.read_text().startswith(early)
    assert len({row["file"] for row in read_table(out)}) == 23


def test_only_batches_are_read_ahead(classifier):
    started = []

    def generate():
        for i in range(1000):
            started.append(i)
            yield ImageSource(f"{i}", lambda i=i: make_jpeg(i % 3))

    stream = predict_stream(classifier, generate())
    next(stream)
    assert len(started) == 16
    next(stream)
    assert len(started) == 24
    stream.close()


def test_other_tables_are_left_alone(classifier, make_run, folder, tmp_path):
    sources = list(find_images([str(folder)]))
    out = tmp_path / "out.csv"
    predict_files(classifier, sources, out)
    other = make_classifier(open_run(make_run(seed=1)), batch_size=8)
    refused = {
        "out.csv": "holds predictions of another model",
        "labels.csv": "is not a table of predictions \\(its columns are file, label",
        "line.csv": "is not a table of predictions \\(its columns are label",
        "broken.csv": "is not a table of predictions \\(a row has 2 of",
        "labels.jsonl": "is not a table of predictions \\(a row has other columns",
        "text.jsonl": "is not a table of predictions",
        "out.txt": "must end in .csv or .jsonl",
    }
    (tmp_path / "labels.csv").write_text("file,label\na.png,1\n")
    (tmp_path / "line.csv").write_text("label")
    (tmp_path / "broken.csv").write_text(",".join(classifier.columns) + "\na,b\n" + "c")
    (tmp_path / "labels.jsonl").write_text('{"file": "a.png"}\n')
    (tmp_path / "text.jsonl").write_text("some text")
    for name, message in refused.items():
        before = (tmp_path / name).read_bytes() if (tmp_path / name).exists() else None
        with pytest.raises(UserError, match=message):
            predict_files(other, sources, tmp_path / name)
        assert before == ((tmp_path / name).read_bytes() if (tmp_path / name).exists() else None)


def test_names_of_any_kind_survive_the_table(classifier, tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    names = ["a b.png", "Zoë 胸.png", "two\nlines.png", 'quote" and , comma.png', "carriage\rreturn.png", "=1+1.png"]
    for name in names:
        (folder / name).write_bytes(make_jpeg(0))
    (folder / b"\xff\xfe.png".decode("utf-8", "surrogateescape")).write_bytes(make_jpeg(0))
    with zipfile.ZipFile(folder / "images.bin", "w") as archive:
        archive.writestr("../../outside.png", make_jpeg(1))
        archive.writestr("/absolute.png", make_jpeg(1))
    for suffix in ("csv", "jsonl"):
        out = tmp_path / f"out.{suffix}"
        for _ in range(2):  # The second call reads all names and predicts none.
            assert predict_files(classifier, find_images([str(folder)]), out).predicted == 9
    expected = {*names, "\\xff\\xfe.png", "images.bin/../../outside.png", "images.bin//absolute.png"}
    assert {row["file"].removeprefix(f"{folder}/") for row in read_table(tmp_path / "out.csv")} == expected
    assert not (tmp_path.parent / "outside.png").exists()


def test_a_file_is_predicted_once_and_the_table_never(classifier, folder, tmp_path):
    out = folder / "out.csv"
    counts = predict_files(classifier, find_images([str(folder), str(folder / "00.jpeg"), str(folder)]), out)
    assert counts.files == 22
    assert predict_files(classifier, find_images([str(folder)]), out).files == 22


def test_a_defect_of_a_decoder_is_a_row(classifier, monkeypatch):
    monkeypatch.setattr(decoder_process, "read_image", lambda *_: {}["a\nkey"])
    ((row,),) = predict_stream(classifier, [ImageSource("a.jpeg", lambda: make_jpeg(0))])
    assert row["error"] == "it cannot be decoded (KeyError('a\\nkey'))"


CRASHING = """
import os
from pneumojax.data import decoder_process
decoder_process.read_image = lambda data, *_: os.abort() if data == b"crash" else 1 / 0
decoder_process.serve()
"""


def test_a_decoder_that_crashes_is_a_row_between_others(classifier, monkeypatch):
    monkeypatch.setattr(decoder_process, "PROGRAM", CRASHING)
    files = {"a.jpeg": make_jpeg(0), "crash.dcm": b"crash", "defect.dcm": b"x", "b.jpeg": make_jpeg(1)}
    (rows,) = predict_stream(classifier, [ImageSource(name, lambda data=data: data) for name, data in files.items()])
    assert [(row["file"], row["error"], bool(row["decision"])) for row in rows] == [
        ("a.jpeg", None, True),
        ("crash.dcm", "its decoder crashed (SIGABRT)", False),
        ("defect.dcm", "it cannot be decoded (ZeroDivisionError('division by zero'))", False),
        ("b.jpeg", None, True),
    ]


def test_a_stream_that_is_closed_ends_its_processes(classifier, monkeypatch):
    processes, start = [], decoder_process._start
    monkeypatch.setattr(decoder_process, "_start", lambda: processes.append(start()) or processes[-1])
    stream = predict_stream(classifier, [ImageSource(f"{i}", lambda: b"no image") for i in range(30)])
    next(stream)
    assert any(process.poll() is None for process in processes)
    stream.close()
    assert all(process.poll() is not None for process in processes)


def test_what_the_header_of_a_dicom_file_says_is_flagged(classifier, monkeypatch):
    notices = (*(f"{start} (more)" for start in HEADER_FLAGS), "another notice")
    image = ReadImage(np.zeros((16, 16), np.uint8), notices, is_colour=True)
    monkeypatch.setattr(decoder_process, "read_image", lambda *_: image)
    ((row,),) = predict_stream(classifier, [ImageSource("a.jpeg", lambda: make_jpeg(0))])
    assert row["flags"] == ["colour", "burnt_in_text", "lateral", "not_radiograph"]
    assert row["notices"] == list(notices)
