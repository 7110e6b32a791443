"""Layers that several networks use."""

import jax
import jax.numpy as jnp
from flax import nnx

from pneumojax.ops.convolution import convolve
from pneumojax.ops.xla import find_algorithms

# Kernel size and stride of the first convolution of a residual network, and whether max-pooling at stride 2 follows.
STEMS = {"imagenet": (7, 2, True), "strided": (3, 2, False), "small": (3, 1, False)}


class Conv(nnx.Module):
    """A convolution with a square kernel.

    By default, each edge of the image is padded by size // 2 pixels. At stride 2 this differs from padding='SAME' of
    JAX, which pads the lower and the right edge by one pixel more than the others.

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
        self.stride, self.pad, self.dtype = stride, pad, dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Convolves images [B, H, W, I] and adds the bias. Returns [B, H', W', O]; see `ops.convolution.convolve`."""
        return self.add_bias(self.convolve(images))

    def convolve(self, images: jax.Array) -> jax.Array:
        """Convolves images [B, H, W, I] without adding the bias. Returns [B, H', W', O] in the compute dtype."""
        return convolve(images.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride, self.pad)

    def add_bias(self, images: jax.Array) -> jax.Array:
        """Adds the bias to images [B, H, W, O]. After max-pooling this is cheaper and gives the same result."""
        # The bias is added in float32 because its gradient is a sum over all positions of all images.
        return images if self.bias is None else (images + self.bias[...]).astype(self.dtype)


def add_ones(images: jax.Array) -> jax.Array:
    """Adds a channel of ones to images [B, H, W, 1], and returns [B, H, W, 2].

    Imported weights need it, because their first kernel also adds an offset: see `weight_import`.
    """
    return jnp.concatenate([images, jnp.ones_like(images)], -1)


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation with PyTorch's constants. Its statistics are float32 for every compute dtype."""

    scale: nnx.Param
    bias: nnx.Param

    def __init__(self, channels: int, dtype: str, axis_name: str | None, rngs: nnx.Rngs, initial_scale: float = 1.0):
        init = nnx.initializers.constant(initial_scale)
        super().__init__(
            channels, momentum=0.9, epsilon=1e-5, dtype=dtype, scale_init=init, axis_name=axis_name, rngs=rngs
        )

    def __call__(  # type: ignore[override]
        self, images: jax.Array, train: bool, relu: bool = False, shortcut: jax.Array | None = None
    ) -> jax.Array:
        """Normalises images [B, H, W, C], adds a shortcut of the same shape, and applies a ReLU."""
        platform = find_algorithms()
        if train and platform in ("gpu", "tpu"):
            from pneumojax.ops import batch_norm  # Not imported at the top: a CPU does not need it.

            normalise = batch_norm.normalise_on_gpu if platform == "gpu" else batch_norm.normalise
            scale, bias = self.scale[...], self.bias[...]
            return self._update(*normalise(images, scale, bias, shortcut, relu, self.epsilon, self.axis_name))
        images = super().__call__(images, use_running_average=not train)
        images = images if shortcut is None else images + shortcut
        return nnx.relu(images) if relu else images

    def apply_after(
        self, conv: Conv, images: jax.Array, train: bool, relu: bool = False, shortcut: jax.Array | None = None
    ) -> jax.Array:
        """Applies a convolution to images, and then this layer; see `__call__` for the other arguments.

        On GPU and TPU, the output of a 1x1 convolution is not stored in training; see `ops.pointwise`.
        """
        if not train or find_algorithms() not in ("gpu", "tpu") or conv.kernel.shape[:2] != (1, 1):
            return self(conv(images), train, relu, shortcut)
        from pneumojax.ops.pointwise import convolve_and_normalise

        images = images[:, :: conv.stride, :: conv.stride].astype(conv.dtype)
        weights = conv.kernel[0, 0], self.scale[...], self.bias[...]
        return self._update(*convolve_and_normalise(images, *weights, shortcut, relu, self.epsilon, self.axis_name))

    def _update(self, result: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
        """Updates the running averages, and returns the result."""
        for average, value in ((self.mean, mean), (self.var, variance)):
            average[...] = jax.lax.stop_gradient(self.momentum * average[...] + (1 - self.momentum) * value)
        return result


def drop(features: jax.Array, rate: float, keys: jax.Array) -> jax.Array:
    """Applies dropout.

    Args:
      features: [B, ...].
      rate: probability that a feature is set to 0. The others are multiplied by 1 / (1 - rate).
      keys: [B] PRNG keys, one for each image, so that the mask does not depend on the number of devices.

    Returns:
      [B, ...] with the same dtype.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, features.shape[1:]))(keys)
    return jnp.where(keep, features / (1 - rate), 0)


class Head(nnx.Module):
    """Dropout and the last linear layer, in float32."""

    def __init__(self, features: int, num_outputs: int, dropout: float, rngs: nnx.Rngs):
        self.dropout = dropout
        self.linear = nnx.Linear(features, num_outputs, rngs=rngs)

    def __call__(self, features: jax.Array, train: bool, keys: jax.Array | None) -> jax.Array:
        """Maps features [B, F] to float32 logits [B, num_outputs]."""
        features = features.astype(jnp.float32)
        if train and self.dropout:
            assert keys is not None, "dropout in training needs a key for each image"
            features = drop(features, self.dropout, keys)
        return self.linear(features)


class Network(nnx.Module):
    """A network: a backbone, which computes features of an image, and a classifier."""

    head: Head

    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """Computes the logits of images.

        Args:
          images: [B, H, W, 1] float32.
          train: whether batch normalisation uses the statistics of the batch, and dropout is applied.
          keys: [B] PRNG keys for the dropout; None unless training.

        Returns:
          [B, outputs] float32.
        """
        return self.classify(self.extract(images, train), train, keys)

    def extract(self, images: jax.Array, train: bool) -> jax.Array:
        """Computes the features [B, ...] of images [B, H, W, 1], by default the mean of the maps over all positions."""
        return self.extract_maps(images, train).mean((1, 2), dtype="float32")

    def extract_maps(self, images: jax.Array, train: bool) -> jax.Array:
        """Applies the backbone to images [B, H, W, 1]. Returns its last maps [B, P, P, F] that are pooled."""
        raise NotImplementedError

    def classify(self, features: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """The classifier: [B, ...] features -> [B, outputs] logits."""
        return self.head(features, train, keys)
