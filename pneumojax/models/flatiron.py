"""The network of the published student project flatiron_phase4_project."""

import jax
from flax import nnx

from pneumojax.models.layers import Conv, Head, Network, drop
from pneumojax.ops.pooling import max_pool


class Flatiron(Network):
    """A network of two convolutions, three poolings and two dense layers. It has 3,011,169 parameters at 224 px.

    Conv 32 3x3 tanh, MaxPool 2, Conv 32 4x4 ReLU, MaxPool 2 'same', LeakyReLU 0.3, MaxPool 2 'same', dropout,
    Dense 128 ReLU, Dense 64 ReLU, head. The convolutions are not padded. The LeakyReLU has no effect because it follows
    a ReLU. It is kept because the published network has it.

    References:
      Project flatiron_phase4_project (Keras): its published layers, with Keras's defaults for all unpublished options.
    """

    def __init__(
        self, image_px: int, num_outputs: int, dropout: float, dtype: str, axis_name: str | None, rngs: nnx.Rngs
    ):
        del axis_name  # This network has no batch normalisation.
        self.conv1 = Conv(1, 32, 3, 1, dtype, rngs, pad=0, bias=True)
        self.conv2 = Conv(32, 32, 4, 1, dtype, rngs, pad=0, bias=True)
        self.dropout = dropout
        px = (image_px - 2) // 2 - 3
        px = -(-px // 4)  # Two poolings halve the size and round it up.
        self.dense1 = nnx.Linear(32 * px**2, 128, dtype=dtype, rngs=rngs)
        self.dense2 = nnx.Linear(128, 64, dtype=dtype, rngs=rngs)
        self.head = Head(64, num_outputs, 0.0, rngs)

    def extract(self, images: jax.Array, train: bool) -> jax.Array:
        """Applies the backbone to images [B, H, W, 1]. Returns features [B, P, P, 32]."""
        del train
        x = nnx.tanh(self.conv1.add_bias(max_pool(self.conv1.convolve(images), 2, valid=True)))
        x = nnx.relu(self.conv2.add_bias(max_pool(self.conv2.convolve(x), 2)))
        return nnx.leaky_relu(max_pool(x, 2), 0.3)

    def classify(self, features: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """Applies the classifier to features [B, P, P, 32]. Returns logits [B, outputs]."""
        x = features
        if train and self.dropout:
            assert keys is not None, "dropout in training needs a key for each image"
            x = drop(x, self.dropout, keys)
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        x = nnx.relu(self.dense2(x))
        return self.head(x, train, keys)
