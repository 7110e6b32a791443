"""A multilayer perceptron on the pixels. It is a baseline that does not use the spatial structure of images."""

import jax
from flax import nnx

from pneumojax.models.layers import Head, Network


class MLP(Network):
    """Hidden layers with the given widths and ReLU, followed by the head."""

    def __init__(
        self,
        image_px: int,
        widths: tuple[int, ...],
        num_outputs: int,
        dropout: float,
        dtype: str,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        del axis_name  # This network has no batch normalisation.
        self.depth = len(widths)
        features = image_px * image_px
        for i, width in enumerate(widths):
            setattr(self, f"hidden{i + 1}", nnx.Linear(features, width, dtype=dtype, rngs=rngs))
            features = width
        self.head = Head(features, num_outputs, dropout, rngs)

    def extract(self, images: jax.Array, train: bool) -> jax.Array:
        """Applies the hidden layers to images [B, H, W, 1]. Returns features [B, F]."""
        x = images.reshape(images.shape[0], -1)
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"hidden{i + 1}")(x))
        return x
