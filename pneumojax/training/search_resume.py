"""Resumes the trials of a search that were stopped, were killed or failed.

If a trial is started several times, optuna stores each start as a separate trial. All starts of a trial have the same
user attribute "directory", which is the name of the trial's folder.
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

# After so many starts in which a trial failed or its process was killed, the trial is not resumed again, because its
# config may be the cause.
MAX_KILLED = 3


class Storage(optuna.storages.RDBStorage):
    """The SQLite storage of a study. A heartbeat that cannot be stored is skipped, for example on a full disk.

    In optuna's own class, such an error would end the thread that sends the heartbeats.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        """Stores that a trial is alive. Errors are ignored here, because all other writes report a full disk."""
        with contextlib.suppress(optuna.exceptions.StorageInternalError):
            super().record_heartbeat(trial_id)


def count_begun(study: optuna.Study) -> int:
    """Counts the trials that were started, which is the number of the next new trial.

    A trial that was started several times counts once.
    """
    names = [trial.user_attrs.get("directory", "") for trial in study.get_trials(deepcopy=False)]
    return max((int(name.removeprefix("trial_")) + 1 for name in names if name), default=0)


def fail_dead_trials(study: optuna.Study, workdir: pathlib.Path) -> None:
    """Marks the trials of killed processes as failed, without waiting until their heartbeats are overdue.

    The process of a running trial holds a lock on the trial's folder. If the lock is free, the process is dead.

    Args:
      study: the study.
      workdir: parent folder of the trials' runs.
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
        return super().prune(_WithoutFailed(study), trial)  # type: ignore[arg-type]  # It has the interface of a study.


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

    The queue is computed from the stored study. Therefore, no trial is lost and none is queued twice if this process
    is killed.

    Args:
      study: the study.
      given_up: names of the trials that are not resumed again and for which a warning was already logged. The function
        adds new ones.
    """
    starts = collections.defaultdict(list)
    for trial in study.get_trials(deepcopy=False):
        # A trial without a folder was killed before its training started. It is not queued, because the next new trial
        # has the same number and the same proposal.
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
