"""The networks. Each maps images [B, H, W, 1] to logits [B, outputs]. A binary network has one output."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from pneumojax.config import CLASS_NAMES, CLASSIFIER, ModelConfig
from pneumojax.errors import UserError
from pneumojax.models.layers import Network

# Units of the projector's two layers. The paper on SimCLR uses 2048 and 128 with ResNet-50.
PROJECTOR_WIDTHS = (512, 128)


# Each function imports its network, so that a run loads only the code of its own.


def _make_mlp(config: ModelConfig, image_px: int, **common: Any) -> Network:
    from pneumojax.models.mlp import MLP

    return MLP(image_px, config.mlp_widths, **common)


def _make_cnn(config: ModelConfig, image_px: int, **common: Any) -> Network:
    from pneumojax.models.cnn import CNN

    return CNN(config.cnn_widths, frozen=config.frozen, **common)


def _make_flatiron(config: ModelConfig, image_px: int, **common: Any) -> Network:
    from pneumojax.models.flatiron import Flatiron

    return Flatiron(image_px, **common)


def _make_vgg16(config: ModelConfig, image_px: int, **common: Any) -> Network:
    from pneumojax.models.vgg import VGG16

    ones_plane = config.pretrained is not None
    return VGG16(config.vgg_width, config.vgg_dense_widths, ones_plane=ones_plane, **common)


def _make_resnet(
    stage_blocks: tuple[int, ...], bottleneck: bool, config: ModelConfig, image_px: int, **common: Any
) -> Network:
    from pneumojax.models.resnet import ResNet

    options: dict[str, Any] = {
        "strided": config.resnet_stride,
        "ones_plane": config.pretrained is not None,
        "frozen": config.frozen,
        "stem": config.resnet_stem,
    }
    return ResNet(stage_blocks, bottleneck, config.resnet_width, **options, **common)


def _make_resnet9(config: ModelConfig, image_px: int, **common: Any) -> Network:
    from pneumojax.models.resnet9 import ResNet9

    return ResNet9(config.resnet_width, config.resnet_stem, frozen=config.frozen, **common)


MODELS: dict[str, Callable[..., Network]] = {
    "mlp": _make_mlp,
    "cnn": _make_cnn,
    "flatiron": _make_flatiron,
    "vgg16": _make_vgg16,
    "resnet9": _make_resnet9,
    "resnet18": functools.partial(_make_resnet, (2, 2, 2, 2), False),
    "resnet34": functools.partial(_make_resnet, (3, 4, 6, 3), False),
    "resnet50": functools.partial(_make_resnet, (3, 4, 6, 3), True),
}


def make_model(config: ModelConfig, image_px: int, key: jax.Array, axis_name: str | None = None) -> Network:
    """Makes the configured network with random parameters.

    Args:
      config: the network, its widths, task and compute dtype.
      image_px: height and width of the images.
      key: PRNG key for the initialisation.
      axis_name: name of the mapped axis over which batch statistics are averaged; None: no such axis.

    Returns:
      The network. It has one output for two classes.

    Raises:
      UserError: `frozen` names an unknown stage or all stages, or `cached_views` is set and a stage of the backbone is
        not frozen.
    """
    classes = len(CLASS_NAMES[config.task])
    model = MODELS[config.model](
        config,
        image_px,
        num_outputs=1 if classes == 2 else classes,
        dropout=config.dropout,
        dtype=config.dtype,
        axis_name=axis_name,
        rngs=nnx.Rngs(key),
    )
    stages = dict.fromkeys(name.split("_")[0] for name in nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    unknown = [name for name in config.frozen if name not in stages]
    if unknown:
        raise UserError(f"frozen: {config.model} has no stage {unknown[0]}; it has {', '.join(stages)}.")
    if set(config.frozen) == set(stages):
        raise UserError("frozen names all stages: nothing is left to train.")
    backbone = [name for name in stages if not name.startswith(CLASSIFIER)]
    if config.cached_views and not set(backbone) <= set(config.frozen):
        raise UserError(f"cached_views needs a frozen backbone: give --frozen={','.join(backbone)}.")
    return model


def make_pretraining_model(config: ModelConfig, image_px: int, key: jax.Array, axis_name: str | None = None) -> Network:
    """Makes the configured network with a projector instead of its head; arguments as in `make_model`.

    Raises:
      UserError: the network has dense layers. They belong to the classifier, but the projector would not replace them.
    """
    model = make_model(config, image_px, key, axis_name)
    if hasattr(model, "dense1"):
        raise UserError(
            f"only a backbone is pretrained, and {config.model} has dense layers: give --vgg_dense_widths=."
        )
    from pneumojax.models.projector import Projector

    width = model.head.linear.in_features
    projector = Projector(width, PROJECTOR_WIDTHS, axis_name, nnx.Rngs(jax.random.fold_in(key, 1)))
    model.head = projector  # type: ignore[assignment]  # It is called as a head is.
    return model


def split_frozen(tree: dict[str, Any], frozen: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters or batch statistics by whether their stage is trained or frozen.

    The stage of a layer is the part of the layer's name before the first underscore.

    Args:
      tree: nested dicts. The keys of the top level are the names of the network's layers.
      frozen: names of the frozen stages.

    Returns:
      (trained, kept): the layers of the trained stages, and the layers of the frozen stages.
    """
    kept = {name: layer for name, layer in tree.items() if name.split("_")[0] in frozen}
    return {name: layer for name, layer in tree.items() if name not in kept}, kept
