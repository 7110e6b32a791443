"""Tests of fit(): the loop, stopping and resuming, and what it refuses to save."""

import json
import pathlib
import signal
import time

import jax
import numpy as np
import pytest
from multihost import start, wait_for
from run_files import assert_same_run, list_files, read_rows, stop_at

from pneumojax import checkpoint, steps
from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import open_run
from pneumojax.training import fit as fit_module
from pneumojax.training import validation
from pneumojax.training.fit import fit


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


def test_each_start_logs_what_its_chunk_costs_and_each_further_chunk_its_speed(make_config, tmp_path, monkeypatch):
    fit(make_config(epochs=2), tmp_path, report=stop_at(6))
    monkeypatch.setattr(fit_module, "find_peak_flops", lambda kind, dtype: 1e12)
    fit(make_config(epochs=2), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    first = [row["step"] for row in rows if "perf/compile_seconds" in row]
    assert first == [2, 8]
    for row in rows:
        if row["step"] in first:
            assert row["perf/peak_memory_bytes"] > 0
            assert ("perf/flops_per_step" in row) == (row["step"] == 8)  # The first start is on a CPU of unknown peak.
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


# In an epoch, at its end, and in the epoch after a validation.
@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (6, 8))])
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


def fit_here(config, workdir):
    """Runs in a process with one device."""
    fit(config, workdir)


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


@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.slow), "adamw"])
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


@pytest.mark.slow
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
