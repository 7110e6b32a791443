"""Tests of experiments/reproduce.py: its table summarises the runs, and a second start trains none of them again."""

import csv
import functools
import json
import statistics

import pytest
from forked import run_script

from experiments.benchmarks.systems import LEAKY, SYSTEMS
from pneumojax.files import read_rows


@pytest.fixture(scope="module")
def reproduce(processes, tmp_path_factory):
    """`reproduce(...)`: runs the script."""
    return functools.partial(run_script, processes, tmp_path_factory.mktemp("printed"), "experiments/reproduce.py")


@pytest.fixture(scope="module")
def reproduced(reproduce, data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reproduce")
    command = ("--quick", f"--data_dir={data_dir}", f"--workdir={workdir}", f"--systems=e1,{LEAKY}", "--seeds=2")
    done = reproduce(*command)
    assert done.returncode == 0, done.stderr
    return workdir, command, done


def read_csv(workdir):
    with (workdir / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(workdir, name):
    runs = (workdir / name / f"seed_{seed}" for seed in range(2))
    return [json.loads((run / "evaluation" / "test" / "metrics.json").read_text())["metrics"] for run in runs]


@pytest.mark.slow
def test_the_table_holds_the_means_over_the_seeds_of_the_runs_own_figures(reproduced):
    workdir, _, done = reproduced
    rows = read_csv(workdir)
    assert {row["system"] for row in rows} == {"e1"}
    assert {row["split"] for row in rows} == {"test"}
    for name, protocol in (("e1", "chosen on validation"), (f"e1_{LEAKY}", "chosen on test (leaky)")):
        of_runs = read_metrics(workdir, name)
        chosen = {row["metric"]: row for row in rows if row["system"] == "e1" and row["protocol"] == protocol}
        assert chosen.keys() == {*of_runs[0], "shift_auroc"}
        logged = [read_rows(workdir / name / f"seed_{seed}" / "metrics.jsonl") for seed in range(2)]
        values = [row["val/shift_auroc"] for rows in logged for row in rows if "val/shift_auroc" in row]  # One epoch.
        assert float(chosen["shift_auroc"]["mean"]) == pytest.approx(statistics.mean(values))
        values = [run["auroc"]["value"] for run in of_runs]
        assert float(chosen["auroc"]["mean"]) == pytest.approx(statistics.mean(values))
        assert float(chosen["auroc"]["standard_deviation"]) == pytest.approx(statistics.stdev(values))
        assert float(chosen["auroc"]["low"]) < float(chosen["auroc"]["mean"]) < float(chosen["auroc"]["high"])
    reported = {
        row["metric"]: row["reported_on_test"] for row in rows if row["system"] == "e1" and row["reported_on_test"]
    }
    assert {metric: float(value) for metric, value in reported.items()} == SYSTEMS["e1"].reported
    page = (workdir / "results.html").read_text()
    for text in (done.stdout, (workdir / "results.md").read_text(), page):
        assert "is a smoke test" in text and "Leaky protocol" in text and "multilayer perceptron" in text


@pytest.mark.slow
def test_a_second_start_trains_nothing_again(reproduce, reproduced):
    workdir, command, _ = reproduced
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.parent != workdir and path.is_file()}
    table = (workdir / "results.csv").read_text()
    (workdir / "results.csv").unlink()
    assert reproduce(*command).returncode == 0
    assert (workdir / "results.csv").read_text() == table
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_cost_was_written_is_no_obstacle(reproduce, reproduced):
    workdir, command, _ = reproduced
    cost = workdir / "e1" / "seed_0" / "cost.json"
    earlier = cost.read_text()
    cost.unlink()
    done = reproduce(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 system, mean") == 1
    assert json.loads(cost.read_text())["images_per_second"] == json.loads(earlier)["images_per_second"]
    cost.write_text(earlier)


@pytest.mark.slow
def test_the_leaky_protocol_chooses_on_test_and_says_so(reproduced):
    workdir, _, _ = reproduced
    for name, split in (("e1", "validation"), (f"e1_{LEAKY}", "test")):
        assert json.loads((workdir / name / "seed_0" / "threshold.json").read_text())["split"] in (split, None)
        assert json.loads((workdir / name / "seed_0" / "calibration.json").read_text())["split"] == split


@pytest.mark.parametrize("argument", ["--systems=a1,z9", "--systems="])
def test_systems_that_do_not_exist_are_named(reproduce, argument):
    done = reproduce("--quick", argument)
    assert done.returncode == 1
    assert "is not a system. There are a1, a2" in done.stderr and "Traceback" not in done.stderr
