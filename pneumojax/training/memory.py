"""Estimates the memory of a training step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from pneumojax.config import Config
from pneumojax.preprocessing import normalise
from pneumojax.sharding import replicas_partitioned
from pneumojax.steps import make_init


def estimate_memory(
    config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[int, int]:
    """Estimates how much memory a training step needs on a device, without compiling it.

    A step needs memory for the gradients and for everything that the forward pass saves for the backward pass. The
    compiled program may need less.

    Args:
      config: the config of the run.
      graph: from `steps.make_graph`.
      tx: the optimizer.
      mesh: the devices.

    Returns:
      (bytes_per_replica, shared_bytes): bytes for each replica on the device, and bytes that its replicas share.
    """
    sharers = 1 if replicas_partitioned(config.train.replicas, mesh) else mesh.size
    size, px = config.train.batch_size // sharers, config.data.image_px
    state = jax.eval_shape(make_init(config, tx, mesh), jax.random.key(0))
    images, keys = jax.eval_shape(lambda: (jnp.zeros((size, px, px)), jax.random.split(jax.random.key(0), size)))

    def save_for_backward(
        params: dict[str, Any], batch_stats: dict[str, Any], images: jax.Array, keys: jax.Array
    ) -> Callable:
        def forward(params: dict[str, Any]) -> jax.Array:
            return nnx.merge(graph, params, batch_stats)(normalise(images), train=True, keys=keys)

        return jax.vjp(forward, params)[1]

    def count_bytes(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    saved = jax.eval_shape(save_for_backward, state.params, state.batch_stats, images, keys)
    step = count_bytes(state.params) + count_bytes(saved)
    # On CPU the replicas run one after the other and share the memory of a step.
    return (count_bytes(state), step) if jax.default_backend() == "cpu" else (count_bytes(state) + step, 0)
