"""Tests of trials that were stopped or whose process was killed: they are resumed."""

import signal

import pytest
from searches import SPACE, run_trials

from pneumojax.files import lock_folder

optuna = pytest.importorskip("optuna")
from pneumojax.training import search, search_resume  # noqa: E402


@pytest.mark.slow
def test_a_trial_that_is_stopped_goes_on_in_its_folder_with_its_values(
    open_search, make_config, trials_by_formula, tmp_path
):
    calls, signals = trials_by_formula
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


def test_a_trial_whose_process_was_killed_is_taken_up_three_times_at_most(open_search, trials_by_formula, caplog):
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


def test_a_trial_of_a_dead_process_is_taken_up_without_waiting_for_its_heartbeat(
    open_search, trials_by_formula, tmp_path
):
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
