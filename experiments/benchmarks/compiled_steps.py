"""The compiled training steps that a benchmark measures, on images that are already on the devices."""

from typing import Any

import jax
import numpy as np

from pneumojax import parallel, replica_steps, steps
from pneumojax.config import CLASS_NAMES, Config
from pneumojax.losses import compute_class_weights
from pneumojax.ops.xla import algorithms, uses_cpu_algorithms
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import make_mesh, put
from pneumojax.training.compile_cost import compile_chunk, count_step_flops
from pneumojax.training.sweep import plan_replicas


class Training:
    """A network, its optimizer state, and images on the devices, with a compiled chunk of steps.

    Args:
      config: the config of the run.
      num_images: number of images on the devices.
      chunk_steps: training steps in a chunk.
    """

    def __init__(self, config: Config, num_images: int, chunk_steps: int):
        self.config, self.mesh = config, make_mesh()
        tx, graph = make_optimizer(config.optimizer, 10_000), steps.make_graph(config)
        images, labels, class_weights = draw_images(config, num_images)
        chunk = steps.make_train_chunk(config, graph, tx, class_weights, self.mesh)
        self.state = steps.init_state(config, tx, self.mesh)
        self.key = steps.make_key(config, self.mesh)
        self.put_images(images, labels)
        batches = np.arange(chunk_steps * config.train.batch_size, dtype=np.int32) % num_images
        self.batches = parallel.put_batches(batches.reshape(chunk_steps, -1), config, self.mesh)
        arguments: tuple[Any, ...] = (self.state, self.images, self.labels, self.batches, self.key)
        self.chunk, self.ready = compile_counted(chunk, arguments, self.mesh.size, config.train.parallel != "jit")
        jax.block_until_ready(self.train(self.batches))
        self.ready["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def put_images(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Puts [N, H, W] uint8 images and [N] int32 labels on the devices."""
        self.images, self.labels = put(images, self.mesh), put(labels, self.mesh)

    def train(self, batches: jax.Array) -> dict:
        """Dispatches one chunk and returns its metric sums, without waiting for them."""
        self.state, sums = self.chunk(self.state, self.images, self.labels, batches, self.key)
        return sums


class ReplicaTraining(Training):
    """Is `Training` for the replicas of a config, which have different seeds and the same batches."""

    def __init__(self, config: Config, num_images: int, chunk_steps: int):
        self.config, self.mesh = config, make_mesh()
        tx, graph = make_optimizer(config.optimizer, 10_000), steps.make_graph(config)
        images, labels, class_weights = draw_images(config, num_images)
        chunk = replica_steps.make_replicas_chunk(config, graph, 10_000, class_weights, self.mesh)
        seeds = np.array([replica.train.seed for replica in plan_replicas(config)], np.int32)
        init = steps.make_init(config, tx, self.mesh)
        states = [jax.device_get(init(jax.random.key(seed))) for seed in seeds]
        state = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        self.state = replica_steps.put_replicas(state, config, self.mesh)
        self.key = replica_steps.make_replica_keys(seeds, self.mesh)
        self.put_images(images, labels)
        batches = np.arange(chunk_steps * config.train.batch_size, dtype=np.int32) % num_images
        batches = np.tile(batches.reshape(1, chunk_steps, -1), (len(seeds), 1, 1))
        self.batches = replica_steps.put_replica_batches(batches, config, self.mesh)
        arguments: tuple[Any, ...] = (self.state, self.images, self.labels, self.batches, self.key, {})
        self.chunk, self.ready = compile_counted(chunk, arguments, self.mesh.size, False)
        jax.block_until_ready(self.train(self.batches))

    def train(self, batches: jax.Array) -> dict:
        """Dispatches one chunk and returns its metric sums, without waiting for them."""
        self.state, sums = self.chunk(self.state, self.images, self.labels, batches, self.key, {})
        return sums


def compile_counted(
    function: jax.stages.Wrapped, arguments: tuple, devices: int, mapped: bool
) -> tuple[jax.stages.Compiled, dict]:
    """Compiles a function and returns it with its costs. The arguments are as in `compile_cost`.

    The costs have the names of the columns of a row of results. On CPU, the bytes are counted with XLA's own
    convolution algorithms, so that they can be compared with the bytes on an accelerator.
    """
    compiled, costs = compile_chunk(function, arguments)
    costs |= count_step_flops(function, arguments, devices, mapped)
    if uses_cpu_algorithms():
        with algorithms("xla"):
            _, own = compile_chunk(function, arguments)
        costs["perf/bytes_per_step"] = own["perf/bytes_per_step"]
    return compiled, {name.removeprefix("perf/"): number for name, number in costs.items()}


def draw_images(config: Config, num_images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns [N, H, W] uint8 noise images, [N] int32 labels of all classes in turn, and [C] float32 class weights."""
    shape = num_images, config.data.image_px, config.data.image_px
    labels = np.arange(num_images, dtype=np.int32) % len(CLASS_NAMES[config.model.task])
    class_weights = compute_class_weights(labels, config.model.task, config.optimizer.class_weights)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), labels, class_weights
