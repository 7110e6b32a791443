"""The nine-layer residual network of the CIFAR-10 speed runs, for small grey images.

References:
  Page, "How to Train Your ResNet", 2018, and Coleman et al., "DAWNBench", 2017: the layers.
"""

import jax
from flax import nnx

from pneumojax.models.layers import Conv, Head, make_batch_norm
from pneumojax.ops.pooling import max_pool


class ResNet9(nnx.Module):
    """Eight 3x3 convolutions in four stages, two residual connections, global average pooling, head.

    Stage i has `width * 2**i` channels. A stage after the first halves the image by max-pooling.
    """

    def __init__(
        self,
        width: int,
        num_outputs: int,
        dropout: float,
        dtype: str,
        axis_name: str | None,
        rngs: nnx.Rngs,
        stem_stride: int = 1,
    ):
        plan = {
            "stem": (1, width),
            "stage1_block": (width, 2 * width),
            "stage1_residual1": (2 * width, 2 * width),
            "stage1_residual2": (2 * width, 2 * width),
            "stage2_block": (2 * width, 4 * width),
            "stage3_block": (4 * width, 8 * width),
            "stage3_residual1": (8 * width, 8 * width),
            "stage3_residual2": (8 * width, 8 * width),
        }
        for name, (channels, features) in plan.items():
            setattr(
                self, f"{name}_conv", Conv(channels, features, 3, stem_stride if name == "stem" else 1, dtype, rngs)
            )
            setattr(self, f"{name}_norm", make_batch_norm(features, dtype, axis_name, rngs))
        self.head = Head(8 * width, num_outputs, dropout, rngs)

    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        return self.classify(self.extract(images, train), train, keys)

    def extract(self, images: jax.Array, train: bool) -> jax.Array:
        """The backbone: [B, H, W, 1] images -> [B, F] features."""

        def apply(name, x, pool=False):
            x = getattr(self, f"{name}_norm")(getattr(self, f"{name}_conv")(x), use_running_average=not train)
            return nnx.relu(max_pool(x, 2) if pool else x)

        x = apply("stem", images)
        x = apply("stage1_block", x, pool=True)
        x = x + apply("stage1_residual2", apply("stage1_residual1", x))
        x = apply("stage2_block", x, pool=True)
        x = apply("stage3_block", x, pool=True)
        x = x + apply("stage3_residual2", apply("stage3_residual1", x))
        return x.mean((1, 2), dtype="float32")

    def classify(self, features: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """[B, F] features -> [B, outputs] logits."""
        return self.head(features, train, keys)
