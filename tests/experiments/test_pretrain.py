"""Tests of experiments/pretrain.py."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from pneumojax import checkpoint

ROOT = pathlib.Path(__file__).parents[2]


def run(*words):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_script_ends_with_a_command_that_trains_on_the_backbone(data_dir, tmp_path):
    tiny = [f"--data_dir={data_dir}", "--image_px=32", "--epochs=1", "--batch_size=16"]
    done = run("experiments/pretrain.py", f"--workdir={tmp_path / 'a b'}", "--model=vgg16", "--vgg_width=2", *tiny)
    assert done.returncode == 0, done.stderr
    start, *words = shlex.split(done.stdout.splitlines()[-1].removeprefix("Next: "))
    assert start == "scripts/run"
    trained = run(*words, "--epochs=1", "--vgg_dense_widths=")
    assert trained.returncode == 0, trained.stderr
    run_of = checkpoint.read_run(tmp_path / "a b_tuned" / "config.json")
    assert len(run_of["pretrained_sha256"]) == 64
    refused = run("experiments/pretrain.py", "--task=three_class")
    assert refused.returncode == 1
    assert "Unknown command line flag 'task'" in refused.stderr
