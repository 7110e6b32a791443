"""Resumes the trials of a search that were stopped, were killed or failed.

Each start of a trial is a separate trial in optuna. The starts of one trial have the same user attribute "directory",
the name of its folder.
"""

import collections
import contextlib
import logging
import pathlib
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pneumojax.files import lock_folder

logger = logging.getLogger(__name__)

# A trial is not resumed any more after its process was killed, or it failed, this often. Its config may be the cause.
MAX_KILLED = 3


class Storage(optuna.storages.RDBStorage):
    """The file of a study. A heartbeat that cannot be stored, because the disk is full, does not end the next ones."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Stores that a trial is alive, as `optuna.storages.RDBStorage`. The other writes report that they fail."""
        with contextlib.suppress(optuna.exceptions.StorageInternalError):
            super().record_heartbeat(trial_id)


def count_begun(study: optuna.Study) -> int:
    """Counts the trials that were started. This is also the number of the next new trial."""
    names = [trial.user_attrs.get("directory", "") for trial in study.get_trials(deepcopy=False)]
    return max((int(name.removeprefix("trial_")) + 1 for name in names if name), default=0)


def fail_dead_trials(study: optuna.Study, workdir: pathlib.Path) -> None:
    """Marks the trials of killed processes as failed, without waiting until their heartbeats are overdue.

    Args:
      study: the study.
      workdir: parent of the trials' folders. The process of a trial holds a lock on the trial's folder.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "directory" not in trial.user_attrs or not (workdir / trial.user_attrs["directory"]).is_dir():
            continue
        with lock_folder(workdir / trial.user_attrs["directory"], wait=False) as dead:
            # The state is read again because the trial may have ended before the lock was free.
            if dead and study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)


class Halving(optuna.pruners.SuccessiveHalvingPruner):
    """Successive halving that counts a resumed trial once, not once for each start."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Returns whether to prune the trial, as `optuna.pruners.BasePruner.prune`."""
        return super().prune(_WithoutFailed(study), trial)  # type: ignore[arg-type]  # It stands in for a study.


class _WithoutFailed:
    """A study without the trials that were stopped or killed."""

    def __init__(self, study: optuna.Study):
        self.study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def get_trials(self, deepcopy: bool = True) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=deepcopy) if trial.state != TrialState.FAIL]


def take_up(study: optuna.Study, given_up: set[str]) -> None:
    """Queues each trial that was stopped, was killed or failed, so that it resumes in its folder.

    The queue depends on the stored study only. If this process is killed at any moment, no trial is lost and none is
    queued twice.

    Args:
      study: the study.
      given_up: names of the abandoned trials for which a warning was already logged. New ones are added.
    """
    starts = collections.defaultdict(list)
    for trial in study.get_trials(deepcopy=False):
        # A trial without a folder was killed before its training started. The next new trial gets the same number and
        # the same proposal.
        if "directory" in trial.user_attrs:
            starts[trial.user_attrs["directory"]].append(trial)
    for name, trials in starts.items():
        if trials[-1].state != TrialState.FAIL:
            continue
        killed = sum("stopped" not in trial.user_attrs for trial in trials)
        if killed < MAX_KILLED:
            attributes = {"directory": name, "seconds": trials[-1].user_attrs.get("seconds", 0.0)}
            study.enqueue_trial(trials[-1].params, user_attrs=attributes)
        elif name not in given_up:
            logger.warning("%s is not resumed again: it failed, or its process was killed, %d times", name, killed)
            given_up.add(name)
