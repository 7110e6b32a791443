"""Tests of experiments/predict.py."""

import contextlib
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from encoded_images import encode, smooth_pixels
from forked import ROOT, run_script


@pytest.fixture
def images(tmp_path):
    """A folder with three images and a text file."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(("a.jpeg", "b 1.png", "c.tiff")):
        (folder / name).write_bytes(encode(smooth_pixels(40, 50, i), name.split(".")[1].upper()))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden").write_text("is left out")
    return folder


@pytest.mark.slow
def test_files_folders_and_archives_are_predicted_and_a_second_start_predicts_none(
    make_run, processes, images, tmp_path
):
    out = tmp_path / "out.csv"
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.write(images / "a.jpeg", "inner/a.jpeg")
    arguments = (f"--out={out}", images, tmp_path / "archive")
    printed = []
    for flag in ("workdir", "model"):
        done = run_script(processes, tmp_path, "experiments/predict.py", f"--{flag}={make_run()}", *arguments)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines()[-1])
        rows = list(csv.DictReader(out.open(newline="")))
        assert len(rows) == 5
    failed = [row for row in rows if row["error"]]
    assert [row["file"] for row in failed] == [str(images / "notes.txt")]
    assert rows[-1]["file"] == f"{tmp_path / 'archive'}/inner/a.jpeg"
    pneumonia = sum(row["decision"] == "PNEUMONIA" for row in rows)
    uncertain = sum(row["uncertain"] == "true" for row in rows)
    flagged = sum(bool(row["flags"]) for row in rows)
    line = f"{out}: 5 files, 4 predicted ({pneumonia} PNEUMONIA), {uncertain} uncertain, {flagged} flagged, 1 failed."
    assert printed == [line, line]


def test_several_runs_predict_as_one_ensemble(make_run, processes, images, tmp_path):
    workdirs = [make_run(), make_run(seed=1)]
    out = tmp_path / "out.jsonl"
    arguments = (f"--workdir={workdirs[0]},{workdirs[1]}", f"--out={out}", "--nogate", images)
    done = run_script(processes, tmp_path, "experiments/predict.py", *arguments)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["flags"] for row in rows if row["decision"]] == [[]] * 3


def test_mistakes_are_sentences(make_run, processes, images, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((f"--out={tmp_path / 'out.txt'}", images), "out.txt must end in .csv or .jsonl."),
        ((f"--out={tmp_path / 'out.csv'}", tmp_path / "empty"), "empty: there is no file to predict."),
        ((f"--out={tmp_path / 'out.csv'}",), "needs PATH..., but got nothing."),
    ):
        done = run_script(processes, tmp_path, "experiments/predict.py", f"--workdir={make_run()}", *arguments)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_leaves_whole_rows_and_names_the_command_that_resumes(make_run, images, tmp_path):
    names = [f"{i:05}.jpeg" for i in range(3000)]
    for name in names:
        os.link(images / "a.jpeg", images / name)
    out = tmp_path / "out.csv"
    words = [f"--workdir={make_run()}", f"--out={out}", "--batch_size=16", images]
    command = [sys.executable, "experiments/predict.py", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not (out.exists() and out.stat().st_size > 2000):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, stderr
    rows = list(csv.DictReader(out.open(newline="")))
    assert 0 < len(rows) < 3000 and all(row["decision"] for row in rows)
    assert f"Stopped after {len(rows):,} files, which are in {out}." in stdout
    assert "To resume: scripts/run experiments/predict.py" in stdout


def test_damaged_files_are_rows_and_print_nothing(make_run, processes, tmp_path):
    """pydicom would print a traceback for damaged JPEG 2000, and libtiff a line."""
    folder = tmp_path / "images"
    folder.mkdir()
    tiff = encode(smooth_pixels(40, 50), "TIFF", compression="tiff_lzw")
    (folder / "a.tiff").write_bytes(tiff[:20] + b"\xff" * 200 + tiff[220:])
    (folder / "b.png").write_bytes(encode(smooth_pixels(40, 50))[:500])
    with contextlib.suppress(ImportError):
        from pydicom.data import get_testdata_file

        examples = (get_testdata_file(f"MR_small_{kind}.dcm", download=False) for kind in ("RLE", "jp2klossless"))
        for path in map(pathlib.Path, filter(None, examples)):
            data = path.read_bytes()
            start = data.index(b"\xe0\x7f\x10\x00")
            (folder / path.name).write_bytes(data[: start + 30] + b"\0" * 100 + data[start + 130 :])
    files, out = len(list(folder.iterdir())), tmp_path / "out.csv"
    arguments = (f"--workdir={make_run()}", f"--out={out}", "--nogate", folder)
    done = run_script(processes, tmp_path, "experiments/predict.py", *arguments)
    sentence = f"no file could be predicted ({files} failed). The column error of {out} has the reasons."
    assert (done.returncode, done.stderr) == (1, f"predict.py: {sentence}\n")
    rows = list(csv.DictReader(out.open(newline="")))
    assert len(rows) == files and all(row["error"] for row in rows)
