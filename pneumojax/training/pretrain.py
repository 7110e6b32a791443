"""pretrain(): trains a backbone on the training images without their labels.

SimCLR (see `losses.compute_contrastive`): two augmented views of an image are to find each other among all views of the
batch. It takes one network and one pass over the views, and its loss looks at directions only: no scale has to settle
first, as in VICReg, so that it learns from the first epoch on, which is what counts on a few CPU cores.
"""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable

import jax

from pneumojax import steps
from pneumojax.checkpoint import open_checkpoints, save_checkpoint, wait_for_checkpoints
from pneumojax.config import PRETRAINABLE, Config
from pneumojax.data.dataset import load_split, split_epoch
from pneumojax.errors import UserError
from pneumojax.files import read_rows
from pneumojax.models import make_pretraining_model
from pneumojax.models.weight_import import save_backbone
from pneumojax.optimizer import make_optimizer
from pneumojax.reporting.figures.training import save_learning_curves
from pneumojax.sharding import initialize, make_mesh, name_lost_process
from pneumojax.training.compile_cost import compile_chunk, watch
from pneumojax.training.fit import Log, catch_signals, describe_run, feed, highest_of_processes, hold_workdir, resume

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """What a call of `pretrain` reached.

    Attributes:
      step: training steps of the run so far.
      total_steps: training steps of the whole run.
      trained_steps: training steps of this call; 0: the run was finished before.
      backbone: the file that train.py starts from; None as long as the run is not finished.
      stopped_by: number of the signal that ended the call early, or None.
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
    report: Callable[[dict, int], None] = lambda row, total_steps: None,
) -> PretrainResult:
    """Trains until the config's last epoch, and stops and goes on as `train.fit` does.

    Args:
      config: the run; what it says of labels, validation, classifier and progressive_px plays no part.
      workdir: folder of the run; `checkpoint.py` says what lies in it.
      restart: delete what an earlier run left in the workdir.
      report: called, in the process that writes metrics.jsonl, with each row and the number of steps of the whole run.

    Returns:
      What was reached.

    Raises:
      UserError: bad data, a workdir of another run, a batch that does not fit, or a loss that is not finite.
    """
    workdir = pathlib.Path(workdir).expanduser()
    train = config.train
    if config.model.model not in PRETRAINABLE:
        raise UserError(f"pretraining needs model={', '.join(PRETRAINABLE)}, not {config.model.model}.")
    if train.parallel != "jit":
        raise UserError(
            f"pretraining needs parallel=jit, not {train.parallel}: its loss compares all views of a batch, and each "
            f"device sees its own share only under {train.parallel}."
        )
    initialize(train.multihost)
    mesh = make_mesh()
    if train.batch_size % mesh.size:
        raise UserError(f"batch_size {train.batch_size} is not divisible by the {mesh.size} devices it is spread over.")
    if train.batch_size < 2:
        raise UserError("batch_size must be at least 2: a view is told from those of other images.")
    data = load_split(config.data, "train")
    chunks, chunk_steps = split_epoch(len(data), train.batch_size, train.chunk_steps)
    total_steps = train.epochs * chunks * chunk_steps
    run = describe_run(config) | {"trains": "backbone"}

    tx = make_optimizer(config.optimizer, total_steps)
    graph = steps.make_graph(config, make_pretraining_model)
    pretrain_chunk = steps.make_pretrain_chunk(config, graph, tx, mesh)

    with name_lost_process(), hold_workdir(workdir, run, restart), open_checkpoints(workdir) as checkpoints:
        state = resume(workdir, checkpoints, steps.init_state(config, tx, mesh, make_pretraining_model), mesh)
        log = Log(workdir, config, chunks * chunk_steps, total_steps, report)
        key = steps.make_key(config, mesh)
        step = first_step = int(state.step)
        chunk_inputs = feed(config, (data.images,), step, mesh)
        stopped_by, compiled = 0, None
        with contextlib.closing(chunk_inputs), catch_signals() as caught, jax.transfer_guard("disallow"):
            while step < total_steps and not (stopped_by := highest_of_processes(caught[0] if caught else 0)):
                log.start_chunk()
                inputs = (state, *next(chunk_inputs), key)
                if compiled is None:
                    compiled, costs = compile_chunk(pretrain_chunk, inputs, mesh.size, mapped=False)
                    log.start_size(costs)
                state, sums = compiled(*inputs)
                step += chunk_steps
                log.end_chunk(step, sums, watch(sums))
                if step % (chunks * chunk_steps) == 0:
                    log.flush()
                    save_checkpoint(checkpoints, step, state, run, auroc=None)
            log.flush()
            if step != checkpoints.latest_step():
                save_checkpoint(checkpoints, step, state, run, auroc=None)
            wait_for_checkpoints(checkpoints)
        backbone = workdir / "backbone.safetensors" if step == total_steps else None
        if jax.process_index() == 0 and (step > first_step or (backbone and not backbone.exists())):
            save_learning_curves(workdir / "learning_curves.png", read_rows(workdir / "metrics.jsonl"))
            if backbone:
                save_backbone(backbone, config.model, jax.device_get(state.eval_variables()), data.fingerprint)
    return PretrainResult(step, total_steps, step - first_step, backbone, stopped_by or None)
