"""fit(): trains a run from its config to its checkpoints, and goes on where an earlier start of it stopped."""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import pathlib
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pneumojax import steps
from pneumojax.checkpoint import (
    check_same_run,
    find_best,
    find_replicas,
    has_checkpoints,
    open_checkpoints,
    read_run,
    restore_state,
    save_checkpoint,
    wait_for_checkpoints,
)
from pneumojax.config import CLASS_NAMES, Config, config_to_dict
from pneumojax.data.dataset import Split, load_split, make_epoch_batches, make_eval_batches, read_record, split_epoch
from pneumojax.data.stream import stream_rows
from pneumojax.errors import Diverged, UserError
from pneumojax.evaluation import metrics
from pneumojax.evaluation.operating_point import load_threshold
from pneumojax.evaluation.predict import compute_probabilities, make_predict_images
from pneumojax.evaluation.run import open_run
from pneumojax.files import append_row, read_rows, truncate_rows, write_json
from pneumojax.inference import make_extract
from pneumojax.losses import compute_class_weights
from pneumojax.models.weight_import import check_pretraining_images, compute_sha256
from pneumojax.optimizer import make_optimizer, make_schedule
from pneumojax.reporting.figures.training import save_learning_curves
from pneumojax.sharding import initialize, make_mesh, name_lost_process, put
from pneumojax.state import TrainState
from pneumojax.training.compile_cost import Watch, compile_chunk, find_peak_flops, watch
from pneumojax.training.initial_weights import load_initial_weights

logger = logging.getLogger(__name__)

# Stands among the numbers of signals for a report that asks to stop; none that is caught has it.
ASKED = 1

VERSIONED = ("pneumojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a call of `fit` reached.

    Attributes:
      step: training steps of the run so far.
      total_steps: training steps of the whole run.
      steps_per_epoch: training steps of an epoch.
      best_step: step of the best checkpoint; None before the first validation.
      best_auroc: its val/auroc.
      trained_steps: training steps of this call; 0: the run was finished before.
      threshold: content of threshold.json; None as long as the run is not finished.
      stopped_by: number of the signal that ended the call early, or None.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    best_step: int | None
    best_auroc: float | None
    trained_steps: int
    threshold: dict | None
    stopped_by: int | None


def fit(
    config: Config,
    workdir: str | pathlib.Path,
    restart: bool = False,
    report: Callable[[dict, int], bool | None] = lambda row, total_steps: None,
) -> FitResult:
    """Trains until the config's last epoch; a workdir with an unfinished run of the same config is continued exactly.

    SIGTERM and Ctrl-C save a checkpoint at the end of the chunk in hand and end the call; a killed run goes on from
    its last checkpoint.

    Args:
      config: the run.
      workdir: folder of the run; `checkpoint.py` says what lies in it.
      restart: delete what an earlier run left in the workdir.
      report: called, in the process that writes metrics.jsonl, with each row and the number of steps of the whole run.
        True ends the call as a signal does: with a checkpoint, to go on from.

    Returns:
      What was reached.

    Raises:
      UserError: bad data, a workdir of another run, a batch that does not fit, or (Diverged) a loss that is not finite.
    """
    workdir = pathlib.Path(workdir).expanduser()
    train = config.train
    initialize(train.multihost)
    mesh = make_mesh()
    if train.replicas > 1:
        raise UserError(f"fit trains one run; replicas={train.replicas} are trained by replicas.fit_replicas.")
    check_batch_size(train.batch_size, mesh)
    data, selection = load_splits(config)
    chunks, chunk_steps = split_epoch(len(data), train.batch_size, train.chunk_steps)
    total_steps = train.epochs * chunks * chunk_steps
    run = describe_run(config)

    labels = data.labels(config.model.task)
    tx = make_optimizer(config.optimizer, total_steps)
    graph = steps.make_graph(config)
    class_weights = compute_class_weights(labels, config.model.task, config.optimizer.class_weights)
    sizes = config.data.progressive_px or (config.data.image_px,)
    train_chunks = [steps.make_train_chunk(config, graph, tx, class_weights, mesh, image_px) for image_px in sizes]
    fresh = steps.init_state(config, tx, mesh)
    if config.model.pretrained and (restart or not has_checkpoints(workdir)):
        # Before anything is written or deleted: the file may not fit.
        fresh = load_initial_weights(config, fresh, mesh)
        check_pretraining_images(config.model.pretrained, data.fingerprint)

    with name_lost_process(), hold_workdir(workdir, run, restart), open_checkpoints(workdir) as checkpoints:
        state = resume(workdir, checkpoints, fresh, mesh)
        log = Log(workdir, config, chunks * chunk_steps, total_steps, report)
        key = steps.make_key(config, mesh)
        step = first_step = int(state.step)
        images, selection_images, cached_views = data.images, selection.images, config.model.cached_views
        if cached_views and step < total_steps:
            extract = _make_extract_split(config, graph, state, key, mesh)
            images, selection_images = extract(data, cached_views), extract(selection, 1)
        validate = _make_validate(config, selection.labels(config.model.task), selection_images, mesh)
        chunk_inputs = feed(config, (images, labels), step, mesh)
        stopped_by = 0
        compiled = {}
        with contextlib.closing(chunk_inputs), catch_signals() as caught, jax.transfer_guard("disallow"):
            while step < total_steps and not (stopped_by := highest_of_processes(caught[0] if caught else log.asked)):
                epoch, chunk = divmod(step // chunk_steps, chunks)
                size = epoch * len(sizes) // train.epochs
                log.start_chunk()
                inputs = (state, *next(chunk_inputs), key)
                if size not in compiled:
                    compiled[size], costs = compile_chunk(
                        train_chunks[size], inputs, mesh.size, train.parallel != "jit"
                    )
                    log.start_size(costs)
                state, sums = compiled[size](*inputs)
                step += chunk_steps
                log.end_chunk(step, sums, watch(sums))
                if chunk == chunks - 1:
                    log.flush()
                    auroc = log.validation(step, validate(state))
                    save_checkpoint(checkpoints, step, state, run, auroc)
            log.flush()
            if step != checkpoints.latest_step():
                save_checkpoint(checkpoints, step, state, run, auroc=None)
            wait_for_checkpoints(checkpoints)
        best_step, best_auroc = find_best(checkpoints) or (None, None)
        threshold = None
        if step == total_steps:
            threshold = load_threshold(open_run(workdir, "best", config.data.data_dir), config.threshold)
        curves = workdir / "learning_curves.png"
        if jax.process_index() == 0 and (step > first_step or not curves.exists()):
            save_learning_curves(curves, read_rows(workdir / "metrics.jsonl"), selection.name)
    return FitResult(
        step=step,
        total_steps=total_steps,
        steps_per_epoch=chunks * chunk_steps,
        best_step=best_step,
        best_auroc=best_auroc,
        trained_steps=step - first_step,
        threshold=threshold,
        stopped_by=stopped_by if stopped_by not in (0, ASKED) else None,
    )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises a UserError where the devices cannot share a batch evenly."""
    if batch_size % mesh.size:
        raise UserError(f"batch_size {batch_size} is not divisible by the {mesh.size} devices it is spread over.")


def load_splits(config: Config) -> tuple[Split, Split]:
    """The training split, and the one that chooses epoch, threshold and temperature.

    Raises:
      UserError: the data set is not prepared or damaged, or the second has one class only.
    """
    data, selection = load_split(config.data, "train"), load_split(config.data, config.data.selection_split)
    if selection.name == "test":
        logger.warning(
            "selection_split=test is the leaky protocol: test chooses the epoch, the threshold and the temperature, so "
            "its figures are worthless but for showing that."
        )
    if len(np.unique(selection.labels("binary"))) < 2:
        raise UserError(
            f"the {selection.name} split has one class only: no model can be chosen on it. Prepare more images."
        )
    return data, selection


def describe_run(config: Config) -> dict:
    """What config.json and each checkpoint hold: enough to open the run without its code's defaults or its data."""
    record = read_record(config.data)
    devices = jax.devices()
    return {
        "config": config_to_dict(config),
        "pretrained_sha256": compute_sha256(config.model.pretrained) if config.model.pretrained else None,
        "class_names": list(CLASS_NAMES[config.model.task]),
        "image_px": config.data.image_px,
        "pixels": {"dtype": "uint8", "range": [0, 255], "mean": steps.PIXEL_MEAN, "std": steps.PIXEL_STD},
        "data": {name: record.get(name) for name in ("fingerprint", "fingerprints", "source", "synthetic", "counts")},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONED},
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def feed(config: Config, columns: tuple[np.ndarray, ...], first_step: int, mesh: Mesh) -> Iterator[tuple]:
    """Yields what a chunk takes between state and key, in the run's order, from the config's loader.

    Args:
      config: the run.
      columns: arrays [N, ...] of equal length: the images, or features of them, and their labels where they are used.
      first_step: where the run goes on.
      mesh: the devices.

    Yields:
      The arguments of one chunk.
    """
    train, num_images = config.train, len(columns[0])
    chunks, chunk_steps = split_epoch(num_images, train.batch_size, train.chunk_steps)
    numbers = range(first_step // chunk_steps, train.epochs * chunks)

    def choose(number):
        epoch, chunk = divmod(number, chunks)
        return make_epoch_batches(num_images, train.batch_size, chunks, chunk_steps, train.seed, epoch)[chunk]

    if train.loader == "stream":
        yield from stream_rows(columns, lambda number: steps.shape_batches(choose(number), config, mesh), numbers, mesh)
    else:
        columns = tuple(put(column, mesh) for column in columns)
        for number in numbers:
            yield *columns, steps.put_batches(choose(number), config, mesh)


def _make_validate(config: Config, labels: np.ndarray, images: np.ndarray, mesh: Mesh) -> Callable:
    """Returns `validate(state) -> {"val/loss", "val/accuracy", "val/auroc"}`, exact over the images, or features."""
    predict_images = make_predict_images(config, images, mesh, cached=bool(config.model.cached_views))

    def validate(state):
        return score_validation(labels, predict_images(state.eval_variables()))

    return validate


def _make_extract_split(config: Config, graph, state, key, mesh) -> Callable:
    """Returns `extract_split(split, views) -> [N, views, ...]`, the features of views of each image of a split."""
    extract = make_extract(config, graph, mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    def extract_split(split, views):
        images, labels = put(split.images, mesh), put(split.labels(config.model.task), mesh)
        batches = make_eval_batches(len(split), config.train.eval_batch_size, mesh.size)
        batches = [put(batch, mesh, axis=0) for batch in batches]
        features, told = [], time.monotonic()
        for view in range(views):
            number = put(np.int32(view), mesh)
            rows = []
            for i, batch in enumerate(batches):
                rows.append(jax.device_get(extract(variables, images, labels, batch, number, key)))
                done = view * len(batches) + i + 1
                if time.monotonic() - told > 10 or done == views * len(batches):
                    told = time.monotonic()
                    logger.info("Features of %s: batch %d of %d", split.name, done, views * len(batches))
            features.append(np.concatenate(rows)[: len(split)])
        return np.stack(features, 1)

    return extract_split


def score_validation(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """A row of validation.

    Args:
      labels: [N] int32, class indices.
      logits: [N, C] float32.

    Returns:
      {"val/loss", "val/accuracy", "val/auroc"}; the loss alone where it is not finite.
    """
    with np.errstate(invalid="ignore"):  # The row will say it.
        probabilities = compute_probabilities(logits)
    if not np.isfinite(probabilities).all():
        return {"val/loss": float("nan")}
    true_class = probabilities[np.arange(len(labels)), labels]
    return {
        "val/loss": float(-np.log(np.maximum(true_class, 1e-300)).mean()),
        "val/accuracy": float((probabilities.argmax(-1) == labels).mean()),
        "val/auroc": metrics.compute_auroc(labels, metrics.compute_binary_scores(probabilities)),
    }


class Log:
    """Rows of metrics.jsonl. A chunk's sums are fetched when the next chunk is already under way.

    Args:
      workdir: folder of the run.
      config: the run.
      steps_per_epoch: training steps of an epoch.
      total_steps: training steps of the whole run.
      report: as in `fit`.
      replica: whose place in the sums of all replicas is logged; None: a run of one.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: Config,
        steps_per_epoch: int,
        total_steps: int,
        report: Callable,
        replica: int | None = None,
    ):
        self.path = workdir / "metrics.jsonl"
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.report = report
        self.replica = replica
        self.asked = 0  # ASKED once the report wants to stop
        self.schedule = make_schedule(config.optimizer, total_steps)
        self.peak_flops = find_peak_flops(jax.devices()[0].device_kind, config.model.dtype)
        self.costs = {}
        self.pending = None
        self.started = None
        self.ended = None

    def start_size(self, costs: dict) -> None:
        """Takes what a chunk of images of a new size costs; its first one warms up, and has that instead of a speed."""
        self.costs, self.ended = costs, None

    def start_chunk(self) -> None:
        """Marks that the loop is back at training: from here on, a device without work waits for the host."""
        self.started = time.perf_counter()

    def end_chunk(self, step: int, sums: dict, chunk: Watch) -> None:
        """Takes the sums of a chunk that was just dispatched; writes the row of the one before it."""
        current = (step, sums, self.started, chunk)
        self.flush()
        self.pending = current

    def flush(self) -> None:
        """Writes the row of the chunk that is still on its way.

        Raises:
          Diverged: its loss is not finite.
        """
        if self.pending is None:
            return
        step, sums, started, chunk = self.pending
        self.pending = None
        sums = jax.device_get(sums)
        if self.replica is not None:
            sums = {name: values[self.replica] for name, values in sums.items()}
        losses, count = sums["loss"] / sums["count"], sums["count"].sum()
        if not np.isfinite(losses).all():
            self._stop(step - len(losses) + 1 + int(np.argmin(np.isfinite(losses))))
        with jax.transfer_guard("allow"):
            learning_rate = float(self.schedule(step - 1))
        row = {
            "train/loss": float(sums["loss"].sum() / count),
            "train/accuracy": float(sums["correct"].sum() / count),
            "train/learning_rate": learning_rate,
        }
        before, self.ended = self.ended, chunk.wait_end()
        if before is None:  # The first chunk of a start, or of a size, warms up.
            row |= self.costs
        else:
            free = max(started, before)  # From here on the devices had nothing else to do.
            seconds = self.ended - free
            row["perf/images_per_second"] = float(count / seconds)
            row["perf/host_share"] = max(0.0, chunk.dispatched - free) / seconds
            if self.peak_flops and "perf/flops_per_step" in self.costs:
                reached = self.costs["perf/flops_per_step"] * len(losses) / seconds
                row["perf/model_flop_utilisation"] = reached / (self.peak_flops * jax.device_count())
        self._write(step, row)

    def validation(self, step: int, row: dict) -> float:
        """Writes a row of validation; returns its AUROC.

        Raises:
          Diverged: the loss is not finite.
        """
        if not np.isfinite(row["val/loss"]):
            self._stop(step)
        self._write(step, row)
        return row["val/auroc"]

    def _write(self, step: int, row: dict) -> None:
        row = {"step": step, "epoch": step / self.steps_per_epoch} | row
        if jax.process_index() == 0:
            append_row(self.path, row)
            if self.report(row, self.total_steps) is True:
                self.asked = ASKED

    def _stop(self, step: int) -> None:
        raise Diverged(
            f"the loss is not finite at step {step} of {self.total_steps}. The last good checkpoint is kept in "
            f"{self.path.parent}; a lower --learning_rate in another --workdir is the usual cure."
        )


def resume(workdir: pathlib.Path, checkpoints, fresh: TrainState, mesh) -> TrainState:
    """The latest checkpoint's state, or the fresh one; the log is cut to it."""
    step = checkpoints.latest_step()
    state = fresh if step is None else restore_state(checkpoints, step, fresh, mesh)
    cut_log(workdir, step or 0)
    if step is not None:
        logger.info("Going on from step %d of %s", step, workdir)
    return state


def cut_log(workdir: pathlib.Path, step: int) -> None:
    """Drops what was logged after a step; a log that ends there is left as it is."""
    log = workdir / "metrics.jsonl"
    if jax.process_index() == 0 and log.exists():
        kept = sum(row["step"] <= step for row in read_rows(log))
        if kept < len(log.read_text().splitlines()):
            truncate_rows(log, step)


@contextlib.contextmanager
def hold_workdir(workdir: pathlib.Path, run: dict, restart: bool) -> Iterator[None]:
    """Makes or checks the workdir, and keeps other trainings out of it meanwhile.

    Args:
      workdir: folder of the run.
      run: content of config.json.
      restart: delete what an earlier run left in the workdir.

    Raises:
      UserError: another training is running there, the workdir is of another run or program, or the processes were
        started with different configs or data.
    """
    _check_same_start(run)
    with contextlib.ExitStack() as stack:
        refusal = None
        if jax.process_index() == 0:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((workdir / ".lock").open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _prepare_workdir(workdir, run, restart)
            except BlockingIOError:
                refusal = UserError(f"another training is running in {workdir}. Wait for it, or use another --workdir.")
            except FileExistsError:
                refusal = UserError(f"{workdir} is a file, not a folder. Use another --workdir.")
            except (UserError, OSError) as error:
                refusal = error
        refused = highest_of_processes(int(refusal is not None))  # else the others would wait for process 0 for ever
        if refusal:
            raise refusal
        if refused:
            raise UserError("process 0 refuses the workdir; its own message says why.")
        yield


def _check_same_start(run: dict) -> None:
    """Raises a UserError where the processes do not all start the same run: what they reduce would not belong together.

    Where the files lie may differ.
    """
    config = {name: value for name, value in run["config"].items() if name not in ("data_dir", "pretrained")}
    content = json.dumps([config, run["data"]["fingerprint"], run["pretrained_sha256"]], sort_keys=True)
    number = int(hashlib.sha256(content.encode()).hexdigest()[:7], 16)  # JAX's integers have 32 bits.
    if highest_of_processes(number) != -highest_of_processes(-number):
        raise UserError(
            "multihost: the processes were started with different configs or data. Start each with the same command "
            "on the same data."
        )


def _prepare_workdir(workdir: pathlib.Path, run: dict, restart: bool) -> None:
    config = workdir / "config.json"
    if not config.exists():
        if (workdir / "checkpoints").exists():
            raise UserError(
                f"{workdir} holds checkpoints but no config.json: not a run of pneumojax. Use another --workdir."
            )
    elif restart:
        read_run(config)  # Nothing is deleted in a folder of another program.
        for folder in find_replicas(workdir):
            shutil.rmtree(folder)
        # config.json last: where this is interrupted, the folder is still one of ours.
        for name in (
            "checkpoints",
            "evaluation",
            "backbone.safetensors",
            "metrics.jsonl",
            "learning_curves.png",
            "threshold.json",
            "calibration.json",
            "config.json",
        ):
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    else:
        earlier = check_same_run(config, run)
        run["pretrained_sha256"] = earlier.get("pretrained_sha256")  # The file may be gone since.
        return
    write_json(config, run)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list instead of ending in the middle of a step. A second Ctrl-C ends at once."""
    caught: list[int] = []

    def remember(number, frame):
        del frame
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    earlier = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def highest_of_processes(number: int) -> int:
    """The highest number in any process: what ends one must end all, at the same step."""
    if jax.process_count() == 1:
        return number
    with jax.transfer_guard("allow"):
        return int(multihost_utils.process_allgather(np.array(number)).max())
