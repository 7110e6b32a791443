"""A plain convolutional network."""

import jax
from flax import nnx

from pneumojax.models.layers import BatchNorm, Conv, Head, Network
from pneumojax.ops.pooling import max_pool


class CNN(Network):
    """One stage for each width in `widths`, then global average pooling and the head.

    A stage is a 3x3 convolution, batch normalisation, 2x2 max-pooling and ReLU.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        num_outputs: int,
        dropout: float,
        dtype: str,
        axis_name: str | None,
        rngs: nnx.Rngs,
        frozen: tuple[str, ...] = (),
    ):
        self.frozen = frozen
        self.depth = len(widths)
        channels = 1
        for i, width in enumerate(widths):
            setattr(self, f"conv{i + 1}", Conv(channels, width, 3, 1, dtype, rngs))
            setattr(self, f"norm{i + 1}", BatchNorm(width, dtype, axis_name, rngs))
            channels = width
        self.head = Head(channels, num_outputs, dropout, rngs)

    def extract_maps(self, images: jax.Array, train: bool) -> jax.Array:
        """Applies the backbone to images [B, H, W, 1]. Returns maps [B, P, P, F]."""
        x = images
        for i in range(self.depth):
            x = getattr(self, f"conv{i + 1}")(x)
            name = f"norm{i + 1}"
            x = getattr(self, name)(x, train and name not in self.frozen)
            x = nnx.relu(max_pool(x, 2))
        return x
