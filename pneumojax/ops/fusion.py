"""A limit to XLA's fusion on CPU."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import jax
import jax.numpy as jnp
from jax import lax

from pneumojax.ops.xla import uses_xla_algorithms

Arrays = TypeVarTuple("Arrays")
Result = TypeVar("Result")


def compute_unfused(function: Callable[[*Arrays], Result], *arrays: *Arrays) -> Result:
    """Computes `function(*arrays)`, on CPU apart from the operations around it.

    XLA neither fuses these operations with others nor repeats them for each use of the result. How XLA fuses an
    operation decides how it is rounded. An optimization barrier is not enough, as XLA's CPU backend removes it before
    fusion; a branch of a conditional stays a computation of its own.

    Args:
      function: returns any tree of arrays.
      *arrays: its arguments, trees of arrays.

    Returns:
      What `function` returns.
    """
    if uses_xla_algorithms():
        return function(*arrays)

    def never_taken(*arrays: *Arrays) -> Result:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arrays))

    return lax.cond(lax.optimization_barrier(True), function, never_taken, *arrays)
