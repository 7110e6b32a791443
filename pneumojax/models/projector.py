"""The projector, which replaces the head of a network in pretraining."""

import jax
import jax.numpy as jnp
from flax import nnx

from pneumojax.models.layers import BatchNorm


class Projector(nnx.Module):
    """Two linear layers, with batch normalisation and ReLU between them, that replace the head in pretraining.

    References:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020.
    """

    def __init__(self, features: int, widths: tuple[int, int], axis_name: str | None, rngs: nnx.Rngs):
        self.linear1 = nnx.Linear(features, widths[0], use_bias=False, rngs=rngs)
        self.norm1 = BatchNorm(widths[0], "float32", axis_name, rngs)
        self.linear2 = nnx.Linear(*widths, rngs=rngs)

    def __call__(self, features: jax.Array, train: bool, keys: jax.Array | None) -> jax.Array:
        """Maps features [B, F] to float32 embeddings [B, widths[1]]."""
        del keys
        x = self.linear1(features.astype(jnp.float32))
        return self.linear2(nnx.relu(self.norm1(x[:, None, None], train)[:, 0, 0]))
