"""Tests of trainings in several processes: they train as one process does, on the same images."""

import os
import signal

import jax
import numpy as np
import pytest
from multihost import fit_in_process, join_all, join_processes, start_together, wait_for
from run_files import assert_same_run, read_rows

from pneumojax.errors import LostProcessError
from pneumojax.evaluation.run import open_run
from pneumojax.training import metric_log
from pneumojax.training.fit import fit

# This compiles fast. test_steps.py tests that random numbers do not depend on the device.
SPREAD = {
    "cnn_widths": (4,),
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "contrast": 0.0,
    "gamma": 0.0,
}


def fit_whole_and_stopped(number, count, port, devices, config, workdir):
    """Runs as one of several processes that train a run, and again with a stop and a second start."""
    fit_in_process(number, count, port, devices, config, workdir / "whole")
    in_epochs = metric_log.MetricLog.write_validation
    fit_and_stop(number, count, port, devices, config, workdir / "stopped")
    metric_log.MetricLog.write_validation = in_epochs
    assert fit(config, workdir / "stopped").step == 18


def fit_and_stop(number, count, port, devices, config, workdir):
    """Runs as one of several processes. Only the last one receives a stop request, after the first epoch."""
    join_processes(number, count, port, devices)
    in_epochs = metric_log.MetricLog.write_validation

    def stop_after_validation(log, step, row):
        if number == count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return in_epochs(log, step, row)

    metric_log.MetricLog.write_validation = stop_after_validation
    result = fit(config, workdir)
    assert (result.step, result.total_steps) == (6, 18)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "loader"),
    [
        ("jit", "stream"),
        pytest.param("jit", "resident", marks=pytest.mark.slow),
        pytest.param("shard_map", "resident", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one_and_go_on_bitwise(make_config, tmp_path, processes, parallel, loader):
    fields = SPREAD | {"parallel": parallel}
    config = make_config(**fields, loader=loader, multihost=True)
    two = start_together(processes, 2, fit_whole_and_stopped, config, tmp_path)
    fit(make_config(**fields), tmp_path / "one")  # with all devices of this process
    assert join_all(two) == [0, 0]
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    # Sums over devices in another order differ in the last bits of float32, and the difference grows with each step.
    assert_near_rows(tmp_path / "whole", tmp_path / "one", 1e-4)
    assert open_run(tmp_path / "whole", "latest").step == 18


def assert_near_rows(ours, theirs, tolerance):
    rows, expected = read_rows(ours), read_rows(theirs)
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=tolerance)


@pytest.mark.slow
def test_what_four_processes_began_one_opens_and_two_go_on_with_as_one_would(make_config, tmp_path, processes):
    fields = SPREAD | {"model": "mlp"}
    config = make_config(**fields, loader="stream", multihost=True)
    four = start_together(processes, 4, fit_and_stop, config, tmp_path / "run")
    fit(make_config(**fields), tmp_path / "one")  # with all devices of this process
    assert join_all(four) == [0] * 4
    assert open_run(tmp_path / "run", "latest").step == 6
    assert join_all(start_together(processes, 2, fit_in_process, config, tmp_path / "run", devices=2)) == [0, 0]
    assert_near_rows(tmp_path / "run", tmp_path / "one", 1e-4)


def fit_until_lost(number, count, port, devices, config, workdir):
    """Ends with code 4 if another process is lost, and writes the message to a file."""
    join_processes(number, count, port, devices)
    try:
        fit(config, workdir)
    except LostProcessError as error:
        (workdir / f"sentence{number}").write_text(str(error))
        os._exit(4)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_a_process_is_killed_the_other_ends_too_and_the_last_checkpoint_is_good(
    make_config, tmp_path, processes, victim
):
    config = make_config(epochs=2000, loader="stream", multihost=True)
    both = start_together(processes, 2, fit_until_lost, config, tmp_path)
    log = tmp_path / "metrics.jsonl"
    assert wait_for(lambda: log.exists() and log.read_text().count("val/auroc") >= 3, both[victim], 100)
    both[victim].kill()
    code = join_all(both)[1 - victim]
    if victim == 1:
        assert code == 4
        assert "another process of this run has ended" in (tmp_path / "sentence0").read_text()
    else:  # JAX may abort by itself if its coordinator has ended.
        assert code in (4, -signal.SIGABRT)
    run = open_run(tmp_path, "latest")
    assert run.step >= 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables))
