"""Tests of experiments/benchmark.py: its suites, its flags, and small runs from the command to the page."""

import functools
import json
import shlex

import pytest
from absl import flags
from forked import run_script
from planned_cases import TINY, plan

from experiments import benchmark
from experiments.benchmarks import cases
from pneumojax.errors import UserError


@pytest.fixture
def run_benchmark(processes, tmp_path):
    """`run_benchmark(...)`: runs the script."""
    return functools.partial(run_script, processes, tmp_path, "experiments/benchmark.py")


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_suites_can_be_planned_with_peers_and_other_flags_replace_theirs(suite):
    for line in benchmark.SUITES[suite]:
        planned = plan(
            *shlex.split(line), "--peer=torch,keras,pillow", "--image_px=32", "--batch_size=8", "--progressive_px="
        )
        assert {(case["config"]["image_px"], case["config"]["batch_size"]) for case in planned} == {(32, 8)}
        for case in planned:
            wanted = {"step": ["torch", "keras"], "epoch": ["torch", "keras"], "decode": ["pillow"]}
            assert case["peers"] == ([] if case["xla_flags"] else wanted.get(case["what"], []))


@pytest.mark.slow
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
    assert (nothing.returncode, "holds no measurement yet" in nothing.stderr) == (1, True)


def test_the_plan_for_a_gpu_has_all_parts_and_a_baseline_for_its_flags():
    lines = [shlex.split(line) for line in benchmark.SUITES["gpu"]]
    cases = [case for line in lines for case in plan(*line)]
    assert cases[0]["what"] == "tests"
    whats = {"tests", "step", "epoch", "replicas", "speedrun", "train", "fit", "predict"}
    assert {case["what"] for case in cases} == whats
    (flags_line,) = (line for line in lines if any(word.startswith("--xla_flags") for word in line))
    flag_sets = [case["xla_flags"] for case in plan(*flags_line)]
    assert flag_sets[0] == "none" and len(set(flag_sets)) == len(flag_sets) > 8
    trained = [case["config"] for case in cases if case["what"] == "train"]
    assert [(one["seed"], one["replicas"], one["image_px"]) for one in trained][:3] == [(s, 1, 128) for s in range(3)]
    assert {case["config"]["replica_map"] for case in cases if case["what"] == "replicas"} == {"vmap", "map"}


def test_a_case_that_fails_is_a_row_with_its_reason_and_resuming_goes_on(monkeypatch, capsys, tmp_path):
    results, measured = tmp_path / "rows.jsonl", []

    def measure_in_turn(case, folder, python):
        measured.append(case["config"]["batch_size"])
        if case["config"]["batch_size"] == 16:
            raise ChildProcessError("pneumojax: RESOURCE_EXHAUSTED")
        if case["config"]["batch_size"] == 64:
            raise KeyboardInterrupt  # The command is killed.
        if case["config"]["batch_size"] == 32:
            raise UserError("the data set is not prepared.")
        return [cases.describe_choices(case, "pneumojax") | {"error": "none"}]

    monkeypatch.setattr(benchmark, "measure_in_turn", measure_in_turn)
    monkeypatch.setitem(benchmark.SUITES, "gpu", ("--what=step --batch_size=8,16,32,64,128",))
    words = ["benchmark.py", "--suite=gpu", "--minutes=9", f"--results={results}"]

    def run(*more):
        monkeypatch.setattr("sys.argv", [*words, *more])
        monkeypatch.setattr(benchmark.flags, "FLAGS", benchmark.parse([*words[1:], *more]))
        return benchmark.main()

    with pytest.raises(KeyboardInterrupt):
        run()
    assert measured == [8, 16, 32, 64]
    reasons = [json.loads(line)["error"] for line in results.read_text().splitlines()]
    assert reasons == ["none", "pneumojax: RESOURCE_EXHAUSTED", "the data set is not prepared."]
    with pytest.raises(KeyboardInterrupt):
        run("--resume")
    assert measured[4:] == [64]
    monkeypatch.setitem(benchmark.SUITES, "gpu", ("--what=step --batch_size=8,16,32,128",))
    assert run("--resume") == 1 and measured[5:] == [128]
    assert "RESOURCE_EXHAUSTED" not in capsys.readouterr().out  # Only rows of this call are printed.


@pytest.mark.slow
def test_a_flag_that_xla_does_not_know_and_a_case_that_is_late_are_rows(run_benchmark, tmp_path):
    results = tmp_path / "rows.jsonl"
    given = [*(f"--{name}={value}" for name, value in TINY.items()), "--repeats=2", "--steps=1", f"--results={results}"]
    done = run_benchmark("--xla_flags=--xla_no_such_flag=1", *given)
    late = run_benchmark("--case_minutes=0.001", *given)
    assert (done.returncode, late.returncode) == (1, 1), done.stderr + late.stderr
    unknown, ended = (json.loads(line) for line in results.read_text().splitlines())
    assert unknown["error"] == "pneumojax: Unknown flag in XLA_FLAGS: --xla_no_such_flag=1"
    assert ended["error"] == "pneumojax: it was ended after 0.001 minutes"
    assert "1 of 1 rows have an error" in done.stderr and "Unknown flag" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "more"), [("gpu", "--model=resnet9 --noaugment --seed=0"), ("growth", "")])
def test_suites_run_in_miniature(run_benchmark, suite, more, data_dir, tmp_path):
    small = (
        "--resnet_width=4 --image_px=32 --progressive_px= --batch_size=8 --epochs=2 --chunk_steps=4 --limit=17 "
        f"--steps=2 --repeats=2 --devices=2 --dtype=float32 --xla_flags={cases.NO_FLAGS}"
    )
    given = [f"--data_dir={data_dir}", f"--results={tmp_path / 'rows.jsonl'}"]
    # Sixteen processes that compile take eight minutes on two cores, and several times that beside other tests.
    done = run_benchmark(f"--suite={suite}", *shlex.split(f"{small} {more}"), *given, timeout=3000)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    failed = [row for row in rows if "error" in row]
    assert all("torch" in row["framework"] for row in failed), failed  # PyTorch may not be installed here.
    assert done.returncode == bool(failed), done.stderr


def test_flags_of_another_script_are_left_alone():
    assert "what" not in flags.FLAGS
