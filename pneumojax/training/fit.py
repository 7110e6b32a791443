"""fit(): trains a run from its config to its checkpoints, and resumes a run that was stopped."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Generator

import jax
import orbax.checkpoint as ocp

from pneumojax import steps
from pneumojax.checkpoint import find_best, has_checkpoints, open_checkpoints, save_checkpoint, wait_for_checkpoints
from pneumojax.config import Config
from pneumojax.errors import UserError
from pneumojax.evaluation.aspect import add_swapped
from pneumojax.files import read_rows
from pneumojax.sharding import name_lost_process
from pneumojax.state import TrainState
from pneumojax.training.chips import find_peak_flops
from pneumojax.training.compile_cost import compile_chunk, count_step_flops
from pneumojax.training.input_pipeline import make_chunk_inputs
from pneumojax.training.interrupts import STOP_REQUESTED, catch_signals, max_over_processes
from pneumojax.training.metric_log import ChunkLog, MetricLog, Report, report_nothing, watch
from pneumojax.training.plan import TrainingPlan, load_selection_split, make_plan
from pneumojax.training.validation import compute_selection_score, make_validate
from pneumojax.training.workdir import describe_run, hold_workdir, resume


@dataclasses.dataclass(frozen=True)
class FitResult:
    """Result of a call of `fit`.

    Attributes:
      step: training steps of the run so far.
      total_steps: training steps of the whole run.
      steps_per_epoch: training steps per epoch.
      best_step: step of the best checkpoint; None before the first validation.
      best_auroc: val/auroc of the best checkpoint.
      trained_steps: training steps of this call; 0 if the run was finished before.
      threshold: content of threshold.json; None until the run is finished.
      stopped_by: number of the signal that stopped this call early, or None.
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
    report: Report = report_nothing,
) -> FitResult:
    """Trains until the config's last epoch. If the workdir holds an unfinished run of the same config, it resumes.

    SIGTERM and SIGINT save a checkpoint at the end of the current chunk and end the call. A run that was killed resumes
    from its last checkpoint.

    Args:
      config: the run.
      workdir: folder of the run; its layout is described in `checkpoint.py`.
      restart: delete what an earlier run left in the workdir.
      report: called, in the process that writes metrics.jsonl, with each row and the number of steps of the whole run.
        If it returns True, the call ends as after a signal: with a checkpoint, from which the run can resume.

    Raises:
      UserError: the data are invalid, the workdir holds another run, the batch size does not fit the data or the
        devices, or the loss is not finite (Diverged).
    """
    if config.train.replicas > 1:
        raise UserError(f"fit trains one run; replicas={config.train.replicas} are trained by replicas.fit_replicas.")
    workdir, plan = pathlib.Path(workdir).expanduser(), make_plan(config)
    selection, run = add_swapped(load_selection_split(config)), describe_run(config)
    train_chunks = make_train_chunks(plan)
    fresh = steps.init_state(config, plan.tx, plan.mesh)
    if config.model.pretrained and (restart or not has_checkpoints(workdir)):
        from pneumojax.training.initial_weights import load_initial_weights

        # Before anything is written or deleted, because the file may not fit the network.
        [fresh] = load_initial_weights(plan, [fresh])

    with name_lost_process(), hold_workdir(workdir, run, restart), open_checkpoints(workdir) as checkpoints:
        state = resume(workdir, checkpoints, fresh, plan.mesh)
        first_step, key = int(state.step), steps.make_key(config, plan.mesh)
        images, selection_images = plan.data.images, selection.images
        if config.model.cached_views and first_step < plan.total_steps:
            from pneumojax.training.features import make_extract_split

            extract_split = make_extract_split(plan, state, key)
            images, selection_images = extract_split(plan.data, config.model.cached_views), extract_split(selection, 1)
        validate = make_validate(plan, selection.labels(config.model.task), selection_images)
        chunk_inputs = make_chunk_inputs(plan, (images, plan.labels()), key, first_step)
        log = MetricLog(workdir, config, plan.steps_per_epoch, plan.total_steps, report)

        def end_epoch(step: int, state: TrainState) -> None:
            row = validate(state)
            log.write_validation(step, row)
            score = compute_selection_score(row, config.train.select_by, step)
            save_checkpoint(checkpoints, step, state, run, row["val/auroc"], score)

        with catch_signals() as caught:
            state, step, stopped_by = train_until_stopped(
                plan, state, first_step, train_chunks, chunk_inputs, log, end_epoch, caught
            )
            if step != checkpoints.latest_step():
                save_checkpoint(checkpoints, step, state, run, auroc=None)
            wait_for_checkpoints(checkpoints)
        return finish_run(workdir, config, plan, checkpoints, step, step - first_step, stopped_by)


def make_train_chunks(plan: TrainingPlan) -> list[jax.stages.Wrapped]:
    """Makes the training chunk of each image size. `train_until_stopped` compiles it before its first call."""
    class_weights = plan.class_weights()
    return [
        steps.make_train_chunk(plan.config, plan.graph, plan.tx, class_weights, plan.mesh, image_px)
        for image_px in plan.image_sizes
    ]


def train_until_stopped(
    plan: TrainingPlan,
    state: TrainState,
    step: int,
    train_chunks: list[jax.stages.Wrapped],
    chunk_inputs: Generator[tuple],
    log: ChunkLog,
    end_epoch: Callable[[int, TrainState], None],
    caught: list[int],
) -> tuple[TrainState, int, int]:
    """Runs compiled chunks until the last step, a signal or a stop requested by the log's report.

    Args:
      plan: the training.
      state: the state to start from. It is donated to the first chunk.
      step: the step of this state.
      train_chunks: the chunk of each image size, called as `train_chunk(state, *inputs)`.
      chunk_inputs: the inputs of each chunk, in order. It is closed at the end.
      log: receives the metrics of each chunk.
      end_epoch: called with the step and the state after each epoch, to validate and save.
      caught: numbers of the signals received, from `interrupts.catch_signals`.

    Returns:
      (state, step, stopped_by): stopped_by is the number of a signal, STOP_REQUESTED, or 0 after the last step.
    """
    compiled: dict[int, jax.stages.Compiled] = {}
    stopped_by = 0
    # An implicit copy between host and devices inside the loop is an error.
    with contextlib.closing(chunk_inputs), jax.transfer_guard("disallow"):
        while step < plan.total_steps and not (
            stopped_by := max_over_processes(caught[0] if caught else log.stop_requested)
        ):
            log.start_chunk()
            size = plan.find_size_index(step)
            inputs = (state, *next(chunk_inputs))
            new = size not in compiled
            if new:
                compiled[size], costs = compile_chunk(train_chunks[size], inputs)
            state, sums = compiled[size](*inputs)
            if new:
                # Counted while the devices run the chunk, for the utilisation, which needs a known peak.
                if find_peak_flops(plan.mesh.devices.flat[0].device_kind, plan.config.model.dtype):
                    costs |= count_step_flops(train_chunks[size], inputs, plan.mesh.size, plan.mapped)
                log.start_size(costs)
            step += plan.chunk_steps
            log.end_chunk(step, sums, watch(sums))
            if step % plan.steps_per_epoch == 0:
                log.flush()
                end_epoch(step, state)
        log.flush()
    return state, step, stopped_by


def finish_run(
    workdir: pathlib.Path,
    config: Config,
    plan: TrainingPlan,
    checkpoints: ocp.CheckpointManager,
    step: int,
    trained_steps: int,
    stopped_by: int,
) -> FitResult:
    """Chooses the threshold of a run that reached its last step, and draws the learning curves.

    Args:
      workdir: folder of the run.
      config: the config of the run. If the run is one of several replicas, the config of this replica.
      plan: the training.
      checkpoints: the run's checkpoints. No save may be in progress.
      step: step of the latest checkpoint.
      trained_steps: training steps of this call.
      stopped_by: from `train_until_stopped`.
    """
    # Imported here, because no step of the training needs the evaluation or the figures.
    from pneumojax.evaluation.operating_point import load_or_choose_threshold
    from pneumojax.evaluation.run import open_run
    from pneumojax.reporting.figures.training import save_learning_curves

    best_step, best_auroc = find_best(checkpoints) or (None, None)
    threshold = None
    if step == plan.total_steps:
        threshold = load_or_choose_threshold(open_run(workdir, "best", config.data.data_dir), config.threshold)
    curves = workdir / "learning_curves.png"
    if jax.process_index() == 0 and (trained_steps or not curves.exists()):
        rows = read_rows(workdir / "metrics.jsonl")
        save_learning_curves(curves, rows, config.data.selection_split, select_by=config.train.select_by)
    return FitResult(
        step=step,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        best_step=best_step,
        best_auroc=best_auroc,
        trained_steps=trained_steps,
        threshold=threshold,
        stopped_by=stopped_by if stopped_by not in (0, STOP_REQUESTED) else None,
    )
