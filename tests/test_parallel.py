"""Tests of a compiled chunk: with jit, shard_map and pmap it is the loop over its steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from trainer import PARALLEL, make_mesh

from pneumojax import parallel
from pneumojax.config import Config, TrainConfig
from pneumojax.sharding import AXIS, put, replicated

BATCHES = np.random.default_rng(0).permutation(64)[:48].reshape(3, 16).astype(np.int32)
COLUMN = np.random.default_rng(1).normal(size=64).astype(np.float32)


def make_config(mode, loader="resident"):
    return dataclasses.replace(Config(), train=TrainConfig(parallel=mode, loader=loader))


@pytest.mark.parametrize("loader", ["resident", "stream"])
@pytest.mark.parametrize("mode", PARALLEL)
def test_a_chunk_is_the_loop_over_its_steps(mode, loader):
    config, mesh = make_config(mode, loader), make_mesh(8)

    def step(state, column, index, key):
        total = jnp.sin(column[index]).sum()
        total = total if mode == "jit" else lax.psum(total, AXIS)
        state = 0.5 * state + total + jax.random.uniform(key)
        return state, {"state": state}

    key = jax.device_put(jax.random.key(3), replicated(mesh))
    state = put(np.float32(1), mesh)
    if loader == "stream":
        rows = COLUMN[parallel.shape_batches(BATCHES, config, mesh)]
        arrays = (put(rows, mesh, axis=1),)
    else:
        arrays = put(COLUMN, mesh), parallel.put_batches(BATCHES, config, mesh)
    last, metrics = parallel.make_chunk(step, 1, config, mesh)(state, *arrays, key)
    expected = [1.0]
    for index in BATCHES:
        expected.append(0.5 * expected[-1] + np.sin(COLUMN[index]).sum() + float(jax.random.uniform(key)))
    np.testing.assert_allclose(metrics["state"], expected[1:], rtol=1e-5)
    np.testing.assert_allclose(last, expected[-1], rtol=1e-5)
    assert state.is_deleted()  # It was donated.


@pytest.mark.parametrize("mode", PARALLEL)
def test_each_device_gets_its_own_part_of_each_batch(mode):
    config, mesh = make_config(mode), make_mesh(8)
    batches = parallel.put_batches(BATCHES, config, mesh)
    assert batches.shape == ((3, 8, 2) if mode == "pmap" else (3, 16))
    for d, device in enumerate(mesh.devices):
        (shard,) = (shard.data for shard in batches.addressable_shards if shard.device == device)
        np.testing.assert_array_equal(np.asarray(shard).reshape(3, 2), BATCHES[:, 2 * d : 2 * d + 2])
