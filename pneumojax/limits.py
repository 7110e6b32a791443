"""Checks the fields of a config: the limits of each field, and values that exclude each other."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from pneumojax.errors import UserError

if TYPE_CHECKING:
    from pneumojax.config import AugmentConfig, Config

# Networks that can start from a file of weights.
PRETRAINABLE = ("cnn", "vgg16", "resnet18", "resnet34", "resnet50")


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    identity: bool = True,
) -> Any:
    """Returns a dataclass field with a help text and limits. With identity=False, a resumed run may change it."""
    limits = {"choices": choices, "at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "identity": identity, **limits})


@dataclasses.dataclass(frozen=True)
class Checked:
    """A dataclass of options that checks each value against its limits when an instance is created."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                _check(field, number)


def _check(field: dataclasses.Field, value: Any, name: str | None = None) -> None:
    limits, name = field.metadata, name or field.name
    # Values are arrays only inside the compiled program of several replicas. They were checked as numbers before.
    if not isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value}.")
    tests = (
        (limits["choices"], lambda limit: value in limit, "one of"),
        (limits["at_least"], lambda limit: value >= limit, "at least"),
        (limits["above"], lambda limit: value > limit, "greater than"),
        (limits["at_most"], lambda limit: value <= limit, "at most"),
        (limits["below"], lambda limit: value < limit, "less than"),
    )
    for limit, holds, words in tests:
        if limit is not None and not holds(limit):
            limit = ", ".join(limit) if isinstance(limit, tuple) else limit
            raise UserError(f"{name} must be {words} {limit}, not {value}.")


def check_strength(augment: "AugmentConfig") -> None:
    """Checks that the augmentation ranges are still within their limits after scaling by `augment_strength`.

    Raises:
      UserError: a scaled range is outside the limits of its field.
    """
    fields = {field.name: field for field in dataclasses.fields(augment)}
    scaled = ("rotate_degrees", "shift", "zoom", "brightness", "contrast", "sharpness", "noise", "erase_probability")
    for name in scaled:
        _check(fields[name], augment.augment_strength * getattr(augment, name), f"augment_strength times {name}")
    smallest = 1 - augment.augment_strength * (1 - augment.crop_min_area)
    _check(fields["crop_min_area"], smallest, "1 - augment_strength times (1 - crop_min_area)")


def check_combination(config: "Config") -> None:
    """Checks that no two values of a config exclude each other.

    Raises:
      UserError: two values exclude each other. The message names both fields.
    """
    _check_splits(config)
    _check_devices(config)
    _check_replicas(config)
    _check_network(config)
    _check_sizes(config)


def _check_splits(config: "Config") -> None:
    data = config.data
    if data.fold >= (data.folds or 1):
        raise UserError(f"fold must be less than folds, but fold is {data.fold} and folds is {data.folds or 1}.")
    if data.folds and data.selection_split != "validation":
        raise UserError(
            "folds needs selection_split=validation: nothing may be chosen on the test split, the held-out fold."
        )
    if data.folds_by == "series" and not data.folds:
        raise UserError("folds_by=series needs folds, the number of series among the NORMAL images.")


def _check_devices(config: "Config") -> None:
    train = config.train
    if train.batch_norm == "local" and train.parallel == "jit":
        raise UserError(
            "batch_norm=local needs parallel=shard_map or pmap: with jit, batch statistics are always computed over "
            "the global batch."
        )
    if train.multihost and train.parallel == "pmap":
        raise UserError("multihost needs parallel=jit or shard_map: pmap uses the devices of one process only.")


def _check_replicas(config: "Config") -> None:
    train = config.train
    if train.sweep and train.replicas == 1:
        raise UserError("sweep needs replicas: set --replicas to the length of its lists.")
    if train.replicas == 1:
        return
    if train.parallel != "jit" or train.multihost:
        raise UserError(
            f"replicas={train.replicas} needs parallel=jit and no multihost: replicas are partitioned over the "
            "devices of one process."
        )
    if config.model.cached_views:
        raise UserError("cached_views stores the features of one network: omit it, or train without replicas.")
    if train.loader == "stream":
        raise UserError("loader=stream reads the batches of one run: use --loader=resident, or train without replicas.")


def _check_network(config: "Config") -> None:
    model, augment = config.model, config.augment
    geometry = (augment.rotate_degrees, augment.shift, augment.zoom, augment.stretch, augment.flip)
    intensity = (augment.brightness, augment.contrast, augment.gamma, augment.tone, augment.sharpness, augment.noise)
    varies = augment.crop_min_area < 1 or any(geometry) or any(intensity)
    if augment.test_time_views > 1 and not varies:
        raise UserError(
            f"test_time_views={augment.test_time_views} needs an augmentation range above zero: "
            "otherwise all views are identical."
        )
    if model.cached_views and augment.mixup_alpha:
        raise UserError("cached_views stores features of single images, but mixup blends images: use --mixup_alpha=0.")
    if model.cached_views and config.train.loader == "stream":
        raise UserError("cached_views keeps all features on the devices: use --loader=resident.")
    if model.pretrained and model.model not in PRETRAINABLE:
        raise UserError(f"pretrained needs model={', '.join(PRETRAINABLE)}, not {model.model}.")


def _check_sizes(config: "Config") -> None:
    sizes, name = config.data.progressive_px, config.model.model
    if sizes and (sorted(set(sizes)) != list(sizes) or sizes[-1] != config.data.image_px):
        raise UserError(
            f"progressive_px must be ascending and end with image_px {config.data.image_px}, not be "
            f"{', '.join(map(str, sizes))}."
        )
    if len(sizes) > config.train.epochs:
        raise UserError(f"progressive_px has {len(sizes)} sizes: epochs must be at least {len(sizes)}.")
    if len(sizes) > 1 and name in ("mlp", "flatiron"):
        raise UserError(f"progressive_px cannot be used with {name}: its weights fit one size only.")
    if len(sizes) > 1 and config.model.cached_views:
        raise UserError("cached_views stores features of one image size: omit it, or progressive_px.")
