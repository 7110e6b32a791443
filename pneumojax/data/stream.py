"""Rows of host arrays, read in the background and on the devices before they are asked for."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pneumojax.sharding import AXIS

# Calls that are read at the same time, each by its own thread: one that waits for the disk keeps no other from reading.
READERS = 2


def stream_rows(
    columns: tuple[np.ndarray, ...], choose: Callable[[int], np.ndarray], calls: range, mesh: Mesh
) -> Iterator[tuple[jax.Array, ...]]:
    """Puts chosen rows on the devices, in order, ahead of the caller: up to two calls there, `READERS` on the host.

    A process reads only the rows that its own devices hold. There is no state to save: a range that begins later goes
    on with the same rows.

    Args:
      columns: arrays [N, ...] of equal length, as memory-mapped images and their labels.
      choose: `choose(call)`: the indices [S, B, ...] of the rows of a call, a function of its number alone.
      calls: numbers of the calls.
      mesh: the devices.

    Yields:
      The rows of one call: [S, B, ...] of each column, cut over the devices along axis 1.
    """
    import grain  # Only here: it takes seconds, and resident images do without.

    cut = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def read(call):
        index = choose(call)
        # By its beginning: before Python 3.12 a slice is no key.
        places = {share[1].start: share[1] for share in cut.addressable_devices_indices_map(index.shape).values()}
        return [
            (index.shape + column.shape[1:], {start: column[index[:, place]] for start, place in places.items()})
            for column in columns
        ]

    def put(read_columns):
        return tuple(
            jax.make_array_from_callback(shape, cut, lambda share, shares=shares: shares[share[1].start])
            for shape, shares in read_columns
        )

    rows = grain.MapDataset.range(calls.start, calls.stop).map(read)
    rows = rows.to_iter_dataset(grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=READERS)).map(put)
    ahead = iter(grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=1))
    try:
        yield from ahead
    finally:
        ahead.close()
