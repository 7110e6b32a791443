"""The network of a published student project."""

import jax
from flax import nnx

from pneumojax.models.layers import Conv, Head, Network, drop
from pneumojax.ops.pooling import max_pool


class Flatiron(Network):
    """Two convolutions, three poolings, two dense layers; 3,011,169 parameters at 224 px with one output.

    Conv 32 3x3 tanh, MaxPool 2, Conv 32 4x4 ReLU, MaxPool 2 'same', LeakyReLU 0.3, MaxPool 2 'same', dropout,
    Dense 128 ReLU, Dense 64 ReLU, head. The convolutions are not padded. The LeakyReLU follows a ReLU and so has no
    effect; it is kept because the published network has it.

    References:
      Project flatiron_phase4_project (Keras): its published layers, with Keras's defaults for all unpublished options.
    """

    def __init__(
        self, image_px: int, num_outputs: int, dropout: float, dtype: str, axis_name: str | None, rngs: nnx.Rngs
    ):
        del axis_name  # Nothing here is normalised over the batch.
        self.conv1 = Conv(1, 32, 3, 1, dtype, rngs, pad=0, bias=True)
        self.conv2 = Conv(32, 32, 4, 1, dtype, rngs, pad=0, bias=True)
        self.dropout = dropout
        px = (image_px - 2) // 2 - 3
        px = -(-px // 4)  # Two poolings halve it, rounded up.
        self.dense1 = nnx.Linear(32 * px**2, 128, dtype=dtype, rngs=rngs)
        self.dense2 = nnx.Linear(128, 64, dtype=dtype, rngs=rngs)
        self.head = Head(64, num_outputs, 0.0, rngs)

    def extract(self, images: jax.Array, train: bool) -> jax.Array:
        """The backbone: [B, H, W, 1] images -> [B, P, P, 32] features."""
        del train
        x = nnx.tanh(self.conv1.add_bias(max_pool(self.conv1.convolve(images), 2, valid=True)))
        x = nnx.relu(self.conv2.add_bias(max_pool(self.conv2.convolve(x), 2)))
        return nnx.leaky_relu(max_pool(x, 2), 0.3)

    def classify(self, features: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """[B, P, P, 32] features -> [B, outputs] logits."""
        x = features
        if train and self.dropout:
            assert keys is not None, "dropout in training needs a key for each image"
            x = drop(x, self.dropout, keys)
        x = nnx.relu(self.dense1(x.reshape(len(x), -1)))
        x = nnx.relu(self.dense2(x))
        return self.head(x, train, keys)
