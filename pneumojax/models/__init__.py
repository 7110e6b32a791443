"""The networks. Each maps float images [B, H, W, 1] to logits [B, outputs]; a binary network has one output."""

from typing import Any

import jax
from flax import nnx

from pneumojax.config import CLASS_NAMES, CLASSIFIER, ModelConfig
from pneumojax.errors import UserError
from pneumojax.models.cnn import CNN
from pneumojax.models.flatiron import Flatiron
from pneumojax.models.layers import Projector
from pneumojax.models.mlp import MLP
from pneumojax.models.resnet import ResNet
from pneumojax.models.vgg import VGG16

MODELS = {
    "mlp": lambda config, image_px, **common: MLP(image_px, config.mlp_widths, **common),
    "cnn": lambda config, image_px, **common: CNN(config.cnn_widths, frozen=config.frozen, **common),
    "flatiron": lambda config, image_px, **common: Flatiron(image_px, **common),
    "vgg16": lambda config, image_px, **common: VGG16(
        config.vgg_width, config.vgg_dense_widths, ones_plane=config.pretrained is not None, **common
    ),
    "resnet18": lambda config, image_px, **common: _make_resnet((2, 2, 2, 2), False, config, common),
    "resnet34": lambda config, image_px, **common: _make_resnet((3, 4, 6, 3), False, config, common),
    "resnet50": lambda config, image_px, **common: _make_resnet((3, 4, 6, 3), True, config, common),
}

# Units of a projector's two layers. SimCLR's are 2048 and 128, for ResNet-50.
PROJECTOR_WIDTHS = (512, 128)


def _make_resnet(stage_blocks, bottleneck, config, common):
    options = {
        "strided": config.resnet_stride,
        "ones_plane": config.pretrained is not None,
        "frozen": config.frozen,
    }
    return ResNet(stage_blocks, bottleneck, config.resnet_width, **options, **common)


def make_model(config: ModelConfig, image_px: int, key, axis_name: str | None = None) -> nnx.Module:
    """Makes the configured network with fresh parameters.

    Args:
      config: which network, its widths, task and compute type.
      image_px: height and width of the images.
      key: PRNG key of the initialisation.
      axis_name: mapped axis over which batch statistics are averaged, if any.

    Returns:
      A module called as `model(images, train, keys)`: images [B, H, W, 1] float, keys [B] PRNG keys of the dropout
      (None when not training); returns [B, outputs] float32 logits. It is `model.extract(images, train)`, the backbone,
      and `model.classify(features, train, keys)`, the classifier, one after the other.

    Raises:
      UserError: `frozen` names a stage that the network does not have, leaves nothing to train, or leaves a part of the
        backbone to train whose features `cached_views` would keep.
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
        raise UserError(
            f"cached_views keeps the features of a backbone that stays as it is: give --frozen={','.join(backbone)}."
        )
    return model


def make_pretraining_model(config: ModelConfig, image_px: int, key, axis_name: str | None = None) -> nnx.Module:
    """Makes the configured network with a projector in the place of its head; see `make_model`.

    Raises:
      UserError: the network has dense layers, which the projector would not stand in for.
    """
    model = make_model(config, image_px, key, axis_name)
    if hasattr(model, "dense1"):
        raise UserError(f"only a backbone is pretrained, and {config.model} has dense layers: give none of them.")
    width = model.head.linear.in_features
    model.head = Projector(width, PROJECTOR_WIDTHS, axis_name, nnx.Rngs(jax.random.fold_in(key, 1)))
    return model


def split_frozen(tree: dict[str, Any], frozen: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters, or batch statistics, by stage: what precedes the first underscore in the name of a layer.

    Args:
      tree: nested dicts; the outermost names are those of the network's layers.
      frozen: names of stages.

    Returns:
      (the layers of other stages, the layers of these stages).
    """
    kept = {name: layer for name, layer in tree.items() if name.split("_")[0] in frozen}
    return {name: layer for name, layer in tree.items() if name not in kept}, kept
