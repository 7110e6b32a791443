"""Layers that several networks share."""

import jax
import jax.numpy as jnp
from flax import nnx

from pneumojax.ops.convolution import convolve


class Conv(nnx.Module):
    """A square convolution, padded by kernel // 2 on each side (as PyTorch's; 'SAME' differs at stride 2) unless told.

    References:
      He et al., "Delving Deep into Rectifiers", 2015: the initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        stride: int,
        dtype: str,
        rngs: nnx.Rngs,
        pad: int | None = None,
        bias: bool = False,
    ):
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.kernel = nnx.Param(init(rngs.params(), (size, size, in_channels, out_channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_channels)) if bias else None
        self.stride = stride
        self.pad = pad
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, H, W, I] -> [B, H', W', O] in the compute type; see `convolve` for H' and W'."""
        return self.add_bias(self.convolve(images))

    def convolve(self, images: jax.Array) -> jax.Array:
        """The same without the bias."""
        return convolve(images.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, self.pad)

    def add_bias(self, images: jax.Array) -> jax.Array:
        """To [B, H, W, O] images. It may follow a max-pooling, with the same result and less to do."""
        # In float32, as the bias's gradient is a sum over all places of all images.
        return images if self.bias is None else (images + self.bias[...]).astype(self.dtype)


def add_ones(images: jax.Array) -> jax.Array:
    """[B, H, W, 1] -> [B, H, W, 2]: a plane of ones beside the grey one, for pretrained.py to fold offsets into."""
    return jnp.concatenate([images, jnp.ones_like(images)], -1)


def make_batch_norm(
    channels: int, dtype: str, axis_name: str | None, rngs: nnx.Rngs, initial_scale: float = 1.0
) -> nnx.BatchNorm:
    """Batch normalisation with PyTorch's constants; statistics are float32 whatever the compute type."""
    return nnx.BatchNorm(
        channels,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        scale_init=nnx.initializers.constant(initial_scale),
        axis_name=axis_name,
        rngs=rngs,
    )


def drop(features: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Dropout.

    Args:
      features: [B, ...].
      rate: share that becomes 0; the others grow by 1 / (1 - rate).
      keys: [B] PRNG keys. One for each image, not for each device's share: the mask does not depend on how many devices
        there are.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, features.shape[1:]))(keys)
    return jnp.where(keep, features / (1 - rate), 0)


class Projector(nnx.Module):
    """Two linear layers, with batch normalisation and ReLU between them: stands in the head's place in pretraining.

    References:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020.
    """

    def __init__(self, features: int, widths: tuple[int, int], axis_name: str | None, rngs: nnx.Rngs):
        self.linear1 = nnx.Linear(features, widths[0], use_bias=False, rngs=rngs)
        self.norm1 = make_batch_norm(widths[0], "float32", axis_name, rngs)
        self.linear2 = nnx.Linear(*widths, rngs=rngs)

    def __call__(self, features: jax.Array, train: bool, keys: jax.Array | None) -> jax.Array:
        """[B, F] features -> [B, widths[1]] float32 embeddings."""
        del keys
        x = self.linear1(features.astype(jnp.float32))
        return self.linear2(nnx.relu(self.norm1(x, use_running_average=not train)))


class Head(nnx.Module):
    """Dropout and the last linear layer, in float32."""

    def __init__(self, features: int, num_outputs: int, dropout: float, rngs: nnx.Rngs):
        self.dropout = dropout
        self.linear = nnx.Linear(features, num_outputs, rngs=rngs)

    def __call__(self, features: jax.Array, train: bool, keys: jax.Array | None) -> jax.Array:
        """[B, F] features -> [B, num_outputs] float32 logits."""
        features = features.astype(jnp.float32)
        if train and self.dropout:
            features = drop(features, self.dropout, keys)
        return self.linear(features)
