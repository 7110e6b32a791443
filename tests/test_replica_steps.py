"""Tests of the compiled step of several replicas: each equals the single run with its config, on any devices.

On CPU, replicas are computed one after another. There, a replica is bitwise equal to its single run if replicas differ
in seed, learning rate and weight decay. A swept label smoothing or augmentation strength is a variable instead of a
constant in the program, and is rounded differently. On other devices, replicas are vmapped, which changes the order of
summation.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from trainer import (
    CLASS_WEIGHTS,
    DRAWS,
    PLAIN,
    RANDOM,
    SGD,
    SWEEP,
    SWEEP_RATES,
    Trainer,
    assert_near,
    draw_batches,
    draw_images,
    make_mesh,
)

from pneumojax import replica_steps, steps
from pneumojax.config import AugmentConfig, config_from_dict, config_to_dict
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import put
from pneumojax.training import replicas
from pneumojax.training.sweep import plan_replicas


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "sweep.toml"
    path.write_text(SWEEP)
    return str(path)


def train_replicas(devices, config, num_steps=3):
    """Returns (state, metrics) of all replicas after one chunk, as numpy arrays. Each replica has its own batches."""
    mesh, plans = make_mesh(devices), plan_replicas(config)
    graph, tx = steps.make_graph(config), make_optimizer(config.optimizer, 200)
    chunk = replica_steps.make_replicas_chunk(config, graph, 200, CLASS_WEIGHTS, mesh)
    init = steps.make_init(config, tx, mesh)
    states = [jax.device_get(init(jax.random.key(plan.train.seed))) for plan in plans]
    state = replica_steps.put_replicas(jax.tree.map(lambda *leaves: np.stack(leaves), *states), config, mesh)
    key = replica_steps.make_replica_keys(np.array([plan.train.seed for plan in plans], np.int32), mesh)
    swept = replica_steps.put_replicas(replicas._collect_swept(config, plans), config, mesh)
    batches = np.stack([np.roll(draw_batches(num_steps), r, axis=1) for r in range(len(plans))])
    batches = replica_steps.put_replica_batches(batches, config, mesh)
    images, labels = draw_images()
    arguments = (state, put(images, mesh), put(labels, mesh), batches, key, swept)
    with jax.transfer_guard("disallow"):
        state, metrics = chunk(*arguments)
    return jax.device_get((state, metrics))


def train_alone(plan, replica, num_steps=3):
    """Returns the same for the single run with a replica's config, on one device."""
    trainer = Trainer(1, **config_to_dict(plan))
    images, labels, _ = trainer.constants
    trainer.constants = images, labels, steps.make_key(plan, trainer.mesh)
    metrics = trainer.train(np.roll(draw_batches(num_steps), replica, axis=1))
    return jax.device_get(trainer.state), metrics


@functools.cache
def each_alone(config):
    plans = plan_replicas(config)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[train_alone(plan, r) for r, plan in enumerate(plans)])


@pytest.mark.slow
def test_a_replica_is_bitwise_the_run_with_its_seed_learning_rate_and_weight_decay(tmp_path, compile_as_users_do):
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(SWEEP_RATES)
    config = config_from_dict(PLAIN | DRAWS | SGD | {"cnn_widths": (4,), "replicas": 2, "sweep": str(sweep), "seed": 3})
    with compile_as_users_do():
        state, metrics = train_replicas(1, config)
        alone = each_alone(config)
    jax.tree.map(np.testing.assert_array_equal, (state, metrics), alone)
    assert not np.array_equal(*state.params["head"]["linear"]["kernel"])


@pytest.mark.slow  # test_replicas.py compares whole runs bitwise, with less augmentation and compiled in less time.
def test_a_replica_with_the_default_augmentation_is_bitwise_the_run_alone(compile_as_users_do):
    defaults = {field.name: field.default for field in dataclasses.fields(AugmentConfig)}
    config = config_from_dict(PLAIN | defaults | {"model": "mlp", "replicas": 2})
    with compile_as_users_do():
        replicated, alone = train_replicas(1, config), each_alone(config)
    jax.tree.map(np.testing.assert_array_equal, replicated, alone)


@pytest.mark.slow
@pytest.mark.parametrize("replica_map", ["map", "vmap"])
@pytest.mark.parametrize("random", [DRAWS, RANDOM], ids=["some", "all"])
def test_a_replica_with_all_swept_values_is_near_the_run_alone(sweep, replica_map, random):
    replicas = {"replicas": 2, "replica_map": replica_map, "sweep": sweep, "seed": 3}
    config = config_from_dict(PLAIN | random | SGD | {"cnn_widths": (4,)} | replicas)
    (state, metrics), (alone, alone_metrics) = train_replicas(1, config), each_alone(config)
    assert_near(metrics, alone_metrics, 2e-5)
    # Rounding can change the position of a maximum or the sign of a ReLU's input, and thereby the gradient.
    assert_near(state, alone, 2e-3)


@pytest.mark.parametrize("number", [2, 8], ids=["devices share each batch", "each device has a replica"])
def test_eight_devices_train_as_one_does(number):
    config = config_from_dict(PLAIN | SGD | {"replicas": number, "model": "mlp", "dropout": 0.3})
    (eight, eight_metrics), (one, one_metrics) = train_replicas(8, config), train_replicas(1, config)
    assert_near(eight_metrics, one_metrics, 2e-5)
    assert_near(eight, one, 2e-5)
