"""Versions of the compiled functions of `steps.py` and `inference.py` that compute all replicas in one program."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pneumojax.config import Config, replace_fields
from pneumojax.inference import make_uncompiled_predict
from pneumojax.ops.fusion import compute_unfused
from pneumojax.ops.xla import uses_cpu_algorithms
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import AXIS, put, replicas_partitioned
from pneumojax.state import TrainState
from pneumojax.steps import derive_key, make_train_step

Arrays = TypeVar("Arrays")
Replicas = TypeVar("Replicas")
Result = TypeVar("Result")


def make_replicas_chunk(
    config: Config,
    graph: nnx.GraphDef,
    total_steps: int,
    class_weights: np.ndarray,
    mesh: Mesh,
    image_px: int | None = None,
) -> jax.stages.Wrapped:
    """Compiles a chunk of training steps of several replicas.

    Args:
      config: the config of the run, with R replicas.
      graph: from `make_graph`.
      total_steps: training steps of the whole run.
      class_weights: [C] float32, weight of each class in the loss.
      mesh: the devices. If R is divisible by their number, each has an equal number of replicas. Otherwise each has all
        replicas and a shard of each batch.
      image_px: as in `make_train_step`.

    Returns:
      `train_chunk(state, images, labels, batches, key, swept) -> (state, metrics)`, as in `make_train_chunk`, but each
      array of state, key and metrics has a leading axis of replicas, and batches are [R, S, B]. swept is
      {field: [R] float32}: for each replica, the value of a field of the config.
    """

    def train_chunk(
        state: TrainState,
        images: jax.Array,
        labels: jax.Array,
        batches: jax.Array,
        key: jax.Array,
        swept: dict[str, jax.Array],
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def train_replica(
            replica: tuple[TrainState, jax.Array, jax.Array, dict[str, jax.Array]],
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            state, batches, key, values = replica
            replica_config = replace_fields(config, values)
            tx = make_optimizer(replica_config.optimizer, total_steps)
            train_step = make_train_step(replica_config, graph, tx, class_weights, False, image_px)
            return lax.scan(lambda state, index: train_step(state, images, labels, index, key), state, batches)

        return _map_replicas(train_replica, (state, batches, key, swept), config)

    if replicas_partitioned(config.train.replicas, mesh):
        per_replica, batches = PartitionSpec(AXIS), PartitionSpec(AXIS)
    else:
        per_replica, batches = PartitionSpec(), PartitionSpec(None, None, AXIS)
    in_specs = (per_replica, PartitionSpec(), PartitionSpec(), batches, per_replica, per_replica)
    return _compile_replicas(train_chunk, in_specs, per_replica, mesh, donate_argnums=(0,))


def make_replicas_predict(config: Config, graph: nnx.GraphDef, mesh: Mesh) -> jax.stages.Wrapped:
    """Compiles the prediction of several replicas.

    Args:
      config: the config of the run, with R replicas.
      graph: from `make_graph`.
      mesh: the devices, as in `make_replicas_chunk`.

    Returns:
      `predict(variables, images, batches) -> logits`, as in `make_predict`, but each array of variables has a leading
      axis of replicas, and logits are [R, S, B, C]. Batches are sharded along B only if the replicas are not
      partitioned over the devices.
    """
    predict_one = make_uncompiled_predict(graph, pixel_scaling=config.data.pixel_scaling)

    def predict(variables: dict[str, Any], images: jax.Array, batches: jax.Array) -> jax.Array:
        return _map_replicas(lambda replica: predict_one(replica, images, batches), variables, config)

    if replicas_partitioned(config.train.replicas, mesh):
        per_replica, batches = PartitionSpec(AXIS), PartitionSpec()
    else:
        per_replica, batches = PartitionSpec(), PartitionSpec(None, AXIS)
    return _compile_replicas(predict, (per_replica, PartitionSpec(), batches), per_replica, mesh)


def _map_replicas(function: Callable[[Replicas], Result], replicas: Replicas, config: Config) -> Result:
    """Applies a function to each replica, given by the first axis of the arrays in `replicas`."""
    # On CPU, vmapped convolutions take twice as long as a loop over the replicas.
    if config.train.replica_map == "vmap" or (config.train.replica_map == "auto" and not uses_cpu_algorithms()):
        return jax.vmap(function)(replicas)
    # On CPU, they are not fused with the loop, so that each gives the same results, to the last bit, as a single run.
    return lax.map(lambda replica: compute_unfused(function, replica), replicas)


def _compile_replicas(
    function: Callable,
    in_specs: tuple[PartitionSpec, ...],
    per_replica: PartitionSpec,
    mesh: Mesh,
    donate_argnums: tuple[int, ...] = (),
) -> jax.stages.Wrapped:
    if per_replica == PartitionSpec(AXIS):
        # With shard_map, each device runs its own replicas without communication.
        function = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=per_replica, check_vma=False)
    in_shardings = tuple(NamedSharding(mesh, spec) for spec in in_specs)
    return jax.jit(
        function,
        in_shardings=in_shardings,
        out_shardings=NamedSharding(mesh, per_replica),
        donate_argnums=donate_argnums,
    )


def make_replica_keys(seeds: np.ndarray, mesh: Mesh) -> jax.Array:
    """Makes the PRNG keys of the replicas, as `make_key` does for one seed.

    Args:
      seeds: [R] int32.
      mesh: the devices.

    Returns:
      [R] keys, each on the device of its replica if the replicas are partitioned, otherwise on all devices.
    """
    spec = PartitionSpec(AXIS) if replicas_partitioned(len(seeds), mesh) else PartitionSpec()
    return jax.jit(jax.vmap(derive_key), out_shardings=NamedSharding(mesh, spec))(seeds)


def put_replicas(arrays: Arrays, config: Config, mesh: Mesh) -> Arrays:
    """Puts host arrays with a leading axis of replicas on the devices, sharded as the compiled functions need."""
    axis = 0 if replicas_partitioned(config.train.replicas, mesh) else None
    return jax.tree.map(lambda array: put(array, mesh, axis), arrays)


def put_replica_batches(batches: np.ndarray, config: Config, mesh: Mesh) -> jax.Array:
    """Puts index batches, [R, S, B] int32, on the devices, sharded as the function of `make_replicas_chunk` needs."""
    return put(batches, mesh, axis=0 if replicas_partitioned(config.train.replicas, mesh) else 2)
