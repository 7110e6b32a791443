"""VGG16 for grey images.

References:
  Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015: configuration D.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pneumojax.models.layers import Conv, Head, Network, add_ones, drop
from pneumojax.ops.pooling import max_pool

STAGE_CONVOLUTIONS = (2, 2, 3, 3, 3)
# Height and width of the features that the dense layers accept, which is the size of 224 px images after five poolings.
DENSE_PX = 7


class VGG16(Network):
    """VGG16: five stages of 3x3 convolutions, dense layers with dropout, and the head.

    Each stage ends with 2x2 max-pooling. Adaptive average pooling resizes the features of the last stage to 7 x 7, as
    in torchvision, so the dense layers accept images of any size. Without dense layers, the input of the head is the
    global average. An image below 32 px is pooled until one position is left.
    """

    def __init__(
        self,
        width: int,
        dense_widths: tuple[int, ...],
        num_outputs: int,
        dropout: float,
        dtype: str,
        axis_name: str | None,
        rngs: nnx.Rngs,
        ones_plane: bool = False,
    ):
        del axis_name  # This network has no batch normalisation.
        self.ones_plane = ones_plane
        channels = 2 if ones_plane else 1
        for stage, convolutions in enumerate(STAGE_CONVOLUTIONS):
            features = width * min(2**stage, 8)
            for i in range(convolutions):
                conv = Conv(channels, features, 3, 1, dtype, rngs, bias=True)
                setattr(self, f"stage{stage + 1}_conv{i + 1}", conv)
                channels = features
        self.dropout = dropout
        self.depth = len(dense_widths)
        features = channels * DENSE_PX**2 if dense_widths else channels
        for i, units in enumerate(dense_widths):
            setattr(self, f"dense{i + 1}", nnx.Linear(features, units, dtype=dtype, rngs=rngs))
            features = units
        self.head = Head(features, num_outputs, dropout, rngs)

    def extract_maps(self, images: jax.Array, train: bool) -> jax.Array:
        """Applies the backbone to images [B, H, W, 1]. Returns maps [B, P, P, F]."""
        del train
        x = add_ones(images) if self.ones_plane else images
        for stage, convolutions in enumerate(STAGE_CONVOLUTIONS):
            for i in range(convolutions):
                x = getattr(self, f"stage{stage + 1}_conv{i + 1}")(x if i == 0 else nnx.relu(x))
            x = nnx.relu(max_pool(x, 2, valid=x.shape[1] > 1))
        return x

    def extract(self, images: jax.Array, train: bool) -> jax.Array:
        """Applies the backbone to images [B, H, W, 1]. Returns [B, P, P, F], or [B, F] without dense layers."""
        return self.extract_maps(images, train) if self.depth else super().extract(images, train)

    def classify(self, features: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """Applies the classifier to features [B, P, P, F] or [B, F]. Returns logits [B, outputs]."""
        x = pool_to(features, DENSE_PX).reshape(features.shape[0], -1) if self.depth else features
        for i in range(self.depth):
            x = nnx.relu(getattr(self, f"dense{i + 1}")(x))
            if train and self.dropout and i < self.depth - 1:  # The head has its own dropout.
                assert keys is not None, "dropout in training needs a key for each image"
                x = drop(x, self.dropout, jax.vmap(jax.random.fold_in, (0, None))(keys, i))
        return self.head(x, train, keys)


def pool_to(images: jax.Array, size: int) -> jax.Array:
    """Applies adaptive average pooling to a fixed size, as PyTorch does.

    Args:
      images: [B, H, H, C].
      size: height and width of the result. In each spatial dimension, position i of the result is the mean of the
        positions floor(i H / size) to ceil((i + 1) H / size) - 1.

    Returns:
      [B, size, size, C].
    """
    px = images.shape[1]
    if px == size:
        return images
    first = np.arange(size) * px // size
    last = -(-(np.arange(size) + 1) * px // size)
    inside = (np.arange(px) >= first[:, None]) & (np.arange(px) < last[:, None])
    weights = jnp.asarray(inside / inside.sum(1, keepdims=True), images.dtype)
    return jnp.einsum("ph,bhwc,qw->bpqc", weights, images, weights)
