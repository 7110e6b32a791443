"""fit_replicas(): trains several runs in one program and leaves each as if it had been trained alone."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh

from pneumojax import replica_steps, steps
from pneumojax.checkpoint import (
    find_best,
    has_checkpoints,
    open_checkpoints,
    restore_state,
    save_checkpoint,
    wait_for_checkpoints,
)
from pneumojax.config import SWEPT, Config, config_to_dict, plan_replicas
from pneumojax.data.dataset import Split, make_epoch_batches, make_eval_batches, split_epoch
from pneumojax.errors import Diverged, UserError
from pneumojax.evaluation.operating_point import load_threshold
from pneumojax.evaluation.run import open_run
from pneumojax.files import append_row, read_rows, write_json
from pneumojax.losses import compute_class_weights
from pneumojax.models.weight_import import check_pretraining_images
from pneumojax.optimizer import make_optimizer
from pneumojax.reporting.figures.training import save_learning_curves
from pneumojax.sharding import initialize, make_mesh, measure_free_bytes, put
from pneumojax.state import TrainState
from pneumojax.training.compile_cost import Watch, compile_chunk, watch
from pneumojax.training.fit import (
    FitResult,
    Log,
    catch_signals,
    check_batch_size,
    cut_log,
    describe_run,
    hold_workdir,
    load_splits,
    score_validation,
)
from pneumojax.training.initial_weights import load_initial_weights
from pneumojax.training.memory import estimate_memory

logger = logging.getLogger(__name__)


def fit_replicas(
    config: Config,
    workdir: str | pathlib.Path,
    restart: bool = False,
    report: Callable[[dict, int], bool | None] = lambda row, total_steps: None,
) -> list[FitResult]:
    """Trains the config's replicas until their last epoch; as `fit`, it continues exactly where it was stopped.

    Replica r is the run that `config.plan_replicas` gives for it, and `<workdir>/replica_<r>` the folder of that run. A
    replica whose loss is not finite any more is left at its last good checkpoint; the others go on.

    Args:
      config: the run.
      workdir: folder of all replicas.
      restart: delete what an earlier run left in the workdir.
      report: called with each row of the workdir's metrics.jsonl, which are means over the replicas (images per second:
        the sum), and the number of steps of the whole run. True ends the call as a signal does.

    Returns:
      What each replica reached; a replica without a threshold at the end has diverged.

    Raises:
      UserError: as of `fit`; the file of the sweep is bad; more replicas than fit into memory; all have diverged.
    """
    workdir = pathlib.Path(workdir).expanduser()
    train = config.train
    initialize(multihost=False)
    mesh = make_mesh()
    plans = plan_replicas(config)
    if not replica_steps.replicas_partitioned(len(plans), mesh):
        check_batch_size(train.batch_size, mesh)
    data, selection = load_splits(config)
    chunks, chunk_steps = split_epoch(len(data), train.batch_size, train.chunk_steps)
    total_steps = train.epochs * chunks * chunk_steps

    labels = data.labels(config.model.task)
    tx = make_optimizer(config.optimizer, total_steps)
    graph = steps.make_graph(config)
    check_memory(config, graph, tx, mesh, data.images.nbytes + selection.images.nbytes)
    class_weights = compute_class_weights(labels, config.model.task, config.optimizer.class_weights)
    sizes = config.data.progressive_px or (config.data.image_px,)
    train_chunks = [
        replica_steps.make_replicas_chunk(config, graph, total_steps, class_weights, mesh, image_px)
        for image_px in sizes
    ]
    validate = _make_validate(config, replica_steps.make_replicas_predict(config, graph, mesh), selection, mesh)
    folders = [workdir / f"replica_{number}" for number in range(len(plans))]
    init = steps.make_init(config, tx, mesh)
    fresh = [init(jax.random.key(plan.train.seed)) for plan in plans]
    if config.model.pretrained and (restart or not all(map(has_checkpoints, folders))):
        # Before anything is written or deleted: the file may not fit.
        fresh = [load_initial_weights(plan, state, mesh) for plan, state in zip(plans, fresh, strict=True)]
        check_pretraining_images(config.model.pretrained, data.fingerprint)

    with contextlib.ExitStack() as stack:
        stack.enter_context(hold_workdir(workdir, describe_run(config), restart))
        replicas = [
            stack.enter_context(_open_replica(number, plan, folder))
            for number, (plan, folder) in enumerate(zip(plans, folders, strict=True))
        ]
        step = first_step = _find_common_step(workdir, replicas)
        state = replica_steps.put_replicas(_restore(replicas, step, fresh, mesh), config, mesh)
        cut_log(workdir, step)
        logs = _Logs(workdir, replicas, chunks * chunk_steps, total_steps, report)
        images, labels = put(data.images, mesh), put(labels, mesh)
        key = replica_steps.make_replica_keys(np.array([plan.train.seed for plan in plans], np.int32), mesh)
        swept = replica_steps.put_replicas(_collect_swept(config, plans), config, mesh)
        compiled = {}
        with catch_signals() as caught, jax.transfer_guard("disallow"):
            while step < total_steps and not caught and not logs.asked:
                epoch, chunk = divmod(step // chunk_steps, chunks)
                order = (len(data), train.batch_size, chunks, chunk_steps)
                batches = np.stack([make_epoch_batches(*order, plan.train.seed, epoch)[chunk] for plan in plans])
                batches = replica_steps.put_replica_batches(batches, config, mesh)
                size = epoch * len(sizes) // train.epochs
                logs.start_chunk()
                inputs = (state, images, labels, batches, key, swept)
                if size not in compiled:
                    mapped = replica_steps.replicas_partitioned(len(plans), mesh)
                    compiled[size], costs = compile_chunk(train_chunks[size], inputs, mesh.size, mapped)
                    logs.start_size(costs)
                state, sums = compiled[size](*inputs)
                step += chunk_steps
                logs.end_chunk(step, sums, watch(sums))
                if chunk == chunks - 1:
                    logs.flush()
                    aurocs = logs.validation(step, validate(state))
                    _save(replicas, step, state, aurocs)
            logs.flush()
            if step not in _find_steps(replicas):
                _save(replicas, step, state, [None] * len(replicas))
            for replica in replicas:
                wait_for_checkpoints(replica.checkpoints)
        stopped_by = caught[0] if caught and step < total_steps else None
        trained_steps = step - first_step
        results = [
            _finish(replica, chunks * chunk_steps, total_steps, trained_steps, stopped_by) for replica in replicas
        ]
        curves = workdir / "learning_curves.png"
        if trained_steps or not curves.exists():
            rows = read_rows(workdir / "metrics.jsonl")
            save_learning_curves(curves, rows, selection.name, f"mean of {len(replicas)} replicas")
    return results


def check_memory(config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformation, mesh: Mesh, data: int) -> None:
    """Refuses more replicas than fit into a device's memory, by an estimate.

    Args:
      config: the run.
      graph: from `steps.make_graph`.
      tx: the optimizer.
      mesh: the devices.
      data: bytes of the images, which lie on each device.

    Raises:
      UserError: with the estimate, and how many would fit.
    """
    each, once = estimate_memory(config, graph, tx, mesh)
    replicas, free = config.train.replicas, measure_free_bytes(mesh)
    devices = mesh.size if replica_steps.replicas_partitioned(replicas, mesh) else 1
    needed = data + once + each * replicas // devices
    if needed > free:
        fitting = max(0, (free - data - once) // each) * devices
        raise UserError(
            f"replicas={replicas} take about {needed / 2**30:.1f} GiB of each device's memory, of which "
            f"{free / 2**30:.1f} GiB are free: about {fitting} would fit. Lower --replicas or --batch_size."
        )


@dataclasses.dataclass(frozen=True)
class _Replica:
    """One of the runs, opened."""

    number: int
    workdir: pathlib.Path
    config: Config
    run: dict
    checkpoints: ocp.CheckpointManager

    @property
    def diverged(self) -> pathlib.Path:
        """A file that is there once the loss is not finite."""
        return self.workdir / "diverged.json"


@contextlib.contextmanager
def _open_replica(number: int, config: Config, workdir: pathlib.Path) -> Iterator[_Replica]:
    run = describe_run(config)
    # Two of the latest: while one replica has saved a step and another has not yet, all still have the one before.
    with hold_workdir(workdir, run, restart=False), open_checkpoints(workdir, keep_latest=2) as checkpoints:
        yield _Replica(number, workdir, config, run, checkpoints)


def _live(replicas: Sequence[_Replica]) -> list[_Replica]:
    """Those that have not diverged.

    Raises:
      UserError: there is none.
    """
    live = [replica for replica in replicas if not replica.diverged.exists()]
    if not live:
        raise UserError(
            f"all replicas in {replicas[0].workdir.parent} have diverged: their losses are not finite any more. Lower "
            "--learning_rate, or the sweep's, and begin anew with --restart."
        )
    return live


@contextlib.contextmanager
def _leave_behind(replica: _Replica) -> Iterator[None]:
    """Lets the others go on when this one's loss is not finite."""
    try:
        yield
    except Diverged as error:
        logger.warning("replica_%d is left behind, the others go on: %s", replica.number, error)
        write_json(replica.diverged, {"reason": str(error)})


def _find_steps(replicas: Sequence[_Replica]) -> set[int]:
    """Steps of which all that have not diverged have a checkpoint."""
    return set.intersection(*(set(replica.checkpoints.all_steps()) for replica in _live(replicas)))


def _find_common_step(workdir: pathlib.Path, replicas: Sequence[_Replica]) -> int:
    """The step that all go on from, 0 at the start; what a kill left of later ones in some replicas is dropped."""
    step = max(_find_steps(replicas), default=0)
    for replica in _live(replicas):
        for later in [saved for saved in replica.checkpoints.all_steps() if saved > step]:
            replica.checkpoints.delete(later)
        cut_log(replica.workdir, step)
    if step:
        logger.info("Going on from step %d of %s", step, workdir)
    return step


def _restore(replicas: Sequence[_Replica], step: int, fresh: Sequence[TrainState], mesh: Mesh) -> TrainState:
    """The states of all replicas at a step, as host arrays with an axis of replicas before the others."""
    states = []
    for replica, state in zip(replicas, fresh, strict=True):
        if step and not replica.diverged.exists():
            state = restore_state(replica.checkpoints, step, state, mesh)
        states.append(jax.device_get(state))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def _collect_swept(config: Config, plans: Sequence[Config]) -> dict[str, np.ndarray]:
    """{field: [R] float32} of the fields in which a replica differs from the config; the others stay constants."""
    common, columns = config_to_dict(config), {name: [config_to_dict(plan)[name] for plan in plans] for name in SWEPT}
    return {name: np.array(column, np.float32) for name, column in columns.items() if set(column) != {common[name]}}


def _make_validate(config: Config, predict_batches: Callable, split: Split, mesh: Mesh) -> Callable:
    """Returns `validate(state) -> [row of each replica]`, exact over the split."""
    labels = split.labels(config.model.task)
    images = put(split.images, mesh)
    partitioned = replica_steps.replicas_partitioned(config.train.replicas, mesh)
    batches = make_eval_batches(len(split), config.train.eval_batch_size, 1 if partitioned else mesh.size)
    batches = put(batches, mesh, axis=None if partitioned else 1)

    def validate(state):
        logits = jax.device_get(predict_batches(state.eval_variables(), images, batches))
        logits = logits.reshape(len(logits), -1, logits.shape[-1])[:, : len(labels)]
        return [score_validation(labels, of_replica) for of_replica in logits]

    return validate


# What the replicas have their parts of; the log of all has the sum.
SHARED = {
    f"perf/{name}" for name in ("images_per_second", "flops_per_step", "bytes_per_step", "model_flop_utilisation")
}


class _Logs:
    """A log for each replica, and one of their means in the folder of all."""

    def __init__(
        self,
        workdir: pathlib.Path,
        replicas: Sequence[_Replica],
        steps_per_epoch: int,
        total_steps: int,
        report: Callable,
    ):
        self.path = workdir / "metrics.jsonl"
        self.replicas = replicas
        self.total_steps = total_steps
        self.report = report
        self.rows: list[dict] = []
        self.asked = False  # whether the report wants to stop
        self.logs = [
            Log(
                replica.workdir,
                replica.config,
                steps_per_epoch,
                total_steps,
                lambda row, _: self.rows.append(row),
                replica.number,
            )
            for replica in replicas
        ]

    def start_size(self, costs: dict) -> None:
        own = {name: cost / len(self.logs) if name in SHARED else cost for name, cost in costs.items()}
        for log in self.logs:
            log.start_size(own)

    def start_chunk(self) -> None:
        for log in self.logs:
            log.start_chunk()

    def end_chunk(self, step: int, sums: dict, chunk: Watch) -> None:
        self._write(lambda log, _: log.end_chunk(step, sums, chunk))

    def flush(self) -> None:
        self._write(lambda log, _: log.flush())

    def validation(self, step: int, rows: list[dict]) -> list[float | None]:
        self._write(lambda log, number: log.validation(step, rows[number]))
        return [row.get("val/auroc") for row in rows]

    def _write(self, write: Callable) -> None:
        """Lets each replica write what may be a row, and then writes the mean of these rows."""
        for replica in _live(self.replicas):
            with _leave_behind(replica):
                write(self.logs[replica.number], replica.number)
        if self.rows:
            mean = {name: float(np.mean([row[name] for row in self.rows])) for name in self.rows[0]}
            mean["step"] = self.rows[0]["step"]
            mean |= {name: mean[name] * len(self.rows) for name in mean.keys() & SHARED}
            append_row(self.path, mean)
            self.asked = self.report(mean, self.total_steps) is True or self.asked
        self.rows.clear()


def _save(replicas: Sequence[_Replica], step: int, state: TrainState, aurocs: Sequence[float | None]) -> None:
    on_host = jax.device_get(state)
    for replica in _live(replicas):
        wait_for_checkpoints(replica.checkpoints)
    for replica in _live(replicas):
        # Copies: the state's memory is the next chunk's, and saving goes on beside it.
        own = jax.tree.map(lambda leaf, number=replica.number: np.array(leaf[number]), on_host)
        with _leave_behind(replica):
            save_checkpoint(replica.checkpoints, step, own, replica.run, aurocs[replica.number])


def _finish(
    replica: _Replica, steps_per_epoch: int, total_steps: int, trained_steps: int, stopped_by: int | None
) -> FitResult:
    """Chooses the threshold of a finished replica and draws its curves, as `fit` does at its end."""
    step = replica.checkpoints.latest_step() or 0
    best_step, best_auroc = find_best(replica.checkpoints) or (None, None)
    threshold = None
    if step == total_steps:
        run = open_run(replica.workdir, "best", replica.config.data.data_dir)
        threshold = load_threshold(run, replica.config.threshold)
    curves = replica.workdir / "learning_curves.png"
    if trained_steps or not curves.exists():
        rows = read_rows(replica.workdir / "metrics.jsonl")
        save_learning_curves(curves, rows, replica.config.data.selection_split)
    return FitResult(step, total_steps, steps_per_epoch, best_step, best_auroc, trained_steps, threshold, stopped_by)
