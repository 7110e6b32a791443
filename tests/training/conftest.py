"""Fixtures of the tests of trainings."""

import subprocess

import pytest
from searches import SPACE, score

from pneumojax.errors import Diverged
from pneumojax.training.fit import FitResult, fit


@pytest.fixture(scope="session")
def finished(make_config, tmp_path_factory):
    """An uninterrupted run of 3 epochs of 6 steps. Tests must not change it."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, fit(make_config(), workdir)


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


@pytest.fixture
def trials_by_formula(monkeypatch):
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

    monkeypatch.setattr("pneumojax.training.search.fit", fit)
    return calls, signals


@pytest.fixture
def open_search(make_config, tmp_path):
    """`open_search(space, **fields)`: opens the search of this test."""

    from pneumojax.training import search  # It imports optuna, which not every environment has.

    def open_it(space=SPACE, **fields):
        return search.open_search(tmp_path / "study.db", tmp_path, make_config(**{"epochs": 9} | fields), space)

    return open_it
