"""TrainingPlan: what every kind of training computes from its config before the first step."""

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from pneumojax import steps
from pneumojax.config import Config
from pneumojax.data.batches import split_epoch
from pneumojax.data.dataset import Split, load_split
from pneumojax.errors import UserError
from pneumojax.losses import compute_class_weights
from pneumojax.models import Network, make_model
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import initialize, make_mesh, replicas_partitioned

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """The devices, the training images, the schedule of steps, the optimizer and the network of a training.

    Attributes:
      config: the run.
      mesh: the devices.
      data: the training split.
      chunks: compiled calls per epoch.
      chunk_steps: training steps per compiled call.
      tx: the optimizer, with its schedule over `total_steps`.
      graph: the network without its arrays.
    """

    config: Config
    mesh: Mesh
    data: Split
    chunks: int
    chunk_steps: int
    tx: optax.GradientTransformation
    graph: nnx.GraphDef

    @property
    def steps_per_epoch(self) -> int:
        """Number of training steps in an epoch."""
        return self.chunks * self.chunk_steps

    @property
    def total_steps(self) -> int:
        """Number of training steps in the whole run."""
        return self.config.train.epochs * self.steps_per_epoch

    @property
    def mapped(self) -> bool:
        """Whether a chunk is compiled as a program for one device.

        This is so with shard_map and pmap, and if the replicas are partitioned over the devices.
        """
        train = self.config.train
        return train.parallel != "jit" or (train.replicas > 1 and replicas_partitioned(train.replicas, self.mesh))

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """The image sizes in pixels, in the order of training. Each has an equal share of the epochs."""
        return self.config.data.progressive_px or (self.config.data.image_px,)

    def find_size_index(self, step: int) -> int:
        """Returns the index in `image_sizes` of the size of the chunk that starts at `step`."""
        epoch = step // self.steps_per_epoch
        return epoch * len(self.image_sizes) // self.config.train.epochs

    def labels(self) -> np.ndarray:
        """Returns the class indices of the training images, [N] int32."""
        return self.data.labels(self.config.model.task)

    def class_weights(self) -> np.ndarray:
        """Returns the weights of the classes in the loss, [C] float32."""
        return compute_class_weights(self.labels(), self.config.model.task, self.config.optimizer.class_weights)


def make_plan(config: Config, make: Callable[..., Network] = make_model) -> TrainingPlan:
    """Initialises JAX, loads the training split and sets up the schedule, the optimizer and the network.

    Args:
      config: the run.
      make: `make_model`, or `make_pretraining_model`.

    Raises:
      UserError: the data set is not prepared or damaged, or the batch does not fit the data or the devices.
    """
    initialize(config.train.multihost)
    mesh = make_mesh()
    # Whole replicas on each device need no divisible batch.
    if config.train.replicas == 1 or not replicas_partitioned(config.train.replicas, mesh):
        _check_batch_size(config.train.batch_size, mesh)
    data = load_split(config.data, "train")
    chunks, chunk_steps = split_epoch(len(data), config.train.batch_size, config.train.chunk_steps)
    tx = make_optimizer(config.optimizer, config.train.epochs * chunks * chunk_steps)
    return TrainingPlan(config, mesh, data, chunks, chunk_steps, tx, steps.make_graph(config, make))


def load_selection_split(config: Config) -> Split:
    """Loads the split that chooses the epoch, the threshold and the calibration.

    Raises:
      UserError: the data set is not prepared or damaged, or the split has one class only.
    """
    selection = load_split(config.data, config.data.selection_split)
    if selection.name == "test":
        logger.warning(
            "selection_split=test is the leaky protocol: the test split chooses the epoch, the threshold and the "
            "calibration, so its metrics are biased and only serve to show that bias."
        )
    if len(np.unique(selection.labels("binary"))) < 2:
        raise UserError(
            f"the {selection.name} split has one class only, so no model can be selected on it. Prepare more images."
        )
    return selection


def _check_batch_size(batch_size: int, mesh: Mesh) -> None:
    if batch_size % mesh.size:
        raise UserError(
            f"batch_size {batch_size} is not divisible by the {mesh.size} devices that it is sharded over. "
            f"Use a multiple of {mesh.size}."
        )
