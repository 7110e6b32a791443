"""Tests of experiments/tune.py."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.flags import read_preset
from pneumojax.checkpoint import read_run
from pneumojax.config import config_from_dict
from pneumojax.evaluation.run import open_run

pytest.importorskip("optuna")

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_script_searches_writes_its_files_and_names_the_next_command(data_dir, tmp_path):
    (tmp_path / "space.toml").write_text("[learning_rate]\nlow = 1e-3\nhigh = 1e-2\nlog = true\n")
    workdir = tmp_path / "tune"
    command = [sys.executable, "experiments/tune.py", f"--space={tmp_path / 'space.toml'}", f"--workdir={workdir}"]
    tiny = ["--image_px=32", "--model=mlp", "--mlp_widths=8", "--batch_size=16", "--epochs=1", "--trials=2"]
    done = subprocess.run(
        [*command, f"--data_dir={data_dir}", *tiny],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    with (workdir / "trials.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["trial"] for row in rows] == ["trial_0", "trial_1"]
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["val/auroc"]))
    config = read_preset(workdir / "best.flags")
    assert config == config_from_dict(read_run(workdir / best["trial"] / "config.json")["config"])
    assert config.optimizer.learning_rate == float(best["learning_rate"])
    logged = [json.loads(line) for line in (workdir / best["trial"] / "metrics.jsonl").read_text().splitlines()]
    assert [row["val/auroc"] for row in logged if "val/auroc" in row][-1] == float(best["val/auroc"])
    assert open_run(workdir / best["trial"], data_dir=str(data_dir)).step == 6
    assert (workdir / "tune.png").read_bytes().startswith(b"\x89PNG")
    page = (workdir / "tune.html").read_text()
    assert f"{float(best['val/auroc']):.4f}" in page
    assert "synthetic radiographs, not patients" in page
    assert f"--flagfile={workdir / 'best.flags'}" in done.stdout.splitlines()[-1]
