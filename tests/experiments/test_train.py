"""Tests of experiments/train.py with replicas. test_end_to_end.py tests it with a single run."""

import json

import pytest
from forked import run_script


@pytest.mark.slow
def test_replicas_are_trained_as_runs_and_the_next_command_evaluates_them_together(processes, data_dir, tmp_path):
    workdir = tmp_path / "run"
    tiny = ("--image_px=16", "--model=mlp", "--mlp_widths=8", "--batch_size=16", "--epochs=1", "--chunk_steps=2")
    still = ("--rotate_degrees=0", "--shift=0", "--zoom=0")  # Their compilation would take longest.
    given = (f"--data_dir={data_dir}", f"--workdir={workdir}", "--replicas=2", "--seed=4")
    done = run_script(processes, tmp_path, "experiments/train.py", *tiny, *still, *given)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    for replica in range(2):
        threshold = json.loads((workdir / f"replica_{replica}" / "threshold.json").read_text())["value"]
        (row,) = (row for row in rows if row[:2] == [str(replica), str(4 + replica)])
        assert row[-1] == f"{threshold:.4f}"
    assert "Finished 6 steps of 2 replicas." in done.stdout
    next_command = f"scripts/run experiments/evaluate.py --workdir={workdir} --split=validation --data_dir={data_dir}"
    assert done.stdout.rstrip().endswith(f"Next, all as one ensemble: {next_command}")
