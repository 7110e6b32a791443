"""Prevents XLA from fusing operations on CPU."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import jax
import jax.numpy as jnp
from jax import lax

from pneumojax.ops.xla import uses_cpu_algorithms

Arrays = TypeVarTuple("Arrays")
Result = TypeVar("Result")


def compute_unfused(function: Callable[[*Arrays], Result], *arrays: *Arrays) -> Result:
    """Computes `function(*arrays)`. On CPU, XLA does not fuse the function with other operations.

    This has two uses. XLA does not repeat the function for each use of its result. The result is also rounded in the
    same way in every program, because rounding depends on fusion.

    The function is a branch of a conditional, which XLA compiles as a separate computation. An optimization barrier
    around it would not be enough, because XLA's CPU backend removes barriers before fusion.

    Args:
      function: a function that takes and returns pytrees of arrays.
      *arrays: the arguments of `function`, pytrees of arrays.

    Returns:
      The result of `function`.
    """
    if not uses_cpu_algorithms():
        return function(*arrays)

    def never_taken(*arrays: *Arrays) -> Result:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arrays))

    return lax.cond(lax.optimization_barrier(True), function, never_taken, *arrays)
