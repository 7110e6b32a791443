"""Tests of the signals that stop a training."""

import os
import signal

import pytest
from multihost import join_all, join_processes, start_together
from run_files import assert_same_run

from pneumojax.sharding import initialize
from pneumojax.training import fit as fit_module
from pneumojax.training.fit import fit
from pneumojax.training.interrupts import catch_signals, max_over_processes


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


def test_signals_are_collected_and_a_second_interrupt_ends_at_once():
    with catch_signals() as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGTERM]
    with catch_signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
    assert caught == [signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("number", [-3, 0, signal.SIGTERM])
def test_the_maximum_over_one_process_is_its_number(number):
    assert max_over_processes(number) == number


def find_maximum(number, count, port, devices):
    """Runs as one of several processes."""
    join_processes(number, count, port, devices)
    initialize(multihost=True)
    assert max_over_processes(10 * number - 5) == 10 * (count - 1) - 5


def test_the_maximum_is_that_of_all_processes(processes):
    assert join_all(start_together(processes, 2, find_maximum)) == [0, 0]
