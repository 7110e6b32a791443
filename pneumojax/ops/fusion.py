"""Limits to XLA's fusion on CPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pneumojax.ops.convolution import uses_xla_forms


def compute_unfused(function: Callable, *arrays):
    """`function(*arrays)`; on CPU XLA neither fuses it with its surroundings nor repeats it for each use.

    There it is the taken branch of a conditional: XLA's CPU backend removes optimization barriers before it fuses.

    Args:
      function: returns any tree of arrays.
      *arrays: its arguments, trees of arrays.

    Returns:
      What `function` returns.
    """
    if uses_xla_forms():
        return function(*arrays)

    def zeros(*arrays):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arrays))

    return lax.cond(lax.optimization_barrier(True), function, zeros, *arrays)
