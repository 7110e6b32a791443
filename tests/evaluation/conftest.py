"""Trained runs for the tests of evaluations."""

import shutil

import pytest


@pytest.fixture(scope="session")
def trained(make_config, tmp_path_factory):
    """`trained[task]`: the workdir of a run, which is trained at the first use. Tests must not change it."""
    from pneumojax.training.fit import fit

    class Trained(dict):
        def __missing__(self, task):
            self[task] = tmp_path_factory.mktemp(task)
            fit(make_config(task=task, epochs=2, mixup_alpha=0.0), self[task])
            return self[task]

    return Trained()


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the run of the binary task."""
    return shutil.copytree(trained["binary"], tmp_path / "binary")


@pytest.fixture
def three_class_workdir(trained, tmp_path):
    """A copy of the run of the three-class task."""
    return shutil.copytree(trained["three_class"], tmp_path / "three_class")
