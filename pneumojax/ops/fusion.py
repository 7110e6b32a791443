"""Prevents XLA from fusing operations on CPU."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import jax
import jax.numpy as jnp
from jax import lax

from pneumojax.ops.xla import uses_xla_algorithms

Arrays = TypeVarTuple("Arrays")
Result = TypeVar("Result")


def compute_unfused(function: Callable[[*Arrays], Result], *arrays: *Arrays) -> Result:
    """Computes `function(*arrays)`. On CPU, XLA does not fuse it with the operations around it.

    XLA then does not repeat these operations for each use of the result. It also rounds them in the same way wherever
    the function is used, because rounding depends on fusion. An optimization barrier would not be enough: XLA's CPU
    backend removes it before fusion. A branch of a conditional stays a separate computation.

    Args:
      function: a function of arrays that returns a tree of arrays.
      *arrays: the arguments of `function`, trees of arrays.

    Returns:
      The result of `function`.
    """
    if uses_xla_algorithms():
        return function(*arrays)

    def never_taken(*arrays: *Arrays) -> Result:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arrays))

    return lax.cond(lax.optimization_barrier(True), function, never_taken, *arrays)
