"""The input pipeline: yields the arguments of each compiled chunk of training steps, except for the state."""

from collections.abc import Generator

import jax
import numpy as np

from pneumojax import parallel
from pneumojax.data.batches import make_epoch_batches
from pneumojax.sharding import put
from pneumojax.training.plan import TrainingPlan


def make_chunk_inputs(
    plan: TrainingPlan, columns: tuple[np.ndarray, ...], key: jax.Array, first_step: int
) -> Generator[tuple]:
    """Yields the arguments of each chunk, except for the state.

    With `loader=resident` the columns are put on every device once and a chunk receives index batches. With
    `loader=stream` a chunk receives its own rows, which are read ahead from the host's memory map.

    Args:
      plan: the training plan.
      columns: arrays [N, ...] of equal length: the images or their features, and the labels if they are used.
      key: the PRNG key of the run.
      first_step: step at which the run starts or resumes.

    Yields:
      (*columns, index batches, key), or with `loader=stream` (*rows, key).
    """
    config, mesh = plan.config, plan.mesh

    def choose(number: int) -> np.ndarray:
        epoch, chunk = divmod(number, plan.chunks)
        batches = make_epoch_batches(
            len(plan.data), config.train.batch_size, plan.chunks, plan.chunk_steps, config.train.seed, epoch
        )
        return batches[chunk]

    numbers = range(first_step // plan.chunk_steps, config.train.epochs * plan.chunks)
    if config.train.loader == "stream":
        from pneumojax.data.stream import stream_rows

        rows = stream_rows(columns, lambda number: parallel.shape_batches(choose(number), config, mesh), numbers, mesh)
        yield from ((*chunk, key) for chunk in rows)
    else:
        on_devices = tuple(put(column, mesh) for column in columns)
        for number in numbers:
            yield *on_devices, parallel.put_batches(choose(number), config, mesh), key
