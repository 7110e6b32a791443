"""Tests of the devices: how JAX is initialised, and how arrays are placed."""

import os
import types

import jax
import numpy as np
import pytest
from multihost import join_all, start

from pneumojax import sharding
from pneumojax.errors import LostProcessError, UserError
from pneumojax.sharding import initialize, make_mesh


def start_without_port():
    os.environ.update(JAX_COORDINATOR_ADDRESS="localhost", JAX_NUM_PROCESSES="1", JAX_PROCESS_ID="0")
    with pytest.raises(UserError, match="cannot connect .* JAX_COORDINATOR_ADDRESS .host:port."):
        initialize(multihost=True)


def test_an_address_without_a_port_ends_in_a_sentence(processes):
    assert join_all([start(processes, start_without_port)]) == [0]


def test_an_array_is_copied_to_or_sharded_over_the_devices():
    mesh, array = make_mesh(), np.arange(48).reshape(3, 16)
    assert mesh.size == jax.device_count()
    for shard in sharding.put(array, mesh).addressable_shards:
        np.testing.assert_array_equal(shard.data, array)
    part = 16 // mesh.size
    shards = sharding.put(array, mesh, axis=1).addressable_shards
    for i, shard in enumerate(sorted(shards, key=lambda shard: shard.index[1].start)):
        np.testing.assert_array_equal(shard.data, array[:, part * i : part * (i + 1)])
    assert sharding.put(array, mesh).sharding.is_equivalent_to(sharding.replicated(mesh), array.ndim)


def test_replicas_are_partitioned_where_each_device_gets_as_many():
    mesh = make_mesh()
    number = mesh.size
    answers = [sharding.replicas_partitioned(replicas, mesh) for replicas in (number, 2 * number, number + 1)]
    assert answers == [True, True, number == 1]


def test_the_free_memory_is_that_of_one_device():
    reports = {"bytes_limit": 1000, "bytes_in_use": 300}
    chip = types.SimpleNamespace(memory_stats=lambda: reports)
    assert sharding.measure_free_bytes(types.SimpleNamespace(local_devices=[chip], size=4)) == 700
    cpu = types.SimpleNamespace(memory_stats=lambda: None)
    one, four = (
        sharding.measure_free_bytes(types.SimpleNamespace(local_devices=[cpu] * size, size=size)) for size in (1, 4)
    )
    assert 0 < one <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert one / 8 < four < one / 2  # Four devices share the memory. Other processes use some of it in between.


@pytest.mark.parametrize(
    ("processes", "error", "lost"),
    [
        (2, RuntimeError("UNAVAILABLE: connection reset"), True),
        (2, RuntimeError("Gloo allreduce failed"), True),
        (2, ValueError("shapes differ"), False),
        (1, RuntimeError("UNAVAILABLE: connection reset"), False),
    ],
)
def test_an_error_of_a_lost_process_is_told_from_other_errors(monkeypatch, processes, error, lost):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    expected = LostProcessError if lost else type(error)
    with pytest.raises(expected) as caught, sharding.name_lost_process():
        raise error
    assert ("another process of this run has ended" in str(caught.value)) == lost
    wrapper = RuntimeError("the checkpoint was not saved")
    wrapper.__cause__ = error
    assert sharding.is_lost_process(wrapper) == lost
