"""Hyperparameter search: optuna proposes configs, each is trained, and trials with a low val/auroc are pruned.

A trial is the training of one config, in its own folder. optuna stores all trials of a search, which it calls a study,
in an SQLite file that several processes can share. A trial that was stopped or killed resumes from its checkpoint in
the same folder. optuna stores this as another trial. Trials are compared by val/auroc only. The test split is never
used.
"""

import contextlib
import dataclasses
import logging
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from pneumojax.checkpoint import find_latest_step
from pneumojax.config import Config, config_fields, config_to_dict, replace_fields
from pneumojax.data.dataset import ensure_prepared
from pneumojax.errors import Diverged, UserError
from pneumojax.files import lock_folder, read_rows
from pneumojax.reporting.figures.training import save_learning_curves
from pneumojax.training import search_storage
from pneumojax.training.fit import fit
from pneumojax.training.search_resume import Halving, Storage, count_begun, fail_dead_trials, take_up
from pneumojax.training.search_space import Choices, Range

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10  # interval at which a running trial records that its process is alive
GRACE_SECONDS = 60  # a trial without a heartbeat for this long counts as dead
POLL_SECONDS = 2  # interval of the checks for trials of other processes that have finished

# Trials are pruned after 1/9 and 1/3 of the epochs. The best third of the trials that reached this epoch continues (Li
# et al., A system for massively parallel hyperparameter tuning, 2020: asynchronous successive halving).
REDUCTION = 3


class Stopped(KeyboardInterrupt):
    """A signal stopped a trial. The attribute `number` is the number of the signal."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@dataclasses.dataclass(frozen=True)
class Search:
    """An open search.

    Attributes:
      study: the optuna study.
      storage: SQLite file of the study.
      workdir: parent folder of the trials' runs.
      base: the config whose fields are varied.
      space: {field: its range or choices}, from `search_space.read_space`.
    """

    study: optuna.Study
    storage: pathlib.Path
    workdir: pathlib.Path
    base: Config
    space: dict[str, Range | Choices]


def open_search(
    storage: str | pathlib.Path, workdir: str | pathlib.Path, base: Config, space: dict[str, Range | Choices]
) -> Search:
    """Opens the study in a storage file, or creates it.

    Args:
      storage: SQLite file.
      workdir: parent folder of the trials' runs.
      base: the config whose fields are varied. Its seed also seeds the proposals.
      space: {field: its range or choices}, from `search_space.read_space`.

    Returns:
      The open search.

    Raises:
      UserError: the file is damaged, is locked or contains another search; the data set is not prepared; or the
        selection split is not validation.
    """
    if base.data.selection_split != "validation":
        raise UserError("a search compares trials on validation: give --selection_split=validation (the default).")
    storage, workdir = pathlib.Path(storage).expanduser(), pathlib.Path(workdir).expanduser()
    definition = _define(base, space)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # This module logs the trials itself.
    # optuna has marked heartbeats as experimental since 2021.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    storage.parent.mkdir(parents=True, exist_ok=True)
    with search_storage.explain_errors(storage), search_storage.hold(storage):
        search_storage.check_file(storage)
        backend = Storage(
            f"sqlite:///{storage.resolve()}",
            engine_kwargs={"connect_args": {"timeout": search_storage.LOCK_SECONDS}},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
        )
        pruner = Halving(min_resource=max(1, base.train.epochs // REDUCTION**2), reduction_factor=REDUCTION)
        study = optuna.create_study(
            storage=backend, study_name=search_storage.STUDY, direction="maximize", pruner=pruner, load_if_exists=True
        )
        if "definition" not in study.user_attrs:
            if any(workdir.glob("trial_*")):
                raise UserError(f"{workdir} holds the trials of another search. Use another --workdir.")
            study.set_user_attr("definition", definition)
        _check_same(storage, study.user_attrs["definition"], definition)
    return Search(study, storage, workdir, base, space)


def run_trials(search: Search, trials: int, report: Callable[[dict, int], None]) -> None:
    """Runs trials until the study has `trials` finished trials.

    Trials of other processes are included in this number. If their running trials suffice, the function waits until
    they have finished.

    Args:
      search: from `open_search`.
      trials: total number of finished trials in the study.
      report: called with each row of a trial's metrics.jsonl and the trial's total number of steps.

    Raises:
      Stopped: a signal ended the current trial. The next call resumes it.
      UserError: the config of a trial is invalid, or the storage file is locked or damaged.
    """
    study, waiting = search.study, False
    given_up: set[str] = set()
    while True:
        with search_storage.explain_errors(search.storage), search_storage.hold(search.storage) as release:
            optuna.storages.fail_stale_trials(study)
            fail_dead_trials(study, search.workdir)
            take_up(study, given_up)
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            running = states.count(TrialState.RUNNING)
            left = trials - states.count(TrialState.COMPLETE) - states.count(TrialState.PRUNED)
            if running < left:
                # The seed of a proposal depends only on the seed of the search and on the number of the trial. A trial
                # that resumes keeps its number, so an interrupted search makes the same proposals as an uninterrupted
                # one.
                seed = np.random.SeedSequence([search.base.train.seed, count_begun(study)]).generate_state(1)[0]
                study.sampler = optuna.samplers.TPESampler(seed=int(seed))
                with contextlib.ExitStack() as alive:
                    study.optimize(lambda trial: _run_trial(search, trial, trials, report, release, alive), n_trials=1)
                jax.clear_caches()  # Otherwise the compiled steps of all trials stay in memory.
                continue
        if left <= 0 or not running:
            return
        if not waiting:
            logger.info("Waiting for the trials of other processes: %d", running)
            waiting = True
        time.sleep(POLL_SECONDS)


def list_trials(search: Search) -> list[dict]:
    """Lists the finished trials in the order in which they started.

    Returns:
      A dict for each trial: {"name": name of its folder, "state": "complete", "pruned" or "diverged", "auroc":
      val/auroc of its best checkpoint, or the largest so far if it is not complete, or None, "epochs": epochs trained,
      "seconds": training time, "values": {field: value}}.
    """
    with search_storage.explain_errors(search.storage):
        trials = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [
        {
            "name": _name(trial),
            "state": "diverged" if "diverged" in trial.user_attrs else trial.state.name.lower(),
            "auroc": max(trial.intermediate_values.values(), default=None) if trial.value is None else trial.value,
            "epochs": trial.last_step or 0,
            "seconds": trial.user_attrs.get("seconds"),
            "values": _read_values(search.space, trial.params),
        }
        for trial in trials
    ]


def find_best(rows: list[dict]) -> dict | None:
    """Returns the complete trial with the largest AUROC, or None if no trial is complete.

    Args:
      rows: from `list_trials`. If several have the same AUROC, the first of them is the best.
    """
    return max((row for row in rows if row["state"] == "complete"), key=lambda row: row["auroc"], default=None)


def compute_importances(search: Search) -> dict[str, float] | None:
    """Computes the importance of each field for the AUROC of the complete trials.

    Returns:
      {field: share of the variance of the AUROC that the field explains}. The shares sum to 1. None if fewer than four
      trials are complete, or if all have the same AUROC.

    References:
      Hutter, Hoos and Leyton-Brown, An efficient approach for assessing hyperparameter importance, 2014: fANOVA.
    """
    complete = [row for row in list_trials(search) if row["state"] == "complete"]
    if len(complete) < 4 or len({row["auroc"] for row in complete}) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with search_storage.explain_errors(search.storage):
        return optuna.importance.get_param_importances(search.study, evaluator=evaluator)


def _define(base: Config, space: dict[str, Range | Choices]) -> dict:
    """Returns the definition of a search. Processes can share a study only if their definitions are equal."""
    config = config_to_dict(base)
    fields = [field.name for field in config_fields() if field.metadata["identity"] and field.name not in space]
    ranges = {
        name: list(map(_to_word, values.values)) if isinstance(values, Choices) else dataclasses.asdict(values)
        for name, values in space.items()
    }
    return {
        "config": {name: config[name] for name in fields},
        "space": ranges,
        "data": ensure_prepared(base.data)["fingerprint"],
    }


def _check_same(storage: pathlib.Path, earlier: dict, definition: dict) -> None:
    differing = [
        f"{name} was {old.get(name, 'not set')}, is {new.get(name, 'not set')}"
        for old, new in ((earlier[part], definition[part]) for part in ("space", "config"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if earlier["data"] != definition["data"]:
        differing.append("the data differ")
    if differing:
        raise UserError(
            f"{storage} holds a search with another space or config: {'; '.join(differing)}. "
            "Use another --storage and --workdir, or the earlier values."
        )


def _run_trial(
    search: Search,
    trial: optuna.Trial,
    trials: int,
    report: Callable[[dict, int], None],
    release: Callable[[], None],
    alive: contextlib.ExitStack,
) -> float:
    """Trains or resumes one trial and returns its best val/auroc.

    `release` releases the lock of `search_storage.hold`, so that other processes can start a trial. A lock on the
    trial's folder shows other processes that this process is alive. The caller releases this lock by closing `alive`,
    after optuna has stored the result of the trial.
    """
    values = _suggest(search.space, trial)
    name = trial.user_attrs.get("directory", f"trial_{count_begun(search.study)}")
    workdir = search.workdir / name
    workdir.mkdir(parents=True, exist_ok=True)
    alive.enter_context(lock_folder(workdir))
    trial.set_user_attr("directory", name)  # A trial that is killed after this can resume.
    release()
    words = ", ".join(f"{field} {_format(value)}" for field, value in values.items())
    logger.info("%s (%d wanted): %s", name, trials, words)
    started, spent = time.perf_counter(), trial.user_attrs.get("seconds", 0.0)
    try:
        return _train(search, trial, workdir, replace_fields(search.base, values), report)
    except Diverged as error:
        trial.set_user_attr("diverged", str(error))
        raise optuna.TrialPruned from error
    except KeyboardInterrupt:
        trial.set_user_attr("stopped", True)
        raise
    finally:
        trial.set_user_attr("seconds", spent + time.perf_counter() - started)


def _train(
    search: Search, trial: optuna.Trial, workdir: pathlib.Path, config: Config, report: Callable[[dict, int], None]
) -> float:
    """Trains one config until the last epoch, or until the trial is pruned or stopped. Returns the best val/auroc."""
    reported = set()

    def report_validation(row: dict) -> bool:
        """Reports each validation to optuna only once. Returns whether the trial must be pruned."""
        epoch = round(row["epoch"])
        if "val/auroc" not in row or epoch in reported:
            return False
        reported.add(epoch)
        trial.report(row["val/auroc"], epoch)
        return epoch < config.train.epochs and trial.should_prune()

    def report_row(row: dict, total_steps: int) -> bool:
        report(row, total_steps)
        return report_validation(row)

    # The rows of an earlier start, up to its checkpoint. The resumed training logs the later rows again.
    saved = find_latest_step(workdir) or 0
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["step"] <= saved]
    pruned, curves = any([report_validation(row) for row in rows]), workdir / "learning_curves.png"
    if pruned and not curves.exists():
        save_learning_curves(curves, rows, config.data.selection_split)
    if not pruned:
        result = fit(config, workdir, report=report_row)
        if result.stopped_by:
            raise Stopped(result.stopped_by)
        pruned = result.step < result.total_steps
    if pruned:
        logger.info("%s is pruned: its val/auroc is lower than that of other trials at this epoch", workdir.name)
        raise optuna.TrialPruned
    assert result.best_auroc is not None  # Each epoch ends with a validation.
    return result.best_auroc


def _suggest(space: dict[str, Range | Choices], trial: optuna.Trial) -> dict:
    for name, values in space.items():
        if isinstance(values, Choices):
            trial.suggest_categorical(name, [_to_word(value) for value in values.values])
        elif isinstance(values.low, int) and isinstance(values.high, int):
            trial.suggest_int(name, values.low, values.high, log=values.log)
        else:
            trial.suggest_float(name, values.low, values.high, log=values.log)
    return _read_values(space, trial.params)


def _read_values(space: dict[str, Range | Choices], params: dict) -> dict:
    """Converts optuna's parameters to values of config fields. optuna stores a tuple as a string."""
    values = {}
    for name, param in params.items():
        allowed = space[name]
        of_words = {_to_word(value): value for value in allowed.values} if isinstance(allowed, Choices) else {}
        values[name] = of_words.get(param, param)
    return values


def _to_word(value: Any) -> bool | int | float | str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _format(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(_to_word(value))


def _name(trial: optuna.Trial | FrozenTrial) -> str:
    """Returns the name of the trial's folder. A resumed trial has the folder of its first start."""
    return trial.user_attrs.get("directory", f"trial_{trial.number}")
