"""The nine-layer residual network of the CIFAR-10 speed runs, for small grey images.

References:
  Coleman et al., "DAWNBench: An End-to-End Deep Learning Benchmark and Competition", 2017, and Page, "How to Train Your
    ResNet", 2018: the layers.
"""

import jax
from flax import nnx

from pneumojax.models.layers import STEMS, BatchNorm, Conv, Head, Network
from pneumojax.ops.pooling import max_pool


class ResNet9(Network):
    """Stem (see `layers.STEMS`), three stages of 3x3 convolutions, global average pooling, head.

    Each stage doubles the channels and halves the image by max-pooling. The first and the last stage add a residual
    block of two convolutions.
    """

    def __init__(
        self,
        width: int,
        stem: str,
        num_outputs: int,
        dropout: float,
        dtype: str,
        axis_name: str | None,
        rngs: nnx.Rngs,
        frozen: tuple[str, ...] = (),
    ):
        self.frozen, (size, stride, self.pools) = frozen, STEMS[stem]
        layers = {
            "stem": (1, width, size, stride),
            "stage1": (width, 2 * width, 3, 1),
            "stage1_residual1": (2 * width, 2 * width, 3, 1),
            "stage1_residual2": (2 * width, 2 * width, 3, 1),
            "stage2": (2 * width, 4 * width, 3, 1),
            "stage3": (4 * width, 8 * width, 3, 1),
            "stage3_residual1": (8 * width, 8 * width, 3, 1),
            "stage3_residual2": (8 * width, 8 * width, 3, 1),
        }
        for name, (in_channels, out_channels, kernel, step) in layers.items():
            setattr(self, f"{name}_conv", Conv(in_channels, out_channels, kernel, step, dtype, rngs))
            setattr(self, f"{name}_norm", BatchNorm(out_channels, dtype, axis_name, rngs))
        self.head = Head(8 * width, num_outputs, dropout, rngs)

    def extract_maps(self, images: jax.Array, train: bool) -> jax.Array:
        """Computes the maps of images, [B, H, W, 1] -> [B, P, P, 8 * width]."""

        def apply(name: str, x: jax.Array, window: int | None = None) -> jax.Array:
            trains = train and name.split("_")[0] not in self.frozen
            x = getattr(self, f"{name}_norm")(getattr(self, f"{name}_conv")(x), trains)
            return nnx.relu(max_pool(x, window) if window else x)

        x = apply("stem", images, 3 if self.pools else None)
        for stage in ("stage1", "stage2", "stage3"):
            x = apply(stage, x, 2)
            if hasattr(self, f"{stage}_residual1_conv"):
                x = x + apply(f"{stage}_residual2", apply(f"{stage}_residual1", x))
        return x
