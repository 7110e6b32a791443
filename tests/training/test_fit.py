"""Tests of fit(): the loop, stopping and resuming, and which workdirs it accepts."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import pytest
from run_files import assert_same_run, list_files, read_rows, stop_at

from pneumojax import checkpoint, parallel, steps
from pneumojax.data import stream
from pneumojax.data.dataset import load_split
from pneumojax.errors import LostProcessError, UserError
from pneumojax.evaluation import operating_point
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import open_run
from pneumojax.reporting.figures import training as figures
from pneumojax.sharding import initialize
from pneumojax.training import fit as fit_module
from pneumojax.training import metric_log, validation
from pneumojax.training import workdir as workdir_module
from pneumojax.training.fit import fit


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """An uninterrupted run of 3 epochs of 6 steps. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, fit(make_config(), workdir)


def test_a_run_leaves_what_belongs_to_it_and_says_what_it_reached(finished):
    workdir, result = finished
    assert {path.name for path in workdir.iterdir()} == {
        ".lock",
        "calibration.json",
        "checkpoints",
        "config.json",
        "learning_curves.png",
        "metrics.jsonl",
        "threshold.json",
    }
    assert (result.step, result.total_steps, result.steps_per_epoch, result.trained_steps) == (18, 18, 6, 18)
    rows = read_rows(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(2, 19, 2))
    scores = {row["step"]: row["val/auroc"] for row in rows if "val/auroc" in row}
    assert list(scores) == [6, 12, 18]
    assert result.best_auroc == max(scores.values())
    assert result.best_step == max(step for step, score in scores.items() if score == result.best_auroc)
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {result.best_step, 18}
    assert result.threshold == json.loads((workdir / "threshold.json").read_text())
    assert result.threshold["split"] == "validation"
    run = json.loads((workdir / "config.json").read_text())
    assert run["class_names"] == ["NORMAL", "PNEUMONIA"]
    assert run["pixels"]["range"] == [0, 255]
    assert run["image_px"] == 32
    assert set(run["data"]["fingerprints"]) >= {"train", "validation"}
    assert checkpoint.load_run(workdir, "best")[0] == run


def test_each_start_logs_what_its_chunk_costs_and_each_further_chunk_its_speed(make_config, tmp_path):
    fit(make_config(epochs=2), tmp_path, report=stop_at(6), count_flops=True)
    fit(make_config(epochs=2), tmp_path, count_flops=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    first = [row["step"] for row in rows if "perf/compile_seconds" in row]
    assert first == [2, 8]
    for row in rows:
        if row["step"] in first:
            assert row["perf/flops_per_step"] > 0 and row["perf/peak_memory_bytes"] > 0
        else:
            assert row["perf/images_per_second"] > 0 and 0 <= row["perf/host_share"] <= 1
        assert "perf/model_flop_utilisation" not in row  # The peak rate of a CPU is not known.


def test_the_logged_auroc_of_the_best_checkpoint_is_the_one_it_has(finished):
    workdir, result = finished
    run = open_run(workdir, "best")
    split = load_split(run.config.data, "validation")
    scores = 1 - compute_probabilities(run.predict(split.images))[:, 0]
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[split.subtypes > 0] for b in scores[split.subtypes == 0]]
    assert run.step == result.best_step
    np.testing.assert_allclose(np.mean(pairs), result.best_auroc, atol=1e-9)


@pytest.mark.parametrize("step", [4, 6, 8])
def test_a_run_stopped_by_sigterm_goes_on_bitwise(finished, make_config, tmp_path, step):
    first = fit(make_config(), tmp_path, report=stop_at(step))
    assert first.stopped_by == signal.SIGTERM
    assert step <= first.step < 18
    assert first.threshold is None
    assert checkpoint.load_run(tmp_path, "latest")[2] == first.step
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 1')  # as after a crash
    second = fit(make_config(), tmp_path)
    assert second.stopped_by is None
    assert second.trained_steps == 18 - first.step
    assert (second.best_step, second.best_auroc) == (finished[1].best_step, finished[1].best_auroc)
    assert_same_run(tmp_path, finished[0])


def test_a_run_that_the_report_stops_can_be_opened_and_goes_on_bitwise(finished, make_config, tmp_path):
    first = fit(make_config(), tmp_path, report=lambda row, total_steps: "val/auroc" in row)
    assert (first.step, first.best_step, first.stopped_by) == (6, 6, None)
    assert open_run(tmp_path).step == 6
    assert fit(make_config(), tmp_path).trained_steps == 12
    assert_same_run(tmp_path, finished[0])


@pytest.mark.slow
def test_a_streamed_run_is_bitwise_the_resident_one_stopped_or_not(make_config, compile_as_users_do, tmp_path):
    config = make_config(loader="stream")
    with compile_as_users_do():
        fit(make_config(), tmp_path / "resident")
        assert fit(config, tmp_path / "streamed", report=stop_at(8)).step < 18
        fit(config, tmp_path / "streamed")
    assert_same_run(tmp_path / "streamed", tmp_path / "resident")


def test_streamed_predictions_are_bitwise_the_resident_ones(finished, make_config):
    run = open_run(finished[0])
    images = np.random.default_rng(0).integers(0, 256, (37, 32, 32), np.uint8)
    logits = [
        dataclasses.replace(run, config=make_config(loader=loader, eval_batch_size=8)).predict(images)
        for loader in ("resident", "stream")
    ]
    assert logits[0].shape == (37, 2)
    np.testing.assert_array_equal(*logits)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["shard_map", "pmap"])
def test_mapped_streams_are_bitwise_the_resident_runs(make_config, tmp_path, parallel):
    for loader in ("resident", "stream"):
        fit(make_config(parallel=parallel, loader=loader, epochs=1), tmp_path / loader)
    assert_same_run(tmp_path / "stream", tmp_path / "resident")


@pytest.mark.slow
def test_images_grow_with_the_epochs_each_size_compiles_once_and_a_stopped_run_goes_on_bitwise(
    make_config, tmp_path, monkeypatch
):
    sizes, compiled, calls = {}, [], []
    chunk_of, compile_it = steps.make_train_chunk, fit_module.compile_chunk

    def make_train_chunk(*arguments):
        chunk = chunk_of(*arguments)
        sizes[id(chunk)] = arguments[-1]
        return chunk

    def compile_chunk(chunk, *arguments):
        call, costs = compile_it(chunk, *arguments)
        compiled.append(sizes[id(chunk)])
        return lambda *inputs: calls.append(sizes[id(chunk)]) or call(*inputs), costs

    monkeypatch.setattr(steps, "make_train_chunk", make_train_chunk)
    monkeypatch.setattr(fit_module, "compile_chunk", compile_chunk)
    config = make_config(progressive_px=(16, 32), epochs=4, loader="stream")
    whole = fit(config, tmp_path / "whole")
    assert whole.step == 24
    assert calls == [16] * 6 + [32] * 6  # 3 chunks in an epoch.
    assert compiled == [16, 32]
    timed = [row["step"] for row in map(json.loads, (tmp_path / "whole/metrics.jsonl").open()) if has_speed(row)]
    assert timed == [4, 6, 8, 10, 12, 16, 18, 20, 22, 24]  # The two chunks that include compilation are not counted.
    assert fit(config, tmp_path / "stopped", report=stop_at(10)).step < 24
    fit(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def has_speed(row):
    return "perf/images_per_second" in row


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["shard_map", "pmap"])
def test_mapped_runs_go_on_bitwise_too(make_config, tmp_path, parallel):
    config = make_config(parallel=parallel, batch_norm="local", epochs=2)
    fit(config, tmp_path / "whole")
    assert fit(config, tmp_path / "stopped", report=stop_at(4)).stopped_by == signal.SIGTERM
    fit(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_signal_before_the_first_step_leaves_a_workdir_to_go_on_in(finished, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fit_module, "MetricLog", lambda *args: os.kill(os.getpid(), signal.SIGINT) or pytest.fail("ended")
    )
    with pytest.raises(KeyboardInterrupt):  # Before the loop there is nothing to save, so the command only ends.
        fit(make_config(), tmp_path)
    monkeypatch.undo()
    fit(make_config(), tmp_path)
    assert_same_run(tmp_path, finished[0])


def test_signal_handlers_are_put_back(finished):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def fit_here(config, workdir):
    """Runs in a process with one device."""
    fit(config, workdir)


def start(processes, function, *arguments):
    process = processes.Process(target=function, args=arguments)
    process.start()
    return process


def wait_for(condition, process, seconds=60):
    """Waits for a condition. Returns whether it was true before the process ended."""
    end = time.monotonic() + seconds
    while not condition():
        if not process.is_alive():
            return False
        assert time.monotonic() < end
        time.sleep(0.001)
    return True


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_bitwise(make_config, tmp_path, processes):
    config = make_config(epochs=8, chunk_steps=1)
    whole = start(processes, fit_here, config, tmp_path / "whole")
    whole.join(60)
    assert whole.exitcode == 0
    workdir = tmp_path / "killed"
    draws = np.random.default_rng()
    checkpoints = workdir / "checkpoints"

    def is_saving():
        return any("tmp" in path.name for path in checkpoints.glob("*")) if checkpoints.exists() else False

    def has_rows(number):
        log = workdir / "metrics.jsonl"
        return log.exists() and log.read_text().count("\n") >= number

    moments = [is_saving, lambda: has_rows(16 + draws.integers(12)), lambda: has_rows(30) and is_saving()]
    kills = 0
    for moment in moments:
        process = start(processes, fit_here, config, workdir)
        if wait_for(moment, process):
            time.sleep(draws.uniform(0, 0.02))
            process.kill()
            kills += 1
        process.join(60)
    assert kills >= 2
    process = start(processes, fit_here, config, workdir)
    process.join(60)
    assert process.exitcode == 0
    assert_same_run(workdir, tmp_path / "whole")
    assert {path.name for path in checkpoints.iterdir()} == {p.name for p in (tmp_path / "whole/checkpoints").iterdir()}


def test_a_finished_run_started_again_changes_nothing(finished, make_config):
    workdir, first = finished
    before = list_files(workdir)
    again = fit(make_config(), workdir)
    assert again.trained_steps == 0
    assert (again.step, again.best_step, again.threshold) == (18, first.best_step, first.threshold)
    assert list_files(workdir) == before


def test_another_config_or_other_data_is_refused_and_nothing_changes(finished, make_config, data_dir, tmp_path):
    workdir, _ = finished
    before = list_files(workdir)
    with pytest.raises(UserError, match=r"learning_rate was 0\.001, is 0\.01; seed was 0, is 4\. .*--restart"):
        fit(make_config(seed=4, learning_rate=0.01), workdir)
    other = tmp_path / "data"
    shutil.copytree(data_dir, other)
    (record,) = other.rglob("metadata.json")
    record.write_text(record.read_text().replace(json.loads(record.read_text())["fingerprint"], "0" * 64))
    with pytest.raises(UserError, match="the data was [0-9a-f]+, is 0000"):
        fit(make_config(data_dir=str(other)), workdir)
    assert list_files(workdir) == before


def test_restart_begins_anew_and_keeps_what_is_not_the_runs(finished, make_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "notes.txt").write_text("mine")
    (workdir / "evaluation" / "test").mkdir(parents=True)
    result = fit(make_config(epochs=1, seed=9), workdir, restart=True)
    assert (result.step, result.trained_steps) == (6, 6)
    assert [row["step"] for row in read_rows(workdir)][-1] == 6
    assert json.loads((workdir / "config.json").read_text())["config"]["seed"] == 9
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"6"}
    assert (workdir / "notes.txt").exists()
    assert not (workdir / "evaluation").exists()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("files", [{"checkpoints/x": ""}, {"checkpoints/x": "", "config.json": '{"hidden_size": 768}'}])
def test_a_folder_of_another_program_is_left_alone(make_config, tmp_path, restart, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"not (a run|of a run) of pneumojax"):
        fit(make_config(), tmp_path, restart=restart)
    assert all((tmp_path / name).read_text() == text for name, text in files.items())


def test_a_workdir_that_is_a_file_is_named(make_config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run is a file, not a folder"):
        fit(make_config(), tmp_path / "run")


def test_a_damaged_latest_checkpoint_is_named_and_without_it_the_run_goes_on_from_the_one_before(
    finished, make_config, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    latest = workdir / "checkpoints" / "18"
    for path in (path for path in (latest / "state").rglob("*") if path.is_file()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/18 cannot be opened .* Delete the folder of that step"):
        fit(make_config(), workdir)
    shutil.rmtree(latest)
    fit(make_config(), workdir)
    assert_same_run(workdir, finished[0])


def test_a_second_training_in_one_workdir_is_refused(make_config, tmp_path):
    refused = []

    def report(row, total_steps):
        if not refused:
            # The report is called while the first training holds its lock, which represents another process.
            with jax.transfer_guard("allow"), pytest.raises(UserError, match="another training is running in"):
                fit(make_config(), tmp_path)
            refused.append(row)

    fit(make_config(epochs=1), tmp_path, report=report)
    assert refused


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_checkpoint(make_config, tmp_path, optimizer):
    config = make_config(optimizer=optimizer, learning_rate=1e30, warmup=0.9, epochs=20)
    with pytest.raises(UserError, match=r"not finite at step \d+ of 120.*last good checkpoint is kept.*learning_rate"):
        fit(config, tmp_path)
    rows = read_rows(tmp_path)
    assert all(np.isfinite(row.get("train/loss", 0)) for row in rows)
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if "tmp" in path.name]


def test_after_a_loss_that_is_not_finite_the_last_good_checkpoint_opens(make_config, tmp_path, monkeypatch):
    compile_chunk = fit_module.compile_chunk

    def poison(*arguments):
        chunk, costs = compile_chunk(*arguments)

        def train_chunk(*arguments):
            state, sums = chunk(*arguments)
            with jax.transfer_guard("allow"):
                return state, sums | {"loss": jax.numpy.where(state.step == 10, jax.numpy.nan, sums["loss"])}

        return train_chunk, costs

    monkeypatch.setattr(fit_module, "compile_chunk", poison)
    with pytest.raises(UserError, match="not finite at step 9 of 18"):
        fit(make_config(), tmp_path)
    run = open_run(tmp_path, "latest")
    assert run.step == 6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables))


def test_a_validation_that_is_not_finite_is_not_saved(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "compute_probabilities", lambda logits: np.full((len(logits), 2), np.nan))
    with pytest.raises(UserError, match="not finite at step 6 of 18"):
        fit(make_config(), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_batches_that_do_not_fit_are_refused_before_anything_is_written(make_config, tmp_path):
    with pytest.raises(UserError, match="batch_size 4096 is larger than the training split of"):
        fit(make_config(batch_size=4096), tmp_path / "run")
    with pytest.raises(UserError, match="batch_size 20 is not divisible by the 8 devices"):
        fit(make_config(batch_size=20), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_compiles_its_chunk_once(make_config, tmp_path):
    compiled, at_row = [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    try:
        fit(make_config(epochs=3), tmp_path, report=lambda row, _: at_row.setdefault(row["step"], len(compiled)))
    finally:
        jax.monitoring.clear_event_listeners()
    # The first row of an epoch is written during its second chunk, after the validation of the previous epoch.
    assert at_row[8] == at_row[18]


def test_a_hidden_copy_in_the_loop_is_an_error(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "put_batches", lambda batches, config, mesh: batches)
    with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
        fit(make_config(), tmp_path)


def join_processes(number, count, port, devices):
    """Makes this process one of several, each with its own devices."""
    jax.config.update("jax_num_cpu_devices", devices)
    if number is not None:
        environment = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        os.environ.update(environment)


def start_together(processes, count, function, *arguments, devices=1):
    """Starts several processes that connect to each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(processes, function, number, count, port, devices, *arguments) for number in range(count)]


def join_all(started, seconds=200):
    """Returns the exit codes of the processes."""
    for process in started:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            pytest.fail("a process hangs")
    return [process.exitcode for process in started]


def count_rows(chosen):
    """stream_rows that adds the number of rows that this process reads for training to a list."""
    original = stream.stream_rows

    class Counted:
        def __init__(self, column):
            self.column, self.shape = column, column.shape

        def __getitem__(self, index):
            chosen.append(index.size)
            return self.column[index]

    def stream_counted(columns, *rest):
        if len(columns) > 1:  # Validation streams images without their labels.
            columns = (Counted(columns[0]), *columns[1:])
        return original(columns, *rest)

    return stream_counted


def fit_in_process(number, count, port, devices, config, workdir):
    """Runs as one process of several. Processes other than 0 must write only their part of a checkpoint."""
    join_processes(number, count, port, devices)
    reports, read = [], []
    stream.stream_rows = count_rows(read)
    if number:
        for module in (metric_log, workdir_module, operating_point, figures):
            for name in ("append_row", "write_json", "write_text", "truncate_rows", "save_learning_curves"):
                if hasattr(module, name):
                    setattr(module, name, None)
    result = fit(config, workdir, report=lambda row, total_steps: reports.append(row))
    assert jax.device_count() == devices * count
    assert result.threshold is not None
    assert bool(reports) == (not number)
    if config.train.loader == "stream":
        assert sum(read) == result.trained_steps * config.train.batch_size // count


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


def fit_and_tell(*arguments):
    """Ends with code 3 if the workdir cannot be used."""
    try:
        fit_in_process(*arguments)
    except UserError:
        os._exit(3)


def test_a_workdir_that_process_0_refuses_ends_all_processes(make_config, tmp_path, processes):
    (tmp_path / "config.json").write_text("{}")
    assert join_all(start_together(processes, 2, fit_and_tell, make_config(multihost=True), tmp_path)) == [3, 3]


def start_without_port():
    os.environ.update(JAX_COORDINATOR_ADDRESS="localhost", JAX_NUM_PROCESSES="1", JAX_PROCESS_ID="0")
    with pytest.raises(UserError, match="cannot connect .* JAX_COORDINATOR_ADDRESS .host:port."):
        initialize(multihost=True)


def test_an_address_without_a_port_ends_in_a_sentence(processes):
    assert join_all([start(processes, start_without_port)]) == [0]


def fit_another_run(number, count, port, devices, configs, workdir):
    """Ends with code 3 if the start fails because the processes have different configs."""
    join_processes(number, count, port, devices)
    with pytest.raises(UserError, match="started with different configs or data"):
        fit(configs[number], workdir)
    os._exit(3)


def test_processes_with_different_configs_are_refused_before_anything_is_written(make_config, tmp_path, processes):
    configs = [make_config(model="mlp", seed=seed, multihost=True) for seed in (1, 2)]
    assert join_all(start_together(processes, 2, fit_another_run, configs, tmp_path / "run")) == [3, 3]
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB. Mounting needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_when_there_is_room(finished, make_config, small_disk):
    workdir = small_disk / "run"
    with pytest.raises(UserError, match="cannot be written .* are kept. Free disk space there"):
        fit(make_config(), workdir, report=fill_at(6, small_disk))
    (small_disk / "filler").unlink()
    fit(make_config(), workdir)
    assert_same_run(workdir, finished[0])


def fill_at(step, disk: pathlib.Path):
    """Makes a report that fills the disk when the row of `step` is written."""

    def report(row, total_steps):
        filler = disk / "filler"
        if row["step"] == step and "val/auroc" in row:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(512))
                except OSError:
                    pass

    return report


def test_a_workdir_that_may_not_be_written_is_an_os_error_that_names_it(make_config, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match="Read-only file system.*run"):
        fit(make_config(), small_disk / "run")
