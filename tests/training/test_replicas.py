"""Tests of replicas: each equals the single run with its config, on any number of devices, resumed or not."""

import json
import shutil
import signal

import numpy as np
import pytest
from run_files import assert_same_run, list_files, read_rows, stop_at
from trainer import SWEEP

from experiments.progress import format_replicas
from pneumojax.config import config_from_dict, config_to_dict
from pneumojax.errors import UserError
from pneumojax.evaluation import point_metrics
from pneumojax.evaluation.ensemble import open_ensemble, open_replicas
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.operating_point import load_or_choose_threshold
from pneumojax.evaluation.run import open_run
from pneumojax.training import fit as fit_module
from pneumojax.training import replicas
from pneumojax.training.fit import fit
from pneumojax.training.replicas import fit_replicas
from pneumojax.training.sweep import plan_replicas

# This trains fast. test_replica_steps.py tests the step with all random operations.
LIGHT = {
    "model": "mlp",
    "epochs": 2,
    "optimizer": "sgd",
    "contrast": 0.0,
    "gamma": 0.0,
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "sweep.toml"
    path.write_text(SWEEP)
    return str(path)


@pytest.fixture(scope="module")
def finished(make_config, sweep, tmp_path_factory):
    """An uninterrupted run of two replicas, 2 epochs of 6 steps. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    config, rows = make_config(**LIGHT, replicas=2, sweep=sweep), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "find_peak_flops", lambda kind, dtype: 1e12)
        return workdir, config, fit_replicas(config, workdir, report=lambda row, total: rows.append(row)), rows


def test_a_replica_is_left_as_the_run_it_stands_for(finished, tmp_path, monkeypatch):
    workdir, config, results, _ = finished
    folder, plan, result = workdir / "replica_1", plan_replicas(config)[1], results[1]
    monkeypatch.setattr(fit_module, "find_peak_flops", lambda kind, dtype: 1e12)
    alone = fit(plan, tmp_path)
    assert {path.name for path in folder.iterdir()} == {path.name for path in tmp_path.iterdir()}
    assert (result.best_step, result.step, result.trained_steps) == (alone.best_step, 12, 12)
    assert_same_run(folder, tmp_path)
    flops = [
        json.loads((f / "metrics.jsonl").read_text().splitlines()[0])["perf/flops_per_step"] for f in (folder, tmp_path)
    ]
    assert flops[0] == pytest.approx(flops[1], rel=0.02)
    before = list_files(folder)
    assert fit(plan, folder).trained_steps == 0  # A start of the single run finds that it is finished.
    assert list_files(folder) == before


@pytest.mark.slow
def test_replicas_of_growing_images_are_left_as_the_runs_they_stand_for(make_config, tmp_path, compile_as_users_do):
    sizes = {"model": "cnn", "cnn_widths": (2, 2), "progressive_px": (16, 32), "flip": False}
    config = make_config(**LIGHT | sizes, replicas=2)
    with compile_as_users_do():
        fit_replicas(config, tmp_path / "all")
        fit(plan_replicas(config)[1], tmp_path / "alone")
    assert_same_run(tmp_path / "all/replica_1", tmp_path / "alone")


def test_the_log_of_all_is_the_mean_of_theirs(finished):
    workdir, _, _, reported = finished
    logs = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (workdir, workdir / "replica_0", workdir / "replica_1")
    ]
    assert logs[0] == reported
    for mean, *both in zip(*logs, strict=True):
        shares = [row.get("perf/host_share", 0) for row in both]
        assert shares[0] == pytest.approx(shares[1], abs=0.1)  # All replicas wait for the same chunk.
        assert mean["step"] == both[0]["step"]
        for name in mean.keys() - {"step"}:
            times = 2 if name in ("perf/images_per_second", "perf/flops_per_step") else 1
            assert mean[name] == pytest.approx(times * np.mean([row[name] for row in both]))


def test_stopped_replicas_go_on_bitwise(finished, tmp_path):
    workdir, config, whole, _ = finished
    first = fit_replicas(config, tmp_path, report=stop_at(4))
    assert {result.stopped_by for result in first} == {signal.SIGTERM}
    assert len({result.step for result in first}) == 1
    assert 4 <= first[0].step < 12
    second = fit_replicas(config, tmp_path)
    assert [result.trained_steps for result in second] == [12 - first[0].step] * 2
    assert [result.best_step for result in second] == [result.best_step for result in whole]
    for r in range(2):
        assert_same_run(tmp_path / f"replica_{r}", workdir / f"replica_{r}")
    assert read_rows(tmp_path) == read_rows(workdir)


@pytest.mark.slow
def test_a_kill_between_two_replicas_saves_loses_no_step_that_both_have(finished, tmp_path, monkeypatch):
    workdir, config, _, _ = finished
    save, saved = replicas.save_checkpoint, []

    def save_some(checkpoints, step, *rest):
        if len(saved) == 3:  # both have step 6, only the first has step 12
            raise KeyboardInterrupt
        saved.append(step)
        save(checkpoints, step, *rest)

    monkeypatch.setattr(replicas, "save_checkpoint", save_some)
    with pytest.raises(KeyboardInterrupt):
        fit_replicas(config, tmp_path)
    monkeypatch.undo()
    assert saved == [6, 6, 12]
    assert (tmp_path / "replica_0/checkpoints/12").exists()
    again = fit_replicas(config, tmp_path)
    assert [result.trained_steps for result in again] == [6, 6]
    for r in range(2):
        assert_same_run(tmp_path / f"replica_{r}", workdir / f"replica_{r}")


def test_finished_replicas_started_again_change_nothing_and_another_sweep_is_refused(finished, tmp_path):
    workdir, config, first, _ = finished
    before = list_files(workdir)
    again = fit_replicas(config, workdir)
    assert [(one.trained_steps, one.threshold) for one in again] == [(0, one.threshold) for one in first]
    other = tmp_path / "other.toml"
    other.write_text(SWEEP.replace("0.05", "0.07"))
    with pytest.raises(UserError, match=r"replica_1 holds a run .* learning_rate was 0\.05, is 0\.07"):
        fit_replicas(config_from_dict(config_to_dict(config) | {"sweep": str(other)}), workdir)
    with pytest.raises(UserError, match="replicas was 2, is 3"):
        fit_replicas(config_from_dict(config_to_dict(config) | {"replicas": 3, "sweep": None}), workdir)
    assert list_files(workdir) == before


def test_the_evaluation_of_the_folder_is_that_of_the_ensemble_of_its_parts(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    both = open_replicas(workdir)
    parts = open_ensemble([workdir / "replica_1", workdir / "replica_0"])
    assert both.workdir == workdir
    results = evaluate(both, "validation")
    split, probabilities = parts.score("validation")
    scores = point_metrics.compute_binary_scores(probabilities)
    assert results["metrics"]["auroc"]["value"] == point_metrics.compute_auroc(split.labels("binary"), scores)
    assert results["threshold"]["value"] == load_or_choose_threshold(parts, parts.config.threshold)["value"]
    assert (workdir / "evaluation/validation/learning_curves.png").exists()
    with pytest.raises(UserError, match="run holds 2 replicas. Open one of them, such as .*replica_0"):
        open_run(workdir)


@pytest.mark.slow
def test_a_replica_that_diverges_is_left_behind_and_the_others_go_on(make_config, tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text("learning_rate = [0.01, 1e30]")
    config = make_config(**LIGHT, replicas=2, sweep=str(path), warmup=0.6)
    workdir = tmp_path / "run"
    stopped = fit_replicas(config, workdir, report=stop_at(8))
    assert "not finite at step" in json.loads((workdir / "replica_1/diverged.json").read_text())["reason"]
    results = fit_replicas(config, workdir)
    assert (stopped[0].stopped_by, results[0].step, results[1].threshold) == (signal.SIGTERM, 12, None)
    assert results[0].threshold is not None
    assert all(np.isfinite(row.get("train/loss", 0)) for row in read_rows(workdir))
    assert [member.workdir.name for member in open_replicas(workdir).members] == ["replica_0"]
    table = format_replicas(plan_replicas(config), results, "validation").splitlines()
    assert [line.split()[:3] for line in table] == [
        ["replica", "seed", "learning_rate"],
        ["0", "0", "0.01"],
        ["1", "1", "1e+30"],
    ]
    assert table[2].split()[3] == "diverged"


@pytest.mark.slow
def test_where_all_diverge_the_run_ends_in_a_sentence(make_config, tmp_path):
    config = make_config(**LIGHT, replicas=2, learning_rate=1e30, warmup=0.0)
    for _ in range(2):
        with pytest.raises(UserError, match="all replicas in .* have diverged.*--learning_rate"):
            fit_replicas(config, tmp_path)
    with pytest.raises(UserError, match="all replicas in .* have diverged"):
        open_replicas(tmp_path)


def test_more_replicas_than_fit_are_refused_with_the_estimate_before_anything_is_written(
    make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(replicas, "measure_free_bytes", lambda mesh: 2**20)
    with pytest.raises(UserError, match=r"replicas=80 need about \d+\.\d GiB .* about \d+ would fit\. Lower"):
        fit_replicas(make_config(replicas=80), tmp_path / "run")
    with pytest.raises(UserError, match="batch_size 20 is not divisible by the 8 devices"):
        fit_replicas(make_config(replicas=2, batch_size=20), tmp_path / "run")
    with pytest.raises(UserError, match=r"fit trains one run; replicas=2 are trained by replicas\.fit_replicas"):
        fit(make_config(replicas=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_restart_deletes_the_replicas_of_the_earlier_run(finished, make_config, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    fit(make_config(**LIGHT | {"epochs": 1}), workdir, restart=True)
    assert not list(workdir.glob("replica_*"))
