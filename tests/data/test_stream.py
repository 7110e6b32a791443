"""Tests of streamed rows: they are correct and in order, and no thread is left.

tests/training/test_input_pipeline.py trains on them.
"""

import threading
import time

import jax
import numpy as np
import pytest

from pneumojax.data.stream import stream_rows
from pneumojax.sharding import AXIS, make_mesh

COLUMNS = np.arange(40 * 3, dtype=np.uint8).reshape(40, 3), np.arange(40, dtype=np.int32)


def choose(call):
    return np.random.default_rng(call).permutation(40)[:32].reshape(2, 16)


def count_readers():
    return sum("grain" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("calls", [range(4), range(2, 4), range(0)])
def test_rows_come_in_order_from_any_call_on_and_lie_cut_over_the_devices(calls):
    rows = list(stream_rows(COLUMNS, choose, calls, make_mesh()))
    assert len(rows) == len(calls)
    for call, (images, labels) in zip(calls, rows, strict=True):
        np.testing.assert_array_equal(images, COLUMNS[0][choose(call)])
        np.testing.assert_array_equal(labels, choose(call))
        assert images.sharding.spec == labels.sharding.spec == jax.sharding.PartitionSpec(None, AXIS)
        assert {shard.data.shape for shard in images.addressable_shards} == {(2, 2, 3)}


def test_no_more_is_read_ahead_than_it_says_and_a_reader_that_is_closed_ends():
    read = []
    rows = stream_rows(COLUMNS, lambda call: read.append(call) or choose(call), range(1000), make_mesh())
    next(rows)
    time.sleep(0.3)
    assert count_readers()
    assert sorted(read) == list(range(5))  # The first call, two calls on the devices, and two on the host.
    rows.close()
    end = time.monotonic() + 10
    while count_readers() and time.monotonic() < end:
        time.sleep(0.01)
    assert not count_readers()


def test_what_a_reader_raises_reaches_the_caller():
    def choose_or_fail(call):
        if call == 2:
            raise OSError("the disk is gone")
        return choose(call)

    rows = stream_rows(COLUMNS, choose_or_fail, range(4), make_mesh())
    with pytest.raises(OSError, match="the disk is gone"):
        list(rows)
