"""Tests of the compiled step: it is independent of the chunk length and the number of devices, and has known values.

Equality on several devices is tested with SGD. Adam divides by the size of the gradient, so it would hide a gradient
that is eight times too large.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from trainer import (
    BATCH,
    CLASS_WEIGHTS,
    DRAWS,
    PARALLEL,
    PLAIN,
    PX,
    RANDOM,
    SGD,
    Trainer,
    assert_near,
    draw_batches,
    draw_images,
    make_mesh,
)

from pneumojax import steps
from pneumojax.config import AugmentConfig, config_from_dict
from pneumojax.optimizer import make_optimizer
from pneumojax.parallel import put_batches
from pneumojax.sharding import put


def train(batches, devices, **fields):
    """Returns (state, metrics) after one chunk, as numpy arrays."""
    trainer = Trainer(devices, **fields)
    metrics = trainer.train(batches)
    return jax.device_get(trainer.state), metrics


@functools.cache
def train_on_eight_devices(parallel):
    return train(draw_batches(4), 8, parallel=parallel, **RANDOM, **SGD)


# `parallel` changes how a chunk is compiled for several devices, and not how its steps are repeated.
ALSO_MAPPED = ["jit", *(pytest.param(parallel, marks=pytest.mark.slow) for parallel in PARALLEL[1:])]


@pytest.mark.parametrize("parallel", ALSO_MAPPED)
def test_a_chunk_of_steps_is_as_many_chunks_of_one_step(parallel):
    batches = draw_batches(4)
    at_once, metrics = train_on_eight_devices(parallel)
    loop = Trainer(8, parallel=parallel, **RANDOM, **SGD)
    rows = [loop.train(batches[i : i + 1]) for i in range(4)]
    assert_near(jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows), metrics, 1e-6)
    assert_near(jax.device_get(loop.state), at_once, 5e-6)


@functools.cache
def train_on_one_device(task):
    return train(draw_batches(4), 1, **RANDOM, **SGD)


@pytest.mark.parametrize("parallel", ["jit", "shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_eight_devices_train_as_one_does_with_all_that_draws_random_numbers(parallel):
    one, one_metrics = train_on_one_device("binary")
    eight, eight_metrics = train_on_eight_devices(parallel)
    assert_near(eight_metrics, one_metrics, 2e-5)
    assert_near(eight, one, 2e-5)
    assert set(one.ema) == {"params", "batch_stats"}


@pytest.mark.slow  # The test above shows the same for eight devices.
@pytest.mark.parametrize("parallel", PARALLEL[1:])
def test_one_device_is_the_same_under_each_way_to_spread(parallel):
    one, one_metrics = train_on_one_device("binary")
    mapped, mapped_metrics = train(draw_batches(4), 1, parallel=parallel, **RANDOM, **SGD)
    assert_near(mapped_metrics, one_metrics, 2e-5)
    assert_near(mapped, one, 2e-5)


# The test below compares pmap with shard_map.
@pytest.mark.parametrize("parallel", ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_local_batch_norm_is_the_mean_over_devices_that_each_saw_their_share_only(parallel):
    batch = draw_batches(1)
    local, metrics = train(batch, 8, parallel=parallel, batch_norm="local", **SGD)
    shares = [train(batch[:, i : i + 2], 1, **SGD) for i in range(0, BATCH, 2)]
    # One step of SGD and its momentum are linear in the gradient.
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *[state for state, _ in shares])
    assert_near(local, mean, 1e-5)
    assert_near(metrics, jax.tree.map(lambda *leaves: np.sum(leaves, 0), *[sums for _, sums in shares]), 1e-5)
    whole, _ = train(batch, 8, **SGD)
    with pytest.raises(AssertionError):
        assert_near(local.params, whole.params, 1e-3)


def test_local_batch_norm_is_the_same_under_pmap_and_shard_map_and_the_state_is_equal_on_all_devices():
    states = {}
    for parallel in PARALLEL[1:]:
        trainer = Trainer(8, parallel=parallel, batch_norm="local", **SGD)
        for batch in draw_batches(4):  # Chunks of one step, which the test above has compiled.
            trainer.train(batch[None])
        states[parallel] = jax.device_get(trainer.state)
        for leaf in jax.tree.leaves(trainer.state):
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert len(copies) == 8
            assert all(np.array_equal(copy, copies[0]) for copy in copies)
    assert_near(states["pmap"], states["shard_map"], 1e-6)


# With the default widths and augmentation, because XLA may round different small programs alike.
WIDE = {field.name: field.default for field in dataclasses.fields(AugmentConfig)}
WIDE |= {"cnn_widths": (32, 64, 128, 256), "batch_size": 32}


@pytest.mark.slow
def test_a_streamed_chunk_is_bitwise_the_resident_one(compile_as_users_do):
    batches = draw_batches(16, batch_size=32)
    images, labels = draw_images()
    with compile_as_users_do():
        resident, streamed = Trainer(1, **WIDE), Trainer(1, loader="stream", **WIDE)
        rows = put(images[batches], streamed.mesh, axis=1), put(labels[batches], streamed.mesh, axis=1)
        results = streamed.chunk(streamed.state, *rows, streamed.constants[-1])
        metrics = resident.train(batches)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(results), (jax.device_get(resident.state), metrics))


@pytest.mark.parametrize(
    "parallel", ["jit", pytest.param("shard_map", marks=pytest.mark.slow), pytest.param("pmap", marks=pytest.mark.slow)]
)
def test_the_chunk_compiles_once_and_nothing_is_copied_unseen(parallel):
    trainer = Trainer(8, parallel=parallel, **DRAWS)
    compiled = []
    trainer.train(draw_batches(2))
    batches = draw_batches(2)
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    try:
        with jax.transfer_guard("disallow"):
            for _ in range(3):
                trainer.train(batches)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [name for name in compiled if "trace" in name or "compile" in name]
    if parallel != "pmap":  # pmap does not report it.
        assert trainer.chunk._cache_size() == 1  # The Trainers of other tests do not have these fields.


def test_a_hidden_copy_is_an_error():
    trainer = Trainer(8)
    images, labels, key = trainer.constants
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
        trainer.chunk(trainer.state, images, labels, draw_batches(2), key)


# Losses of the first three steps, and the norm of all parameters after them, computed by this code on a CPU with jax
# 0.10.2. They change only if the method changes.
GOLDEN = {
    "mlp": ([0.710905, 0.515581, 0.227682], 4.24138),
    "cnn": ([0.952483, 0.692480, 0.632973], 4.74820),
    "resnet18": ([0.681316, 0.698413, 0.518967], 25.5694),
}


@pytest.mark.parametrize("model", ["mlp", "cnn", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_the_first_steps_are_the_golden_ones_and_32_images_are_overfitted(model):
    trainer = Trainer(1, model=model, learning_rate=0.02 if model == "cnn" else 3e-3)
    batches = np.resize(np.arange(32, dtype=np.int32), (3, BATCH))
    metrics = trainer.train(batches)
    norm = float(np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(jax.device_get(trainer.state.params)))))
    print((metrics["loss"] / BATCH).tolist(), norm)
    np.testing.assert_allclose(metrics["loss"] / BATCH, GOLDEN[model][0], rtol=1e-3)
    np.testing.assert_allclose(norm, GOLDEN[model][1], rtol=1e-4)
    for _ in range(60):
        metrics = trainer.train(batches)
        if metrics["loss"].max() / BATCH < 0.02:
            break
    assert metrics["loss"].max() / BATCH < 0.02
    assert metrics["correct"].sum() == metrics["count"].sum() == 3 * BATCH


@pytest.mark.parametrize("model", [pytest.param("mlp", marks=pytest.mark.slow), "cnn"])
def test_bfloat16_keeps_the_state_in_float32_and_the_loss_near(model):
    batches = draw_batches(4)
    _, metrics = train(batches, 1, model=model, **SGD)
    state, rough_metrics = train(batches, 1, model=model, dtype="bfloat16", **SGD)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves((state.params, state.batch_stats)))
    np.testing.assert_allclose(rough_metrics["loss"], metrics["loss"], rtol=0.03)
    assert not np.array_equal(rough_metrics["loss"], metrics["loss"])


def test_the_moving_average_follows_its_rule():
    trainer = Trainer(1, ema_decay=0.3, **SGD)
    expected = jax.device_get({"params": trainer.state.params, "batch_stats": trainer.state.batch_stats})
    for i, batch in enumerate(draw_batches(3)):
        trainer.train(batch[None])
        now = jax.device_get({"params": trainer.state.params, "batch_stats": trainer.state.batch_stats})
        decay = min(0.3, (1 + i) / (10 + i))
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, expected, now)
    assert_near(jax.device_get(trainer.state.ema), expected, 1e-5)


def test_a_step_of_sgd_takes_the_mean_gradient_of_the_weighted_loss():
    trainer = Trainer(8, momentum=0.0, weight_decay=0.0, **SGD)
    head = trainer.state.params["head"]["linear"]
    head["kernel"] *= 0  # Every logit is 0, so P(PNEUMONIA) = 1/2.
    batch = draw_batches(1)
    labels = draw_images()[1][batch[0]]
    trainer.train(batch)
    slope = np.mean(CLASS_WEIGHTS[labels] * (0.5 - labels))
    bias = np.asarray(trainer.state.params["head"]["linear"]["bias"])
    np.testing.assert_allclose(bias, [-0.05 * slope], rtol=1e-5)


def test_images_that_a_step_shrinks_train_as_if_they_were_stored_smaller():
    images, labels = draw_images()
    small = images[:, ::2, ::2]
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    mesh, results = make_mesh(1), []
    for stored in (small, large):
        config = config_from_dict(PLAIN | SGD | {"image_px": stored.shape[1]})
        tx = make_optimizer(config.optimizer, 100)
        chunk = steps.make_train_chunk(config, steps.make_graph(config), tx, CLASS_WEIGHTS, mesh, PX // 2)
        arrays = put(stored, mesh), put(labels, mesh), put_batches(draw_batches(1), config, mesh)
        results.append(jax.device_get(chunk(steps.init_state(config, tx, mesh), *arrays, steps.make_key(config, mesh))))
    assert_near(*results, 1e-5)
