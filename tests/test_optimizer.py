import jax
import jax.numpy as jnp
import numpy as np
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


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_kernels_decay(optimizer):
    config = OptimizerConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5, warmup=0.0)
    tx = make_optimizer(config, 10)
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 2))},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "linear": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)},
    }
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    # With no gradient a kernel shrinks by learning rate times decay; Nesterov counts the first step 1 + momentum times.
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
        # Under a constant gradient of 1 both take steps of the learning rate.
        updates, state = tx.update({"bias": jnp.ones(1)}, state, params)
        np.testing.assert_allclose(-updates["bias"][0], schedule(step), rtol=1e-4, atol=1e-7)
