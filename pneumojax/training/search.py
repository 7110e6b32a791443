"""A search over configs: optuna proposes one after the other, each is trained, what lags behind is stopped early.

The study lies in an SQLite file that several processes share. A trial is a run in a folder of its own; one that was
stopped or killed is taken up again, in the same folder and from its checkpoint, under a new number of the study. All is
decided by val/auroc; the test split is not looked at.
"""

import contextlib
import dataclasses
import fcntl
import logging
import pathlib
import sqlite3
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from pneumojax.checkpoint import find_latest_step
from pneumojax.config import Config, config_fields, config_to_dict
from pneumojax.data.dataset import ensure_prepared
from pneumojax.errors import Diverged, UserError
from pneumojax.files import lock_folder, read_rows
from pneumojax.reporting.figures.training import save_learning_curves
from pneumojax.training.fit import fit
from pneumojax.training.search_resume import Halving, Storage, count_begun, fail_dead_trials, take_up
from pneumojax.training.search_space import Choices, Range, apply_values

logger = logging.getLogger(__name__)

STUDY = "pneumojax"

# How long to wait for a file that another process writes; how often a trial shows that it lives; after how long without
# a sign it counts as dead; how often to look whether others are done. In seconds.
LOCK_SECONDS = 60
HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
POLL_SECONDS = 2

# Of the trials that reached a ninth of the epochs, a third of them, or all, the best third goes on (Li et al., A system
# for massively parallel hyperparameter tuning, 2020: asynchronous successive halving).
REDUCTION = 3


class Stopped(KeyboardInterrupt):
    """A signal ended a trial.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@dataclasses.dataclass(frozen=True)
class Search:
    """An open search.

    Attributes:
      study: of optuna.
      storage: SQLite file of the study.
      workdir: folder of the trials' runs.
      base: the config whose fields are varied.
      space: what they are varied over, of `space.read_space`.
    """

    study: optuna.Study
    storage: pathlib.Path
    workdir: pathlib.Path
    base: Config
    space: dict[str, Range | Choices]


def open_search(
    storage: str | pathlib.Path, workdir: str | pathlib.Path, base: Config, space: dict[str, Range | Choices]
) -> Search:
    """Opens the study in a file, or begins it.

    Args:
      storage: SQLite file.
      workdir: folder of the trials' runs.
      base: the config whose fields are varied; its seed is that of the search too.
      space: of `space.read_space`.

    Raises:
      UserError: the file is damaged, locked, or holds another search; the data are not prepared; test would choose.
    """
    if base.data.selection_split != "validation":
        raise UserError("a search is on validation: give --selection_split=validation, which is the default.")
    storage, workdir = pathlib.Path(storage).expanduser(), pathlib.Path(workdir).expanduser()
    definition = _define(base, space)
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # What went on is told in our own words.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # Heartbeats are one since 2021.
    storage.parent.mkdir(parents=True, exist_ok=True)
    with _sentences(storage), _hold(storage):
        _check_file(storage)
        backend = Storage(
            f"sqlite:///{storage.resolve()}",
            engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
        )
        pruner = Halving(min_resource=max(1, base.train.epochs // REDUCTION**2), reduction_factor=REDUCTION)
        study = optuna.create_study(
            storage=backend, study_name=STUDY, direction="maximize", pruner=pruner, load_if_exists=True
        )
        if "definition" not in study.user_attrs:
            if any(workdir.glob("trial_*")):
                raise UserError(f"{workdir} holds the trials of another search. Use another --workdir.")
            study.set_user_attr("definition", definition)
        _check_same(storage, study.user_attrs["definition"], definition)
    return Search(study, storage, workdir, base, space)


def run_trials(search: Search, trials: int, report: Callable[[dict, int], None]) -> None:
    """Runs trials until so many of the study are finished, here or in other processes; waits for the others' last ones.

    Args:
      search: from `open_search`.
      trials: how many to have in all.
      report: called with each row of a trial's log, and the number of its steps.

    Raises:
      Stopped: a signal ended the trial in hand, which is kept to be taken up again.
      UserError: a trial's config is refused, or the study's file is locked or damaged.
    """
    study, waiting = search.study, False
    given_up: set[str] = set()
    while True:
        with _sentences(search.storage), _hold(search.storage) as release:
            optuna.storages.fail_stale_trials(study)
            fail_dead_trials(study, search.workdir)
            take_up(study, given_up)
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            running = states.count(TrialState.RUNNING)
            left = trials - states.count(TrialState.COMPLETE) - states.count(TrialState.PRUNED)
            if running < left:
                # The proposal depends on the seed and on the number of the trial only. A trial that resumes keeps its
                # number, so a search that was stopped or killed makes the same proposals as an undisturbed one.
                seed = np.random.SeedSequence([search.base.train.seed, count_begun(study)]).generate_state(1)[0]
                study.sampler = optuna.samplers.TPESampler(seed=int(seed))
                with contextlib.ExitStack() as alive:
                    study.optimize(lambda trial: _run_trial(search, trial, trials, report, release, alive), n_trials=1)
                jax.clear_caches()  # Else the compiled steps of all trials stay in memory.
                continue
        if left <= 0 or not running:
            return
        if not waiting:
            logger.info("Waiting for the trials of other processes: %d", running)
            waiting = True
        time.sleep(POLL_SECONDS)


def list_trials(search: Search) -> list[dict]:
    """The trials that are finished, in their order.

    Returns:
      {"name": folder, "state": complete, pruned or diverged, "auroc": best val/auroc or None, "epochs", "seconds",
      "values": {field: value}} each.
    """
    with _sentences(search.storage):
        trials = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [
        {
            "name": _name(trial),
            "state": "diverged" if "diverged" in trial.user_attrs else trial.state.name.lower(),
            "auroc": max(trial.intermediate_values.values(), default=None),
            "epochs": trial.last_step or 0,
            "seconds": trial.user_attrs.get("seconds"),
            "values": _read_values(search.space, trial.params),
        }
        for trial in trials
    ]


def find_best(rows: list[dict]) -> dict | None:
    """Of `list_trials` the complete one with the largest AUROC, the first of equals; None where none is complete."""
    return max((row for row in rows if row["state"] == "complete"), key=lambda row: row["auroc"], default=None)


def compute_importances(search: Search) -> dict[str, float] | None:
    """How much of what tells the complete trials apart each field explains; together 1. None of fewer than four trials.

    References:
      Hutter, Hoos and Leyton-Brown, An efficient approach for assessing hyperparameter importance, 2014: fANOVA.
    """
    complete = [row for row in list_trials(search) if row["state"] == "complete"]
    if len(complete) < 4 or len({row["auroc"] for row in complete}) == 1:
        return None
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    with _sentences(search.storage):
        return optuna.importance.get_param_importances(search.study, evaluator=evaluator)


def _define(base: Config, space: dict[str, Range | Choices]) -> dict:
    """What a search is: two of the same can share a study."""
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
        f"{name} was {old.get(name, 'not there')}, is {new.get(name, 'not there')}"
        for old, new in ((earlier[part], definition[part]) for part in ("space", "config"))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if earlier["data"] != definition["data"]:
        differing.append("the data are others")
    if differing:
        raise UserError(
            f"{storage} holds a search of another space or config: {'; '.join(differing)}. "
            "Use another --storage and --workdir, or the earlier values."
        )


def _run_trial(
    search: Search,
    trial: optuna.Trial,
    trials: int,
    report: Callable,
    release: Callable,
    alive: contextlib.ExitStack,
) -> float:
    """Trains or resumes one trial and returns its best val/auroc.

    Args:
      search: the search.
      trial: the trial.
      trials: how many trials are wanted in all.
      report: as in `run_trials`.
      release: lets other processes begin a trial.
      alive: takes the lock that shows other processes that this one is alive. It holds it until optuna has stored the
        outcome of the trial.
    """
    values = _suggest(search.space, trial)
    name = trial.user_attrs.get("directory", f"trial_{count_begun(search.study)}")
    workdir = search.workdir / name
    workdir.mkdir(parents=True, exist_ok=True)
    alive.enter_context(lock_folder(workdir))
    trial.set_user_attr("directory", name)  # From now on a killed trial is resumed.
    release()
    words = ", ".join(f"{field} {_format(value)}" for field, value in values.items())
    logger.info("%s (%d wanted): %s", name, trials, words)
    started, spent = time.perf_counter(), trial.user_attrs.get("seconds", 0.0)
    try:
        return _train(search, trial, workdir, apply_values(search.base, values), report)
    except Diverged as error:
        trial.set_user_attr("diverged", str(error))
        raise optuna.TrialPruned from error
    except KeyboardInterrupt:
        trial.set_user_attr("stopped", True)
        raise
    finally:
        trial.set_user_attr("seconds", spent + time.perf_counter() - started)


def _train(search: Search, trial: optuna.Trial, workdir: pathlib.Path, config: Config, report: Callable) -> float:
    """Trains until the end, or until the trial is pruned or stopped."""
    reported = set()

    def tell(row: dict) -> bool:
        """Reports a validation once, and returns whether it prunes the trial."""
        epoch = round(row["epoch"])
        if "val/auroc" not in row or epoch in reported:
            return False
        reported.add(epoch)
        trial.report(row["val/auroc"], epoch)
        return epoch < config.train.epochs and trial.should_prune()

    def report_row(row: dict, total_steps: int) -> bool:
        report(row, total_steps)
        return tell(row)

    # The rows of an earlier start up to its checkpoint. The training logs those after it once more.
    saved = find_latest_step(workdir) or 0
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["step"] <= saved]
    pruned = any([tell(row) for row in rows])
    if pruned and not (workdir / "learning_curves.png").exists():
        save_learning_curves(workdir / "learning_curves.png", rows, config.data.selection_split)
    if not pruned:
        result = fit(config, workdir, report=report_row)
        if result.stopped_by:
            raise Stopped(result.stopped_by)
        pruned = result.step < result.total_steps
    if pruned:
        logger.info("%s is pruned: others were better after as many epochs", workdir.name)
        raise optuna.TrialPruned
    return result.best_auroc


def _suggest(space: dict[str, Range | Choices], trial: optuna.Trial) -> dict:
    for name, values in space.items():
        if isinstance(values, Choices):
            trial.suggest_categorical(name, [_to_word(value) for value in values.values])
        elif isinstance(values.low, int):
            trial.suggest_int(name, values.low, values.high, log=values.log)
        else:
            trial.suggest_float(name, values.low, values.high, log=values.log)
    return _read_values(space, trial.params)


def _read_values(space: dict[str, Range | Choices], params: dict) -> dict:
    """The values of a trial as the config takes them: optuna knows a tuple by its words."""
    values = {}
    for name, param in params.items():
        of_words = {_to_word(value): value for value in space[name].values} if isinstance(space[name], Choices) else {}
        values[name] = of_words.get(param, param)
    return values


def _to_word(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _format(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(_to_word(value))


def _name(trial: optuna.Trial | FrozenTrial) -> str:
    """The trial's folder: that of the first trial that began it."""
    return trial.user_attrs.get("directory", f"trial_{trial.number}")


@contextlib.contextmanager
def _hold(storage: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Keeps other processes from beginning a trial meanwhile; gives what lets them again before the end."""
    with storage.with_name(storage.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


def _check_file(storage: pathlib.Path) -> None:
    """Refuses a file that is no whole SQLite file with our study, before anything is written into it."""
    if not storage.exists() or (storage.is_file() and storage.stat().st_size == 0):
        return
    # Read and write, so that SQLite can take back what a killed process left half-written.
    uri = f"file:{urllib.parse.quote(str(storage.resolve()))}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as database:
        problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        studies = (
            {name for (name,) in database.execute("SELECT study_name FROM studies")} if "studies" in tables else ()
        )
        if tables and ("studies" not in tables or (studies and STUDY not in studies)):
            raise UserError(f"{storage} is a database of another program. Use another --storage.")


@contextlib.contextmanager
def _sentences(storage: pathlib.Path) -> Iterator[None]:
    """Turns what SQLite and its two wrappers raise into a sentence."""
    try:
        yield
    except (sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise _describe(storage, error) from error
    except (AssertionError, UnboundLocalError) as error:  # optuna's, if it could not store the outcome of a trial.
        if not isinstance(error.__context__, StorageInternalError):
            raise
        raise _describe(storage, error.__context__) from error
    except RuntimeError as error:
        if "optuna" not in str(error):
            raise
        raise UserError(f"{storage} was written by another version of optuna ({error}).") from error


def _describe(storage: pathlib.Path, error: BaseException) -> UserError:
    reason = str(error.__cause__ or error).splitlines()[0]
    if "locked" in reason:
        sentence = (
            f"{storage} was locked by another process for more than {LOCK_SECONDS} s. "
            "Start the same command again once that process is done with it."
        )
    elif "full" in reason or "I/O" in reason:
        sentence = f"{storage} cannot be written ({reason}). Make room there and start the same command again."
    else:
        sentence = (
            f"{storage} cannot be used as the storage of a search ({reason}). "
            "It is damaged, not of SQLite, or may not be written; use another --storage and --workdir."
        )
    return UserError(sentence)
