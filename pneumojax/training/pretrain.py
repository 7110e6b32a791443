"""pretrain(): trains a backbone on the training images without their labels.

The method is SimCLR (see `losses.compute_contrastive`). Each image is augmented twice, and the loss pulls the two views
together and pushes the views of different images apart. SimCLR was chosen because it is cheap enough for a few CPU
cores: it needs a single network and one pass over the views.
"""

import dataclasses
import pathlib

import jax

from pneumojax import steps
from pneumojax.checkpoint import open_checkpoints, save_checkpoint, wait_for_checkpoints
from pneumojax.config import Config
from pneumojax.errors import UserError
from pneumojax.files import read_rows
from pneumojax.limits import PRETRAINABLE
from pneumojax.models import make_pretraining_model
from pneumojax.models.weight_import import save_backbone
from pneumojax.pretrain_steps import make_pretrain_chunk
from pneumojax.reporting.figures.training import save_learning_curves
from pneumojax.sharding import name_lost_process
from pneumojax.state import TrainState
from pneumojax.training.fit import train_until_stopped
from pneumojax.training.input_pipeline import make_chunk_inputs
from pneumojax.training.interrupts import catch_signals
from pneumojax.training.metric_log import MetricLog, Report, report_nothing
from pneumojax.training.plan import make_plan
from pneumojax.training.workdir import describe_run, hold_workdir, resume


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """Result of a call of `pretrain`.

    Attributes:
      step: training steps of the run so far.
      total_steps: training steps of the whole run.
      trained_steps: training steps of this call; 0 if the run was finished before.
      backbone: the weight file that train.py can start from; None until the run is finished.
      stopped_by: number of the signal that stopped this call early, or None.
    """

    step: int
    total_steps: int
    trained_steps: int
    backbone: pathlib.Path | None
    stopped_by: int | None


def pretrain(
    config: Config,
    workdir: str | pathlib.Path,
    restart: bool = False,
    report: Report = report_nothing,
) -> PretrainResult:
    """Trains until the config's last epoch. It stops and resumes as `fit` does.

    Args:
      config: the config of the run. Its fields for labels, validation, the classifier and progressive_px are ignored.
      workdir: folder of the run. Its layout is described in `checkpoint.py`.
      restart: delete the files that an earlier run left in the workdir.
      report: called with each row of metrics.jsonl and the total number of steps, in the process that writes the file.

    Returns:
      The result.

    Raises:
      UserError: the data are invalid, the workdir holds another run, the batch size does not fit the data or the
        devices, or the loss is not finite.
    """
    if config.model.model not in PRETRAINABLE:
        raise UserError(f"pretraining needs model={', '.join(PRETRAINABLE)}, not {config.model.model}.")
    if config.train.parallel != "jit":
        raise UserError(
            f"pretraining needs parallel=jit, not {config.train.parallel}: its loss compares the views of the global "
            f"batch, but {config.train.parallel} gives each device only its own shard. Use --parallel=jit."
        )
    if config.train.batch_size < 2:
        raise UserError("batch_size must be at least 2: the loss compares the views of an image with those of others.")
    workdir, plan = pathlib.Path(workdir).expanduser(), make_plan(config, make_pretraining_model)
    run = describe_run(config) | {"trains": "backbone"}
    pretrain_chunks = [make_pretrain_chunk(config, plan.graph, plan.tx, plan.mesh)] * len(plan.image_sizes)
    fresh = steps.init_state(config, plan.tx, plan.mesh, make_pretraining_model)

    with name_lost_process(), hold_workdir(workdir, run, restart), open_checkpoints(workdir) as checkpoints:
        state = resume(workdir, checkpoints, fresh, plan.mesh)
        first_step, key = int(state.step), steps.make_key(config, plan.mesh)
        chunk_inputs = make_chunk_inputs(plan, (plan.data.images,), key, first_step)
        log = MetricLog(workdir, config, plan.steps_per_epoch, plan.total_steps, report)

        def end_epoch(step: int, state: TrainState) -> None:
            save_checkpoint(checkpoints, step, state, run, auroc=None)

        with catch_signals() as caught:
            state, step, stopped_by = train_until_stopped(
                plan, state, first_step, pretrain_chunks, chunk_inputs, log, end_epoch, caught
            )
            if step != checkpoints.latest_step():
                save_checkpoint(checkpoints, step, state, run, auroc=None)
            wait_for_checkpoints(checkpoints)
        backbone = workdir / "backbone.safetensors" if step == plan.total_steps else None
        if jax.process_index() == 0 and (step > first_step or (backbone and not backbone.exists())):
            save_learning_curves(workdir / "learning_curves.png", read_rows(workdir / "metrics.jsonl"))
            if backbone:
                save_backbone(backbone, config.model, jax.device_get(state.eval_variables()), plan.data.fingerprint)
    return PretrainResult(step, plan.total_steps, step - first_step, backbone, stopped_by or None)
