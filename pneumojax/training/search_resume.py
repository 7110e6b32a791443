"""Resumes the trials of a search that were stopped, were killed or failed.

A trial that resumes is several trials of optuna, but only one of ours: they share the user attribute "directory", which
names the folder of its run.
"""

import collections
import contextlib
import logging
import pathlib

import optuna
from optuna.trial import FrozenTrial, TrialState

from pneumojax.files import lock_folder

logger = logging.getLogger(__name__)

# A trial whose process was killed, or which failed, so often is given up: the cause may be the trial itself.
MAX_KILLED = 3


class Storage(optuna.storages.RDBStorage):
    """The file of a study. A heartbeat that cannot be stored, because the disk is full, does not end the next ones."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Stores that a trial is alive, as `optuna.storages.RDBStorage`. The other writes report that they fail."""
        with contextlib.suppress(optuna.exceptions.StorageInternalError):
            super().record_heartbeat(trial_id)


def count_begun(study: optuna.Study) -> int:
    """Returns the number of the next new trial."""
    names = [trial.user_attrs.get("directory", "") for trial in study.get_trials(deepcopy=False)]
    return max((int(name.removeprefix("trial_")) + 1 for name in names if name), default=0)


def fail_dead_trials(study: optuna.Study, workdir: pathlib.Path) -> None:
    """Fails trials whose process was killed, without waiting for their missing heartbeats.

    Args:
      study: the study.
      workdir: folder of the trials' folders. The process of a trial holds a lock on its folder.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if "directory" not in trial.user_attrs or not (workdir / trial.user_attrs["directory"]).is_dir():
            continue
        with lock_folder(workdir / trial.user_attrs["directory"], wait=False) as dead:
            # Its state is read again: it may have ended before the lock was free.
            if dead and study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)


class Halving(optuna.pruners.SuccessiveHalvingPruner):
    """Successive halving in which a trial that was resumed competes once, not once for each start."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial stops early, as `optuna.pruners.BasePruner.prune`."""
        return super().prune(_WithoutFailed(study), trial)


class _WithoutFailed:
    """A study without the trials that were stopped or killed."""

    def __init__(self, study: optuna.Study):
        self.study = study

    def __getattr__(self, name: str):
        return getattr(self.study, name)

    def get_trials(self, deepcopy: bool = True) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=deepcopy) if trial.state != TrialState.FAIL]


def take_up(study: optuna.Study, given_up: set[str]) -> None:
    """Queues each trial that was stopped, was killed or failed, so that it resumes in its folder.

    What is queued follows from the study alone. So a process that is killed at any moment loses no trial, and queues
    none twice.

    Args:
      study: the study.
      given_up: names of the trials for which a warning was logged. New ones are added.
    """
    starts = collections.defaultdict(list)
    for trial in study.get_trials(deepcopy=False):
        # A trial without a folder was killed before it began. The next new trial gets its number and its proposal.
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
            logger.warning("%s is given up: it failed, or its process was killed, %d times", name, killed)
            given_up.add(name)
