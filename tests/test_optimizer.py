"""Tests of the optimizers and of the schedule of the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pneumojax.config import OptimizerConfig
from pneumojax.optimizer import make_optimizer, make_schedule


def test_the_learning_rate_rises_from_0_to_its_peak_and_falls_as_a_cosine_to_0():
    schedule = make_schedule(OptimizerConfig(learning_rate=0.4, warmup=0.2), 100)
    rates = np.array([schedule(step) for step in range(101)])
    np.testing.assert_allclose(rates[:21], np.linspace(0, 0.4, 21), atol=1e-7)
    np.testing.assert_allclose(rates[20:], 0.2 * (1 + np.cos(np.pi * np.arange(81) / 80)), atol=1e-6)


@pytest.mark.parametrize("total_steps", [1, 2, 10])
def test_without_warm_up_the_first_step_has_the_peak(total_steps):
    schedule = make_schedule(OptimizerConfig(learning_rate=0.4, warmup=0.0), total_steps)
    assert schedule(0) == pytest.approx(0.4)
    assert schedule(total_steps) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("total_steps", [1, 2, 3, 7])
def test_short_runs_have_a_schedule_too(total_steps, warmup):
    schedule = make_schedule(OptimizerConfig(learning_rate=0.4, warmup=warmup), total_steps)
    rates = np.array([schedule(step) for step in range(total_steps + 1)])
    assert np.isfinite(rates).all()
    assert rates.min() >= 0
    assert rates.max() <= 0.4 * (1 + 1e-6)
    assert rates.max() > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_only_kernels_decay(optimizer):
    config = OptimizerConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5, warmup=0.0)
    tx = make_optimizer(config, 10)
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 2))},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "linear": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
    }
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    # Without a gradient, a kernel shrinks by learning rate * decay. Nesterov's first step has a factor of 1 + momentum.
    shrinkage = -0.1 * 0.5 * (1.9 if optimizer == "sgd" else 1)
    np.testing.assert_allclose(updates["conv"]["kernel"], shrinkage, rtol=1e-5)
    np.testing.assert_allclose(updates["linear"]["kernel"], shrinkage, rtol=1e-5)
    for leaf in (*updates["norm"].values(), updates["linear"]["bias"]):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_optimizer_follows_the_schedule(optimizer):
    config = OptimizerConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.0, momentum=0.0, warmup=0.5)
    tx, schedule = make_optimizer(config, 8), make_schedule(config, 8)
    params = {"bias": jnp.ones(1)}
    state = tx.init(params)
    for step in range(8):
        # With a constant gradient of 1, both take steps with the size of the learning rate.
        updates, state = tx.update({"bias": jnp.ones(1)}, state, params)
        np.testing.assert_allclose(-updates["bias"][0], schedule(step), rtol=1e-4, atol=1e-7)


def test_muon_is_optax_s_for_hidden_kernels_and_adamw_for_the_rest():
    config = OptimizerConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.0, warmup=0.0)
    draws = np.random.default_rng(0)
    params = {
        "conv1": {"kernel": draws.normal(size=(3, 3, 4, 8))},
        "norm1": {"scale": draws.normal(size=8), "bias": draws.normal(size=8)},
        "hidden1": {"kernel": draws.normal(size=(8, 16)), "bias": draws.normal(size=16)},
        "head": {"linear": {"kernel": draws.normal(size=(16, 1)), "bias": draws.normal(size=1)}},
    }
    params = jax.tree.map(jnp.float32, params)
    axes = jax.tree.map(lambda leaf: None, params)
    axes["conv1"]["kernel"] = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    axes["hidden1"]["kernel"] = optax.contrib.MuonDimensionNumbers(0, 1)
    ours = make_optimizer(config, 8)
    theirs = optax.contrib.muon(
        make_schedule(config, 8), consistent_rms=0.2, muon_weight_dimension_numbers=axes, adam_weight_decay=0.0
    )
    our_state, their_state = ours.init(params), theirs.init(params)
    update_ours, update_theirs = jax.jit(ours.update), jax.jit(theirs.update)
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: jnp.float32(draws.normal(size=leaf.shape)), params)
        our_updates, our_state = update_ours(grads, our_state, params)
        their_updates, their_state = update_theirs(grads, their_state, params)
        # Adam with and without Nesterov momentum differ, so the rest is compared with AdamW.
        for name in ("conv1", "hidden1"):
            np.testing.assert_allclose(our_updates[name]["kernel"], their_updates[name]["kernel"], rtol=1e-4, atol=1e-6)
    update = our_updates["conv1"]["kernel"].reshape(36, 8)
    sizes = np.linalg.svd(update, compute_uv=False) / (0.2 * 6 * make_schedule(config, 8)(2))
    assert 0.6 < sizes.min() < sizes.max() < 1.3  # Five Newton-Schulz steps give values near 1.


def test_muon_treats_all_but_hidden_kernels_as_adamw_does():
    params = {"norm1": {"scale": jnp.ones(8)}, "head": {"linear": {"kernel": jnp.ones((16, 1)), "bias": jnp.ones(1)}}}
    grads = jax.tree.map(lambda leaf: 0.3 * leaf, params)
    updates = {}
    for optimizer in ("muon", "adamw"):
        tx = make_optimizer(OptimizerConfig(optimizer=optimizer, warmup=0.0), 8)
        updates[optimizer], _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates["muon"], updates["adamw"])
