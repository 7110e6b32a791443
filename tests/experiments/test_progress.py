"""Tests of the lines that show the progress of a training, its cost and how to resume it."""

import logging
import pathlib
import re
import sys
import time
import types

import pytest

from experiments import progress
from pneumojax.config import config_from_dict


@pytest.fixture
def shown(monkeypatch):
    """A progress without a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return progress.Progress(time.perf_counter())


def test_validations_are_logged_with_the_median_speed_so_far(shown, caplog):
    with caplog.at_level(logging.INFO, "experiments"):
        for step, speed in ((2, 300.0), (4, 100.0), (6, 200.0)):
            shown.report({"step": step, "epoch": step / 6, "train/loss": 0.5, "perf/images_per_second": speed}, 18)
        assert not caplog.messages  # A row without validation is logged at most every 30 seconds.
        shown.report({"step": 6, "epoch": 1.0, "val/loss": 0.25, "val/auroc": 0.91234}, 18)
    assert caplog.messages == ["epoch 1.0, step 6/18, loss 0.2500 (val), val AUROC 0.9123, 200 images/s"]
    shown.last_line -= 31
    with caplog.at_level(logging.INFO, "experiments"):
        shown.report({"step": 8, "epoch": 1.3, "train/loss": 0.125}, 18)
    assert caplog.messages[1:] == ["epoch 1.3, step 8/18, loss 0.1250 (train), val AUROC 0.9123, 200 images/s"]


def test_the_cost_is_printed_where_a_step_was_trained(shown, capsys):
    shown.print_cost()
    assert capsys.readouterr().out == ""
    shown.report({"step": 2, "epoch": 0.3, "train/loss": 0.5, "perf/images_per_second": 123.4}, 18)
    shown.print_cost()
    cost = r"\n123 images/s, first steps after 0\.\d s, 0 s in total, peak memory \d+\.\d\d GiB\n"
    assert re.fullmatch(cost, capsys.readouterr().out)


def test_the_command_that_resumes_is_the_same_without_restart(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/train.py", "--restart", "--workdir=my runs", "--restart=true", "-x"])
    assert progress.format_resume() == "To resume: scripts/run experiments/train.py '--workdir=my runs' -x"
    sentence, resume = progress.format_stop(4, 18, pathlib.Path("runs/a")).splitlines()
    assert sentence == "Stopped and saved at step 4 of 18 in runs/a." and resume == progress.format_resume()


def test_the_table_of_replicas_has_the_fields_that_differ():
    configs = [config_from_dict({"seed": 3 + i, "learning_rate": rate}) for i, rate in enumerate((0.1, 0.2))]
    finished = types.SimpleNamespace(best_step=12, steps_per_epoch=6, best_auroc=0.91234, threshold={"value": 0.5})
    diverged = types.SimpleNamespace(threshold=None)
    lines = progress.format_replicas(configs, [finished, diverged], "validation").splitlines()
    assert re.split("  +", lines[0].strip()) == [
        "replica",
        "seed",
        "learning_rate",
        "validation AUROC",
        "after epoch",
        "threshold",
    ]
    assert lines[-2].split() == ["0", "3", "0.1", "0.9123", "2", "0.5000"]
    assert lines[-1].split() == ["1", "4", "0.2", "diverged"]


def test_the_speed_of_files_counts_from_the_first_batch(monkeypatch, caplog):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    shown = progress.FileProgress()
    with caplog.at_level(logging.INFO, "experiments"):
        for seconds, files in ((5, 64), (9, 640), (15, 1064)):
            clock.now = 100.0 + seconds
            shown.report(types.SimpleNamespace(files=files, uncertain=7, flagged=3, failed=2))
    shown.close()
    assert caplog.messages == ["1064 files, 7 uncertain, 3 flagged, 2 failed, 100 files/s"]
