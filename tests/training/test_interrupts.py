"""Tests of the signals that stop a training."""

import os
import signal

import pytest
from run_files import assert_same_run

from pneumojax.training import fit as fit_module
from pneumojax.training.fit import fit


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
