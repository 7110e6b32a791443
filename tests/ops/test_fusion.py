"""Tests of operations that XLA does not fuse with others."""

import jax
import jax.numpy as jnp
import numpy as np

from pneumojax.ops.fusion import compute_unfused
from pneumojax.ops.xla import algorithms


def double_and_sum(arrays):
    doubled = compute_unfused(lambda arrays: {"doubled": 2 * arrays["x"]}, arrays)
    return (doubled["doubled"] + 1).sum()


def test_unfused_operations_give_their_result_and_gradient_and_stay_a_computation_of_their_own():
    arrays = {"x": jnp.arange(8.0)}
    compute = jax.jit(jax.value_and_grad(double_and_sum))
    value, grads = compute(arrays)
    assert value == 2 * 28 + 8
    np.testing.assert_array_equal(grads["x"], np.full(8, 2.0))
    assert "conditional" in compute.lower(arrays).compile().as_text()


def test_xlas_own_algorithms_are_fused():
    with algorithms("xla"):
        text = jax.jit(double_and_sum).lower({"x": jnp.arange(8.0)}).as_text()
    assert "stablehlo.case" not in text
