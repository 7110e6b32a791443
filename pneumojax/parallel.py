"""A chunk of steps, compiled for all devices with jit, shard_map or pmap."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pneumojax.config import Config
from pneumojax.sharding import AXIS, put, replicated
from pneumojax.state import StepResult, TrainState


def make_chunk(step: Callable[..., StepResult], num_columns: int, config: Config, mesh: Mesh) -> jax.stages.Wrapped:
    """Makes a jitted `lax.scan` of steps, parallelised over the devices as the config specifies.

    A column is an array with a row for each image: the images, their features or their labels.

    Args:
      step: `step(state, *columns, index, key) -> (state, metrics)`, such as from `steps.make_train_step`.
      num_columns: number of columns: 2 for images and labels.
      config: the run.
      mesh: the devices.

    Returns:
      `chunk(state, *columns, batches, key) -> (state, metrics)`: columns [N, ...], batches [S, B] int32 from
      `put_batches`, metrics {name: [S] float32}. The state is donated. With loader=stream, it is
      `chunk(state, *columns, key)`, where the columns have only the rows of this chunk, [S, B, ...], sharded along B
      as in `shape_batches`.
    """

    def chunk_resident(state: TrainState, *rest: jax.Array) -> StepResult:
        *columns, batches, key = rest
        return lax.scan(lambda state, index: step(state, *columns, index, key), state, batches)

    def chunk_streamed(state: TrainState, *rest: jax.Array) -> StepResult:
        *columns, key = rest
        return lax.scan(lambda state, number: step(state, *columns, number, key), state, jnp.arange(len(columns[0])))

    streamed = config.train.loader == "stream"
    chunk = chunk_streamed if streamed else chunk_resident
    sharded = (False, *[True] * num_columns, False) if streamed else (False, *[False] * num_columns, True, False)
    if config.train.parallel == "pmap":
        in_axes = tuple(1 if is_sharded else None for is_sharded in sharded)
        return jax.pmap(chunk, AXIS, in_axes=in_axes, out_axes=(None, None), donate_argnums=(0,))
    specs = tuple(PartitionSpec(None, AXIS) if is_sharded else PartitionSpec() for is_sharded in sharded)
    if config.train.parallel == "shard_map":
        # With check_vma=True the mean of the gradients becomes their sum (jax 0.10 to 0.12).
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    in_shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    return jax.jit(chunk, in_shardings=in_shardings, out_shardings=replicated(mesh), donate_argnums=(0,))


def shape_batches(batches: np.ndarray, config: Config, mesh: Mesh) -> np.ndarray:
    """Reshapes index batches [S, B] to the shape that a chunk requires: [S, D, B / D] for pmap, otherwise [S, B]."""
    return batches.reshape(len(batches), mesh.size, -1) if config.train.parallel == "pmap" else batches


def put_batches(batches: np.ndarray, config: Config, mesh: Mesh) -> jax.Array:
    """Puts index batches [S, B] int32 on the devices, in the shape that a chunk requires and sharded along B."""
    return put(shape_batches(batches, config, mesh), mesh, axis=1)
