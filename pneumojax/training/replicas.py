"""fit_replicas(): trains several runs in one compiled program. Each gets a folder like that of a single run."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Generator, Iterator, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from pneumojax import replica_steps, steps
from pneumojax.checkpoint import has_checkpoints, open_checkpoints, restore_state, save_checkpoint, wait_for_checkpoints
from pneumojax.config import SWEPT, Config, config_to_dict
from pneumojax.data.batches import make_epoch_batches, make_eval_batches
from pneumojax.data.dataset import Split
from pneumojax.errors import Diverged, UserError
from pneumojax.evaluation.aspect import add_swapped
from pneumojax.files import append_row, read_rows, write_json
from pneumojax.reporting.figures.training import save_learning_curves
from pneumojax.sharding import measure_free_bytes, put, replicas_partitioned
from pneumojax.state import TrainState
from pneumojax.training.fit import FitResult, finish_run, train_until_stopped
from pneumojax.training.initial_weights import load_initial_weights
from pneumojax.training.interrupts import STOP_REQUESTED, catch_signals
from pneumojax.training.memory import estimate_memory
from pneumojax.training.metric_log import MetricLog, Report, Watch, report_nothing
from pneumojax.training.plan import TrainingPlan, load_selection_split, make_plan
from pneumojax.training.sweep import plan_replicas
from pneumojax.training.validation import compute_selection_score, score_validation
from pneumojax.training.workdir import describe_run, hold_workdir, truncate_log

logger = logging.getLogger(__name__)


def fit_replicas(
    config: Config,
    workdir: str | pathlib.Path,
    restart: bool = False,
    report: Report = report_nothing,
) -> list[FitResult]:
    """Trains the config's replicas until their last epoch. It stops and resumes as `fit` does.

    Replica r has config r of `sweep.plan_replicas` and the folder `<workdir>/replica_<r>`. If the loss of a replica is
    no longer finite, that replica keeps its last good checkpoint while the others continue.

    Args:
      config: the config of all replicas.
      workdir: parent folder of the replicas' folders.
      restart: delete the files that an earlier run left in the workdir.
      report: called with each row of the workdir's metrics.jsonl and the total number of steps. The values of the row
        are means over the replicas (sums for images per second and FLOP). If it returns True, training stops.

    Returns:
      The result of each replica. A replica without a threshold at the end has diverged.

    Raises:
      UserError: as in `fit`; or the sweep file is invalid, the replicas do not fit into memory, or all have diverged.
    """
    configs = plan_replicas(config)
    workdir, plan = pathlib.Path(workdir).expanduser(), make_plan(config)
    selection = add_swapped(load_selection_split(config))
    check_memory(plan, plan.data.images.nbytes + selection.images.nbytes)
    train_chunks = _make_train_chunks(plan)
    validate = _make_validate(plan, selection)
    folders = [workdir / f"replica_{number}" for number in range(len(configs))]
    fresh = _init_replicas(plan, configs, restart or not all(map(has_checkpoints, folders)))

    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_workdir(workdir, describe_run(config), restart))
        replicas = [
            stack.enter_context(_open_replica(number, *args))
            for number, args in enumerate(zip(configs, folders, strict=True))
        ]
        first_step = _find_common_step(workdir, replicas)
        state = replica_steps.put_replicas(_restore(replicas, first_step, fresh, plan.mesh), config, plan.mesh)
        truncate_log(workdir, first_step)
        log = _ReplicaLogs(workdir, replicas, plan, report)

        def end_epoch(step: int, state: TrainState) -> None:
            rows = validate(state)
            log.write_validation(step, rows)
            _save(replicas, step, state, rows)

        with catch_signals() as caught:
            chunk_inputs = _make_chunk_inputs(plan, configs, first_step)
            state, step, stopped_by = train_until_stopped(
                plan, state, first_step, train_chunks, chunk_inputs, log, end_epoch, caught
            )
            if step not in _find_steps(replicas):
                _save(replicas, step, state, None)
            for replica in replicas:
                wait_for_checkpoints(replica.checkpoints)
        return _finish_runs(workdir, plan, replicas, step - first_step, stopped_by)


def _finish_runs(
    workdir: pathlib.Path, plan: TrainingPlan, replicas: Sequence["_Replica"], trained_steps: int, stopped_by: int
) -> list[FitResult]:
    """Finishes each replica as `finish_run` does, and draws the mean learning curves of all."""
    results = [
        finish_run(
            replica.workdir,
            replica.config,
            plan,
            replica.checkpoints,
            replica.checkpoints.latest_step() or 0,
            trained_steps,
            stopped_by,
        )
        for replica in replicas
    ]
    curves = workdir / "learning_curves.png"
    if trained_steps or not curves.exists():
        rows = read_rows(workdir / "metrics.jsonl")
        split, title = plan.config.data.selection_split, f"mean of {len(replicas)} replicas"
        save_learning_curves(curves, rows, split, title, plan.config.train.select_by)
    return results


def _make_train_chunks(plan: TrainingPlan) -> list[jax.stages.Wrapped]:
    """Makes the training chunk of all replicas for each image size. Each is compiled at its first use."""
    class_weights = plan.class_weights()
    return [
        replica_steps.make_replicas_chunk(plan.config, plan.graph, plan.total_steps, class_weights, plan.mesh, image_px)
        for image_px in plan.image_sizes
    ]


def _init_replicas(plan: TrainingPlan, configs: Sequence[Config], starts: bool) -> list[TrainState]:
    """Makes the initial state of each replica. `starts` is False if the run resumes and needs no pretrained weights."""
    init = steps.make_init(plan.config, plan.tx, plan.mesh)
    fresh = [init(jax.random.key(config.train.seed)) for config in configs]
    if plan.config.model.pretrained and starts:
        # The weights may not fit the network, so they are loaded before anything is written or deleted.
        fresh = load_initial_weights(plan, fresh)
    return fresh


def _make_chunk_inputs(plan: TrainingPlan, configs: Sequence[Config], first_step: int) -> Generator[tuple]:
    """Makes a generator of (images, labels, index batches, keys, swept values) for each chunk, in order."""
    config, mesh = plan.config, plan.mesh
    images, labels = put(plan.data.images, mesh), put(plan.labels(), mesh)
    seeds = [replica.train.seed for replica in configs]
    key = replica_steps.make_replica_keys(np.array(seeds, np.int32), mesh)
    swept = replica_steps.put_replicas(_collect_swept(config, configs), config, mesh)
    sizes = (len(plan.data), config.train.batch_size, plan.chunks, plan.chunk_steps)

    def make_inputs(number: int) -> tuple:
        epoch, chunk = divmod(number, plan.chunks)
        batches = np.stack([make_epoch_batches(*sizes, seed, epoch)[chunk] for seed in seeds])
        return images, labels, replica_steps.put_replica_batches(batches, config, mesh), key, swept

    return (make_inputs(n) for n in range(first_step // plan.chunk_steps, config.train.epochs * plan.chunks))


def check_memory(plan: TrainingPlan, data_bytes: int) -> None:
    """Estimates whether the replicas fit into the memory of each device.

    Args:
      plan: the training plan.
      data_bytes: size of the images, which are copied to each device.

    Raises:
      UserError: they do not fit. The message has the estimate and the number of replicas that would fit.
    """
    config, mesh = plan.config, plan.mesh
    each, once = estimate_memory(config, plan.graph, plan.tx, mesh)
    replicas, free = config.train.replicas, measure_free_bytes(mesh)
    devices = mesh.size if replicas_partitioned(replicas, mesh) else 1
    needed = data_bytes + once + each * replicas // devices
    if needed > free:
        fitting = max(0, (free - data_bytes - once) // each) * devices
        raise UserError(
            f"replicas={replicas} need about {needed / 2**30:.1f} GiB of each device's memory, of which "
            f"{free / 2**30:.1f} GiB are free: about {fitting} would fit. Lower --replicas or --batch_size."
        )


@dataclasses.dataclass(frozen=True)
class _Replica:
    """An open run of one replica."""

    number: int
    workdir: pathlib.Path
    config: Config
    run: dict
    checkpoints: ocp.CheckpointManager

    @property
    def diverged(self) -> pathlib.Path:
        """The file that marks a replica whose loss is no longer finite."""
        return self.workdir / "diverged.json"


@contextlib.contextmanager
def _open_replica(number: int, config: Config, workdir: pathlib.Path) -> Iterator[_Replica]:
    run = describe_run(config)
    # Two checkpoints are kept: if a save is killed half-way, all replicas still have the step before it.
    with hold_workdir(workdir, run, restart=False), open_checkpoints(workdir, keep_latest=2) as checkpoints:
        yield _Replica(number, workdir, config, run, checkpoints)


def _live(replicas: Sequence[_Replica]) -> list[_Replica]:
    """Returns the replicas that have not diverged.

    Raises:
      UserError: all have diverged.
    """
    live = [replica for replica in replicas if not replica.diverged.exists()]
    if not live:
        raise UserError(
            f"all replicas in {replicas[0].workdir.parent} have diverged: their losses are not finite. Lower "
            "--learning_rate, or that of the sweep, and start again with --restart."
        )
    return live


@contextlib.contextmanager
def _stop_diverged(replica: _Replica) -> Iterator[None]:
    """Records that this replica has diverged, and lets the others continue."""
    try:
        yield
    except Diverged as error:
        logger.warning("replica_%d has diverged, the others continue: %s", replica.number, error)
        write_json(replica.diverged, {"reason": str(error)})


def _find_steps(replicas: Sequence[_Replica]) -> set[int]:
    """Returns the steps for which every replica that has not diverged has a checkpoint."""
    return set.intersection(*(set(replica.checkpoints.all_steps()) for replica in _live(replicas)))


def _find_common_step(workdir: pathlib.Path, replicas: Sequence[_Replica]) -> int:
    """Returns the step from which all replicas resume, or 0. Deletes later checkpoints that only some of them have."""
    step = max(_find_steps(replicas), default=0)
    for replica in _live(replicas):
        for later in [saved for saved in replica.checkpoints.all_steps() if saved > step]:
            replica.checkpoints.delete(later)
        truncate_log(replica.workdir, step)
    if step:
        logger.info("Resuming from step %d of %s", step, workdir)
    return step


def _restore(replicas: Sequence[_Replica], step: int, fresh: Sequence[TrainState], mesh: Mesh) -> TrainState:
    """Returns the states of all replicas at a step, as host arrays with a leading replica axis."""
    states = []
    for replica, state in zip(replicas, fresh, strict=True):
        if step and not replica.diverged.exists():
            state = restore_state(replica.checkpoints, step, state, mesh)
        states.append(jax.device_get(state))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def _collect_swept(config: Config, configs: Sequence[Config]) -> dict[str, np.ndarray]:
    """Returns {field: [R] float32} for the fields that differ from the config in any replica."""
    common, columns = (
        config_to_dict(config),
        {name: [config_to_dict(replica)[name] for replica in configs] for name in SWEPT},
    )
    return {name: np.array(column, np.float32) for name, column in columns.items() if set(column) != {common[name]}}


def _make_validate(plan: TrainingPlan, split: Split) -> Callable[[TrainState], list[dict[str, float]]]:
    """Returns `validate(state) -> rows`, with a row of metrics over the whole split for each replica."""
    config, mesh, labels = plan.config, plan.mesh, split.labels(plan.config.model.task)
    predict_batches = replica_steps.make_replicas_predict(config, plan.graph, mesh)
    images = put(split.images, mesh)
    partitioned = replicas_partitioned(config.train.replicas, mesh)
    batches = make_eval_batches(len(split), config.train.eval_batch_size, 1 if partitioned else mesh.size)
    on_devices = put(batches, mesh, axis=None if partitioned else 1)

    def validate(state: TrainState) -> list[dict[str, float]]:
        logits = jax.device_get(predict_batches(state.eval_variables(), images, on_devices))
        logits = logits.reshape(len(logits), -1, logits.shape[-1])[:, : len(labels)]
        return [score_validation(labels, replica_logits) for replica_logits in logits]

    return validate


# Columns whose values add up over the replicas: the log of all replicas has their sum, not their mean.
SUMMED = {
    f"perf/{name}" for name in ("images_per_second", "flops_per_step", "bytes_per_step", "model_flop_utilisation")
}


class _ReplicaLogs:
    """A `ChunkLog` that writes a log for each replica, and a log of their means in the common workdir."""

    def __init__(self, workdir: pathlib.Path, replicas: Sequence[_Replica], plan: TrainingPlan, report: Report):
        self.path = workdir / "metrics.jsonl"
        self.replicas = replicas
        self.total_steps = plan.total_steps
        self.report = report
        self.rows: list[dict] = []
        self.stop_requested = 0
        self.logs = [
            MetricLog(
                replica.workdir,
                replica.config,
                plan.steps_per_epoch,
                plan.total_steps,
                lambda row, _: self.rows.append(row),
                replica.number,
            )
            for replica in replicas
        ]

    def start_size(self, costs: dict[str, float]) -> None:
        own = {name: cost / len(self.logs) if name in SUMMED else cost for name, cost in costs.items()}
        for log in self.logs:
            log.start_size(own)

    def start_chunk(self) -> None:
        for log in self.logs:
            log.start_chunk()

    def end_chunk(self, step: int, sums: dict, chunk: Watch) -> None:
        self._write(lambda log, _: log.end_chunk(step, sums, chunk))

    def flush(self) -> None:
        self._write(lambda log, _: log.flush())

    def write_validation(self, step: int, rows: list[dict]) -> None:
        self._write(lambda log, number: log.write_validation(step, rows[number]))

    def _write(self, write: Callable[[MetricLog, int], object]) -> None:
        """Lets each replica write its row, if it has one, and writes the mean of these rows."""
        for replica in _live(self.replicas):
            with _stop_diverged(replica):
                write(self.logs[replica.number], replica.number)
        if self.rows:
            mean = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
            mean["step"] = self.rows[0]["step"]
            mean |= {name: mean[name] * len(self.rows) for name in mean.keys() & SUMMED}
            append_row(self.path, mean)
            if self.report(mean, self.total_steps) is True:
                self.stop_requested = STOP_REQUESTED
        self.rows.clear()


def _save(replicas: Sequence[_Replica], step: int, state: TrainState, rows: Sequence[dict] | None) -> None:
    """Saves the state of each replica. `rows` has the validation row of each replica; None: they were not validated."""
    on_host = jax.device_get(state)
    for replica in _live(replicas):
        wait_for_checkpoints(replica.checkpoints)
    for replica in _live(replicas):
        # The arrays are copied because the state is donated to the next chunk while it is being saved.
        own = jax.tree.map(lambda leaf, number=replica.number: np.array(leaf[number]), on_host)
        with _stop_diverged(replica):
            auroc = score = None
            if rows:
                row = rows[replica.number]
                auroc, score = row["val/auroc"], compute_selection_score(row, replica.config.train.select_by, step)
            save_checkpoint(replica.checkpoints, step, own, replica.run, auroc, score)
