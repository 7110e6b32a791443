"""Residual networks for grey images.

References:
  He et al., "Deep Residual Learning for Image Recognition", 2016. In the paper and in Keras, the stride of a bottleneck
    is in the first 1x1 convolution. In PyTorch (v1.5) it is in the 3x3 convolution.
  Goyal et al., "Accurate, Large Minibatch SGD", 2017: the last normalisation of each block starts at zero.
"""

import jax
from flax import nnx

from pneumojax.models.layers import STEMS, BatchNorm, Conv, Head, Network, add_ones
from pneumojax.ops.pooling import max_pool


class Block(nnx.Module):
    """A residual block of two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 with four times the width."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        bottleneck: bool,
        dtype: str,
        axis_name: str | None,
        rngs: nnx.Rngs,
        strided: str = "3x3",
    ):
        out_channels = 4 * width if bottleneck else width
        if bottleneck:
            strides = (stride, 1) if strided == "1x1" else (1, stride)
            plan = [(in_channels, width, 1, strides[0]), (width, width, 3, strides[1]), (width, out_channels, 1, 1)]
        else:
            plan = [(in_channels, width, 3, stride), (width, width, 3, 1)]
        self.depth = len(plan)
        for i, (channels, features, kernel, step) in enumerate(plan):
            initial_scale = 0.0 if i == self.depth - 1 else 1.0
            setattr(self, f"conv{i + 1}", Conv(channels, features, kernel, step, dtype, rngs))
            setattr(self, f"norm{i + 1}", BatchNorm(features, dtype, axis_name, rngs, initial_scale))
        self.projects = stride != 1 or in_channels != out_channels
        if self.projects:
            self.shortcut_conv = Conv(in_channels, out_channels, 1, stride, dtype, rngs)
            self.shortcut_norm = BatchNorm(out_channels, dtype, axis_name, rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shortcut = x
        if self.projects:
            shortcut = self.shortcut_norm.apply_after(self.shortcut_conv, x, train)
        for i in range(1, self.depth):
            x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x), train, relu=True)
        norm, conv = getattr(self, f"norm{self.depth}"), getattr(self, f"conv{self.depth}")
        return norm.apply_after(conv, x, train, relu=True, shortcut=shortcut)


class ResNet(Network):
    """A residual network: stem (see `layers.STEMS`), four stages of blocks, global average pooling and head."""

    def __init__(
        self,
        stage_blocks: tuple[int, ...],
        bottleneck: bool,
        width: int,
        num_outputs: int,
        dropout: float,
        dtype: str,
        axis_name: str | None,
        rngs: nnx.Rngs,
        strided: str = "3x3",
        ones_plane: bool = False,
        frozen: tuple[str, ...] = (),
        stem: str = "imagenet",
    ):
        self.frozen, self.ones_plane = frozen, ones_plane
        kernel, stride, self.pools = STEMS[stem]
        self.stem_conv = Conv(2 if ones_plane else 1, width, kernel, stride, dtype, rngs)
        self.stem_norm = BatchNorm(width, dtype, axis_name, rngs)
        self.block_names = []
        channels = width
        for stage, blocks in enumerate(stage_blocks):
            for i in range(blocks):
                name = f"stage{stage + 1}_block{i + 1}"
                stride = 2 if stage > 0 and i == 0 else 1
                block = Block(channels, width * 2**stage, stride, bottleneck, dtype, axis_name, rngs, strided)
                setattr(self, name, block)
                self.block_names.append(name)
                channels = width * 2**stage * (4 if bottleneck else 1)
        self.head = Head(channels, num_outputs, dropout, rngs)

    def extract_maps(self, images: jax.Array, train: bool) -> jax.Array:
        """Applies the backbone to images [B, H, W, 1]. Returns maps [B, P, P, F]."""
        x = add_ones(images) if self.ones_plane else images
        x = self.stem_norm(self.stem_conv(x), train and "stem" not in self.frozen)
        x = nnx.relu(max_pool(x, 3) if self.pools else x)
        for name in self.block_names:
            x = getattr(self, name)(x, train and name.split("_")[0] not in self.frozen)
        return x
