"""Tests of experiments/benchmark.py: its suites, its flags, and small runs from the command to the page."""

import functools
import json
import shlex

import pytest
from absl import flags
from forked import run_script
from planned_cases import TINY, plan

from experiments import benchmark


@pytest.fixture
def run_benchmark(processes, tmp_path):
    """`run_benchmark(...)`: runs the script."""
    return functools.partial(run_script, processes, tmp_path, "experiments/benchmark.py")


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_suites_can_be_planned_with_peers_and_other_flags_replace_theirs(suite):
    for line in benchmark.SUITES[suite]:
        planned = plan(*shlex.split(line), "--peer=torch,keras,pillow", "--image_px=32", "--batch_size=8")
        assert {(case["config"]["image_px"], case["config"]["batch_size"]) for case in planned} == {(32, 8)}
        for case in planned:
            wanted = {"step": ["torch", "keras"], "epoch": ["torch", "keras"], "decode": ["pillow"]}
            assert case["peers"] == wanted.get(case["what"], [])


def test_a_small_run_from_the_command_to_the_page(run_benchmark, tmp_path):
    results = tmp_path / "made" / "rows.jsonl"
    words = [f"--{name}={value}" for name, value in TINY.items()]
    command = ["--what=step", "--repeats=2", "--steps=2", f"--results={results}", *words]
    done = run_benchmark(*command)
    assert done.returncode == 0, done.stderr
    (row,) = (json.loads(line) for line in results.read_text().splitlines())
    assert (row["what"], row["framework"], row["model"], row["batch_size"]) == ("step", "pneumojax", "mlp", 8)
    assert (row["fields"], row["repeats"], row["device"]["count"]) == ({"mlp_widths": [8]}, 2, 1)
    assert row["images_per_second"]["low"] <= row["images_per_second"]["median"] <= row["images_per_second"]["high"]
    assert {"commit", "compile_seconds", "cores", "created", "load", "versions"} <= row.keys()
    assert row["command"].startswith("experiments/benchmark.py --what=step")
    assert "mlp 32 px" in done.stdout and "--plot" in done.stdout
    again = run_benchmark(*command, "--resume")
    assert again.returncode == 0 and "0 rows added" in again.stdout
    late = run_benchmark(*command, "--image_px=32", "--minutes=0")
    assert late.returncode == 0 and "0 rows added" in late.stdout
    assert "before case 1 of 1.\nTo measure the rest: the same command with --resume." in late.stdout
    page = run_benchmark("--plot", f"--results={results}")
    assert page.returncode == 0, page.stderr
    assert "mlp 32 px" in results.with_suffix(".html").read_text()
    nothing = run_benchmark("--plot", f"--results={tmp_path / 'none.jsonl'}")
    assert (nothing.returncode, "holds no rows yet" in nothing.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["gpu", "growth"])
def test_suites_run_in_miniature(run_benchmark, suite, data_dir, tmp_path):
    fields = ["--resnet_width=4", "--image_px=32", "--batch_size=8", "--epochs=2", "--chunk_steps=4"]
    small = [*fields, "--limit=17", "--steps=2", "--repeats=2", "--devices=2", "--dtype=float32"]
    given = [f"--data_dir={data_dir}", f"--results={tmp_path / 'rows.jsonl'}"]
    done = run_benchmark(f"--suite={suite}", *small, *given, timeout=1000)
    assert done.returncode == 0, done.stderr


def test_flags_of_another_script_are_left_alone():
    assert "what" not in flags.FLAGS
