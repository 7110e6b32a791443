"""Tests of experiments/export.py, and of the folder that it makes."""

import csv
import subprocess
import sys

import pytest
from encoded_images import encode, smooth_pixels
from forked import run_script


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "child.jpeg"
    path.write_bytes(encode(smooth_pixels(40, 50, 0), "JPEG"))
    return path


@pytest.mark.slow
def test_an_export_predicts_with_predict_and_with_the_example_what_its_run_predicts(
    make_run, processes, image, tmp_path
):
    out, rows = tmp_path / "model", []
    done = run_script(processes, tmp_path, "experiments/export.py", f"--workdir={make_run()}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert f"Next: scripts/run experiments/predict.py --workdir={out} --out=predictions.csv FOLDER" in done.stdout
    for workdir in (make_run(), out):
        table = tmp_path / f"{workdir.name}.csv"
        done = run_script(
            processes, tmp_path, "experiments/predict.py", f"--workdir={workdir}", f"--out={table}", image
        )
        assert done.returncode == 0, done.stderr
        rows.append(next(csv.DictReader(table.open(newline=""))))
    assert float(rows[0].pop("score")) == pytest.approx(float(rows[1].pop("score")), abs=1e-5)
    names = [name for name in rows[0] if name.startswith("calibrated_probability_")]
    probabilities = [[float(row.pop(name)) for name in names] for row in rows]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    assert rows[0] == rows[1]
    # The example runs in an empty folder, where this package cannot be imported.
    command = [sys.executable, "-P", out / "example.py", out, image]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(rows[0]["decision"])
    assert "import pneumojax" not in (out / "example.py").read_text()


def test_an_export_is_named_alone_and_has_fixed_views(make_run, processes, image, tmp_path):
    out = tmp_path / "model"
    words = (f"--workdir={make_run()}", f"--out={out}", "--noonnx", "--nogate")
    assert run_script(processes, tmp_path, "experiments/export.py", *words).returncode == 0
    for arguments, message in (
        ((f"--workdir={out},{make_run()}",), "is an export, which cannot be a member of an ensemble: name it alone."),
        ((f"--workdir={out}", "--test_time_views=2"), "is an export, whose number of views is fixed"),
        ((f"--workdir={out}",), "was exported with --nogate: give --nogate here too"),
    ):
        words = (*arguments, f"--out={tmp_path / 'out.csv'}", image)
        done = run_script(processes, tmp_path, "experiments/predict.py", *words)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr
    done = run_script(processes, tmp_path, "experiments/export.py", f"--workdir={make_run()}", f"--out={out}")
    assert done.returncode == 1 and "model exists already." in done.stderr
