"""Streams rows of host arrays to the devices. Background threads read them before they are needed."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pneumojax.sharding import AXIS

# Number of reading threads. Each reads the rows of another call, so one can read while the other waits for the disk.
READERS = 2


def stream_rows(
    columns: tuple[np.ndarray, ...], choose: Callable[[int], np.ndarray], calls: range, mesh: Mesh
) -> Iterator[tuple[jax.Array, ...]]:
    """Puts the rows for each call of a compiled function on the devices, in order and before the caller needs them.

    The rows of up to two calls are ready on the devices. The rows of up to `READERS` further calls are ready on the
    host. A process reads only the rows of its own devices. The iterator has no state to save: to resume, pass a range
    that starts later.

    Args:
      columns: arrays [N, ...] of equal length, such as memory-mapped images and their labels.
      choose: `choose(call)` returns the indices [S, B, ...] of the rows of a call. It must depend only on `call`.
      calls: the numbers of the calls.
      mesh: the devices.

    Yields:
      The rows of one call: an array [S, B, ...] for each column, sharded over the devices along axis 1.

    Raises:
      Exception: an error of `choose`, or of reading a column.
    """
    import grain  # Imported here because it takes seconds, and resident images do not need it.

    sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def read(call: int) -> list[tuple[tuple[int, ...], dict[int, np.ndarray]]]:
        index = choose(call)
        # The key is the start of the slice because slices are not hashable before Python 3.12.
        shards = sharding.addressable_devices_indices_map(index.shape).values()
        slices = {shard[1].start: shard[1] for shard in shards if shard}
        return [
            (index.shape + column.shape[1:], {start: column[index[:, batch]] for start, batch in slices.items()})
            for column in columns
        ]

    def put(read_columns: list[tuple[tuple[int, ...], dict[int, np.ndarray]]]) -> tuple[jax.Array, ...]:
        return tuple(
            jax.make_array_from_callback(shape, sharding, functools.partial(find_shard, shards))
            for shape, shards in read_columns
        )

    def find_shard(shards: dict[int, np.ndarray], shard: tuple[slice, ...]) -> np.ndarray:
        return shards[shard[1].start]

    rows = grain.MapDataset.range(calls.start, calls.stop).map(read)
    rows = rows.to_iter_dataset(grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=READERS)).map(put)
    ahead = iter(grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=1))
    try:
        yield from ahead
    finally:
        ahead.close()
