"""Tests of searches: finished trials, resuming after a stop or a kill, and which storage files are accepted."""

import csv
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from experiments.flags import format_flagfile, read_preset
from pneumojax.checkpoint import read_run
from pneumojax.config import config_from_dict, config_to_dict
from pneumojax.errors import Diverged, UserError
from pneumojax.evaluation.run import open_run
from pneumojax.files import lock_folder
from pneumojax.training.fit import FitResult
from pneumojax.training.search_space import Choices, Range

optuna = pytest.importorskip("optuna")
from pneumojax.training import search, search_resume, search_storage  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
SPACE = {
    "learning_rate": Range(1e-4, 1e-1, log=True),
    "dropout": Range(0.0, 0.5),
    "cnn_widths": Choices(((4, 8), (8,))),
}


def score(config, epoch):
    """Returns an AUROC that is best at a learning rate of 0.01 and increases with each epoch."""
    return 0.9 - 0.1 * abs(np.log10(config.optimizer.learning_rate) + 2) + 0.001 * epoch


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a formula. Lists (folder, config) of each call. A number in `signals` stops a call."""
    calls, signals = [], []

    def fit(config, workdir, report):
        calls.append((workdir.name, config))
        epochs = config.train.epochs
        for epoch in range(1, epochs + 1):
            if config.optimizer.learning_rate > 0.05:
                raise Diverged("the loss is not finite.")
            stopped = report({"step": epoch, "epoch": epoch, "val/auroc": score(config, epoch)}, epochs)
            if stopped or signals:
                break
        number = signals.pop() if signals else None
        return FitResult(epoch, epochs, 1, epoch, score(config, epoch), epoch, None, number)

    monkeypatch.setattr(search, "fit", fit)
    return calls, signals


@pytest.fixture
def open_search(make_config, tmp_path):
    """`open_search(space, **fields)`: opens the search of this test."""

    def open_it(space=SPACE, **fields):
        return search.open_search(tmp_path / "study.db", tmp_path, make_config(**{"epochs": 9} | fields), space)

    return open_it


def run_trials(opened, trials):
    search.run_trials(opened, trials, lambda row, total_steps: None)
    return [{name: value for name, value in row.items() if name != "seconds"} for row in search.list_trials(opened)]


@pytest.mark.slow
def test_a_search_that_goes_on_is_one_that_was_never_interrupted(open_search, make_config, trained, tmp_path):
    rows = run_trials(open_search(), 2)
    assert run_trials(open_search(), 2) == rows
    longer = run_trials(open_search(), 5)
    assert longer[:2] == rows
    at_once = search.open_search(tmp_path / "other.db", tmp_path / "other", make_config(epochs=9), SPACE)
    assert run_trials(at_once, 5) == longer
    assert [row["name"] for row in longer] == [f"trial_{i}" for i in range(5)]
    assert len({row["values"]["learning_rate"] for row in longer}) == 5
    for (_, config), row in zip(trained[0], longer, strict=False):
        assert config.optimizer.learning_rate == row["values"]["learning_rate"]
        assert config.model.cnn_widths == row["values"]["cnn_widths"]
        assert 1e-4 <= config.optimizer.learning_rate <= 1e-1


def test_trials_are_complete_pruned_or_diverged_and_the_best_complete_one_wins(open_search, trained):
    opened = open_search()
    rows = run_trials(opened, 15)
    configs = {name: config for name, config in trained[0]}
    assert {row["state"] for row in rows} == {"complete", "pruned", "diverged"}
    for row in rows:
        if row["state"] == "diverged":
            assert configs[row["name"]].optimizer.learning_rate > 0.05
            assert (row["auroc"], row["epochs"]) == (None, 0)
        else:
            assert row["epochs"] in ((9,) if row["state"] == "complete" else (1, 3))
            assert row["auroc"] == score(configs[row["name"]], row["epochs"])
    complete = [row for row in rows if row["state"] == "complete"]
    assert search.find_best(rows) == max(complete, key=lambda row: row["auroc"])
    assert search.find_best(rows)["auroc"] == opened.study.best_value
    # The best third continues after one epoch.
    assert rows[0]["state"] in ("complete", "diverged")
    importances = search.compute_importances(opened)
    assert next(iter(importances)) == "learning_rate"
    np.testing.assert_allclose(sum(importances.values()), 1)


def test_a_trial_that_is_stopped_goes_on_in_its_folder_with_its_values(open_search, make_config, trained, tmp_path):
    calls, signals = trained
    first = run_trials(open_search(), 2)
    signals.append(signal.SIGTERM)
    with pytest.raises(search.Stopped) as caught:
        run_trials(open_search(), 4)
    assert caught.value.number == signal.SIGTERM
    assert run_trials(open_search(), 2) == first
    rows = run_trials(open_search(), 4)
    assert [row["name"] for row in rows] == ["trial_0", "trial_1", "trial_2", "trial_3"]
    assert [name for name, _ in calls].count("trial_2") == 2
    first_start, second_start = (config for name, config in calls if name == "trial_2")
    assert first_start == second_start
    undisturbed = search.open_search(tmp_path / "other.db", tmp_path / "other", make_config(epochs=9), SPACE)
    assert run_trials(undisturbed, 4) == rows


def test_a_trial_whose_process_was_killed_is_taken_up_three_times_at_most(open_search, trained, caplog):
    opened = open_search()
    for _ in range(search_resume.MAX_KILLED):
        trial = opened.study.ask()  # The steps of a process that is then killed.
        search._suggest(opened.space, trial)
        trial.set_user_attr("directory", "trial_0")
        opened.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        for _ in range(2):  # It is queued once.
            search_resume.take_up(opened.study, set())
    states = [trial.state.name for trial in opened.study.trials]
    assert states == ["FAIL"] * 3
    assert len({tuple(trial.params.items()) for trial in opened.study.trials}) == 1
    assert [row["name"] for row in run_trials(opened, 2)] == ["trial_1", "trial_2"]
    assert "trial_0 is not resumed again: it failed, or its process was killed, 3 times" in caplog.text


def test_a_trial_of_a_dead_process_is_taken_up_without_waiting_for_its_heartbeat(open_search, trained, tmp_path):
    opened = open_search()
    opened.study.sampler = optuna.samplers.RandomSampler(seed=0)  # Draws no learning rate that diverges.
    trial = opened.study.ask()
    search._suggest(opened.space, trial)
    trial.set_user_attr("directory", "trial_0")
    (tmp_path / "trial_0").mkdir()
    with lock_folder(tmp_path / "trial_0"):
        search_resume.fail_dead_trials(opened.study, tmp_path)
        assert opened.study.trials[0].state.name == "RUNNING"
    assert [row["name"] for row in run_trials(opened, 2)] == ["trial_0", "trial_1"]
    assert [one.state.name for one in opened.study.trials][:2] == ["FAIL", "COMPLETE"]


def test_a_full_disk_is_named_and_does_not_end_the_heartbeats(open_search, trained, monkeypatch):
    def fail(self, *arguments, **options):
        raise optuna.exceptions.StorageInternalError from sqlite3.OperationalError("database or disk is full")

    def fill_the_disk(*arguments):
        for name in ("record_heartbeat", "set_trial_state_values", "get_trial"):
            monkeypatch.setattr(optuna.storages.RDBStorage, name, fail)
        opened.study._storage.record_heartbeat(0)
        return 0.5

    opened = open_search()
    monkeypatch.setattr(search, "_run_trial", fill_the_disk)
    with pytest.raises(UserError, match="study.db cannot be written .*disk is full.*Free some disk space"):
        run_trials(opened, 1)


def test_processes_that_share_a_storage_finish_as_many_trials_as_wanted(open_search, trained):
    searches = [open_search() for _ in range(3)]
    threads = [threading.Thread(target=run_trials, args=(opened, 6)) for opened in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(run_trials(open_search(), 6)) == len(trained[0]) == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"space": {"learning_rate": Range(1e-4, 1.0, log=True)}}, "dropout was .*, is not set; learning_rate was "),
        ({"epochs": 10}, "epochs was 9, is 10"),
        ({"weight_decay": 0.5}, "weight_decay was 0.01, is 0.5"),
    ],
)
def test_the_file_of_another_search_is_refused_and_left_as_it_is(open_search, trained, tmp_path, change, sentence):
    run_trials(open_search(), 1)
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(UserError, match=f"holds a search with another space or config: .*{sentence}"):
        open_search(**change)
    assert (tmp_path / "study.db").read_bytes() == before


def make_foreign(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE patients (name TEXT)")


def make_another_study(path):
    optuna.create_study(storage=f"sqlite:///{path}", study_name="mine")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(b"trial,auroc\n" * 100), "cannot be used as the storage of a search"),
        (lambda path: path.write_bytes(path.read_bytes()[:50_000]), "cannot be used as the storage of a search"),
        (lambda path: path.write_bytes(path.read_bytes()[:10]), "cannot be used as the storage of a search"),
        (lambda path: (path.unlink(), make_foreign(path)), "is a database of another program"),
        (lambda path: (path.unlink(), make_another_study(path)), "is a database of another program"),
    ],
    ids=["text", "cut", "short", "foreign", "other study"],
)
def test_a_damaged_or_foreign_file_is_refused_and_left_as_it_is(open_search, trained, tmp_path, damage, sentence):
    run_trials(open_search(), 1)
    path = tmp_path / "study.db"
    damage(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=sentence) as caught:
        open_search()
    assert str(caught.value).startswith(str(path))
    assert path.read_bytes() == before


def test_a_file_that_stays_locked_is_told(open_search, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(search_storage, "LOCK_SECONDS", 1)
    opened = open_search()
    with sqlite3.connect(tmp_path / "study.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="was locked by another process for more than 1 s"):
            run_trials(opened, 1)
        with pytest.raises(UserError, match="was locked by another process"):
            open_search()
    assert len(run_trials(open_search(), 1)) == 1


def test_the_folder_of_another_search_is_refused(open_search, trained, tmp_path):
    (tmp_path / "trial_0").mkdir()
    with pytest.raises(UserError, match="holds the trials of another search"):
        open_search()


def test_flags_are_read_back_as_they_were(make_config, tmp_path):
    fields = {"flip": True, "ema_decay": 0.5, "vgg_dense_widths": (), "frozen": ("stem",), "learning_rate": 1e-4 / 3}
    config = config_from_dict(config_to_dict(make_config()) | fields)
    (tmp_path / "some.flags").write_text(format_flagfile(config))
    assert read_preset(tmp_path / "some.flags") == config
    assert format_flagfile(config_from_dict({})) == ""


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
    assert max(row.get("val/auroc", 0) for row in logged) == float(best["val/auroc"])
    assert open_run(workdir / best["trial"], data_dir=str(data_dir)).step == 6
    assert (workdir / "tune.png").read_bytes().startswith(b"\x89PNG")
    page = (workdir / "tune.html").read_text()
    assert f"{float(best['val/auroc']):.4f}" in page
    assert "synthetic radiographs, not patients" in page
    assert f"--flagfile={workdir / 'best.flags'}" in done.stdout.splitlines()[-1]


def test_test_is_not_searched_on(open_search):
    with pytest.raises(UserError, match="a search compares trials on validation"):
        open_search(selection_split="test")
