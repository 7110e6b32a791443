"""Every choice of a run: its type, default, help text and limits, in frozen dataclasses.

Each default is written once, here. `experiments/flags.py` defines one flag for each field; the library itself never
reads flags.
"""

import dataclasses
import math
from typing import Any, TypeVar

from pneumojax.errors import UserError

T = TypeVar("T")

# The index of a name is its class label. The score for pneumonia is 1 - P(NORMAL) in both tasks.
CLASS_NAMES = {"binary": ("NORMAL", "PNEUMONIA"), "three_class": ("NORMAL", "BACTERIA", "VIRUS")}

# Prefixes of the names of a network's last layers, the classifier. All layers before them are its backbone.
CLASSIFIER = ("dense", "head")

# Fields that may differ between the replicas of a run, besides the seed.
SWEPT = ("learning_rate", "weight_decay", "label_smoothing", "augment_strength")

# Networks that can start from a file of weights.
PRETRAINABLE = ("cnn", "vgg16", "resnet18", "resnet34", "resnet50")


def _field(
    default: T,
    help: str,
    choices: tuple[str, ...] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    identity: bool = True,
) -> T:
    """A dataclass field with its help text and limits. With identity=False it may change when a run resumes."""
    limits = {"choices": choices, "at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "identity": identity, **limits})


@dataclasses.dataclass(frozen=True)
class _Checked:
    """Checks each field against its limits when an instance is created."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                _check(field, number)


def _check(field: dataclasses.Field, value: object, name: str | None = None) -> None:
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


@dataclasses.dataclass(frozen=True)
class DataConfig(_Checked):
    dataset: str = _field(
        "phantom", "synthetic radiographs (phantom), or the Kermany X-rays", choices=("phantom", "kermany")
    )
    data_dir: str | None = _field(
        None, "folder of prepared data sets (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)", identity=False
    )
    train_share: float = _field(
        1.0, "fraction of the training patients that is used, equal for each class", above=0.0, at_most=1.0
    )
    folds: int | None = _field(
        None,
        "split the training images by patient into this many folds, one of which is the test split (default: the "
        "prepared splits)",
        at_least=2,
    )
    fold: int = _field(0, "which of the folds is the test split, from 0", at_least=0)
    image_px: int = _field(64, "height and width of the network's input, in pixels", at_least=16)
    progressive_px: tuple[int, ...] = _field(
        (),
        "training image sizes in pixels, ascending and ending with image_px, each for an equal share of the epochs",
        at_least=16,
    )
    selection_split: str = _field(
        "validation",
        "split that chooses the epoch, the threshold and the temperature; test is the leaky protocol of many "
        "publications, whose metrics are biased and only serve to show that bias",
        choices=("validation", "test"),
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Checked):
    model: str = _field(
        "cnn", "network", choices=("mlp", "cnn", "flatiron", "vgg16", "resnet18", "resnet34", "resnet50")
    )
    task: str = _field("binary", "NORMAL / PNEUMONIA, or NORMAL / BACTERIA / VIRUS", choices=tuple(CLASS_NAMES))
    mlp_widths: tuple[int, ...] = _field((512, 128), "units of each hidden layer of mlp", at_least=1)
    cnn_widths: tuple[int, ...] = _field((32, 64, 128, 256), "channels of each convolution of cnn", at_least=1)
    vgg_width: int = _field(
        64, "channels of vgg16's first stage; the other stages have 2, 4, 8 and 8 times as many", at_least=1
    )
    vgg_dense_widths: tuple[int, ...] = _field(
        (4096, 4096), "units of vgg16's dense layers; empty: global average pooling instead", at_least=1
    )
    resnet_width: int = _field(64, "channels of a resnet's first stage; each further stage doubles them", at_least=1)
    resnet_stride: str = _field(
        "3x3",
        "which convolution of a resnet50 block has the stride: 3x3 as in PyTorch, 1x1 as in Keras",
        choices=("3x3", "1x1"),
    )
    pretrained: str | None = _field(
        None,
        "file of weights to start from: ImageNet weights of torchvision, timm or Keras, or backbone.safetensors of "
        "experiments/pretrain.py (default: random initialisation)",
    )
    frozen: tuple[str, ...] = _field(
        (),
        "stages that are not trained: stem, stage1 .. stage4 of a resnet; stage1 .. stage5 of vgg16",
    )
    cached_views: int | None = _field(
        None,
        "compute the features of the frozen backbone once, for this many views of each image: the image itself and "
        "augmented copies (default: compute the features in each step)",
        at_least=1,
    )
    dropout: float = _field(0.0, "dropout rate before the last layer", at_least=0.0, below=1.0)
    dtype: str = _field(
        "float32",
        "compute type; parameters, batch statistics and loss are always float32",
        choices=("float32", "bfloat16"),
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig(_Checked):
    augment_classes: str = _field("all", "which images are augmented: all, or only NORMAL", choices=("all", "normal"))
    rotate_degrees: float = _field(
        10.0, "largest rotation in either direction, in degrees", at_least=0.0, at_most=180.0
    )
    shift: float = _field(
        0.05, "largest shift in either direction, as a fraction of the image size", at_least=0.0, below=1.0
    )
    zoom: float = _field(0.1, "zoom range: the scale is drawn between 1 - zoom and 1 + zoom", at_least=0.0, below=1.0)
    crop_min_area: float = _field(
        1.0,
        "smallest area of the random resized crop, as a fraction of the image; 1 disables it",
        above=0.0,
        at_most=1.0,
    )
    brightness: float = _field(
        0.1, "largest change of brightness in either direction; pixels are 0..1", at_least=0.0, at_most=1.0
    )
    contrast: float = _field(0.2, "largest relative change of contrast", at_least=0.0, below=1.0)
    gamma: float = _field(0.2, "gamma range: the exponent is drawn between 1 / (1 + gamma) and 1 + gamma", at_least=0.0)
    flip: bool = _field(False, "flip half of the images left to right (the heart changes sides)")
    erase_probability: float = _field(
        0.0, "probability that a rectangle of an image is erased", at_least=0.0, at_most=1.0
    )
    mixup_alpha: float = _field(0.0, "parameter of mixup's beta distribution; 0 disables it", at_least=0.0)
    augment_strength: float = _field(
        1.0, "factor on all ranges above and on erase_probability (not on flip and mixup)", at_least=0.0
    )
    test_time_views: int = _field(
        1,
        "number of views whose probabilities are averaged in evaluation: the image itself and copies augmented in the "
        "ranges above, without erasing and mixup",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name in ("rotate_degrees", "shift", "zoom", "brightness", "contrast", "erase_probability"):
            _check(fields[name], self.augment_strength * getattr(self, name), f"augment_strength times {name}")
        smallest = 1 - self.augment_strength * (1 - self.crop_min_area)
        _check(fields["crop_min_area"], smallest, "1 - augment_strength times (1 - crop_min_area)")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Checked):
    optimizer: str = _field("adamw", "optimizer", choices=("adamw", "sgd", "muon"))
    learning_rate: float = _field(1e-3, "peak learning rate, reached after the warm-up", above=0.0)
    backbone_learning_rate_scale: float = _field(
        1.0,
        "factor on the learning rate of the backbone: all layers but the classifier (dense layers and head)",
        above=0.0,
    )
    momentum: float = _field(0.9, "Nesterov momentum of sgd", at_least=0.0, below=1.0)
    weight_decay: float = _field(1e-2, "weight decay of kernels", at_least=0.0)
    warmup: float = _field(
        0.1,
        "fraction of all steps in which the learning rate rises linearly, before it decays as a cosine",
        at_least=0.0,
        below=1.0,
    )
    label_smoothing: float = _field(
        0.0, "label smoothing: probability mass that is spread over all classes", at_least=0.0, below=1.0
    )
    class_weights: str = _field(
        "none", "class weights of the loss: equal, or inverse to the class frequency", choices=("none", "balanced")
    )
    ema_decay: float | None = _field(
        None,
        "decay of the exponential moving average of the weights, which is then evaluated (default: no average)",
        above=0.0,
        below=1.0,
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Checked):
    epochs: int = _field(30, "passes over the training images", at_least=1)
    batch_size: int = _field(32, "images per training step, over all devices", at_least=1)
    chunk_steps: int = _field(16, "approximate number of steps per compiled call, at most an epoch", at_least=1)
    eval_batch_size: int = _field(128, "images per prediction step, over all devices", at_least=1)
    loader: str = _field(
        "resident",
        "resident keeps all images on each device; stream reads those that a process needs next from disk",
        choices=("resident", "stream"),
        identity=False,
    )
    seed: int = _field(
        0, "seed of the initialisation, the order of the images and the augmentation", at_least=0, at_most=2**31 - 1
    )
    parallel: str = _field("jit", "how the batch is sharded over the devices", choices=("jit", "shard_map", "pmap"))
    batch_norm: str = _field(
        "global", "batch statistics of the global batch, or of each device's shard of it", choices=("global", "local")
    )
    replicas: int = _field(
        1, "number of runs trained in one program, with seeds seed, seed + 1, ...; they form an ensemble", at_least=1
    )
    sweep: str | None = _field(
        None,
        f"TOML file with what differs between the replicas: a list of values for any of {', '.join(SWEPT)} or seed",
        identity=False,  # Each replica's own config.json holds the values.
    )
    multihost: bool = _field(
        False, "this is one of several processes: call jax.distributed.initialize()", identity=False
    )


@dataclasses.dataclass(frozen=True)
class ThresholdConfig(_Checked):
    threshold_rule: str = _field(
        "target_sensitivity",
        "rule that chooses the threshold on validation",
        choices=("target_sensitivity", "youden", "cost_ratio", "fixed"),
    )
    target_sensitivity: float = _field(
        0.95, "sensitivity that the rule target_sensitivity reaches", above=0.0, at_most=1.0
    )
    cost_ratio: float = _field(
        10.0,
        "cost of a false negative in units of a false positive, for the rule cost_ratio",
        above=0.0,
        identity=False,
    )
    prevalence: float | None = _field(
        None,
        "prevalence of pneumonia where the network will be used, for the rule cost_ratio (default: that of validation) "
        "and for predictive values",
        above=0.0,
        below=1.0,
        identity=False,
    )
    fixed_threshold: float = _field(0.5, "threshold of the rule fixed", at_least=0.0, at_most=1.0)


@dataclasses.dataclass(frozen=True)
class Config(_Checked):
    """A whole run. Field names are unique across the groups, so that each becomes one flag.

    Raises:
      UserError: a value is outside its limits, or two fields exclude each other.
    """

    data: DataConfig = _field(DataConfig(), "")
    model: ModelConfig = _field(ModelConfig(), "")
    augment: AugmentConfig = _field(AugmentConfig(), "")
    optimizer: OptimizerConfig = _field(OptimizerConfig(), "")
    train: TrainConfig = _field(TrainConfig(), "")
    threshold: ThresholdConfig = _field(ThresholdConfig(), "")

    def __post_init__(self) -> None:
        super().__post_init__()
        data, train, augment = self.data, self.train, self.augment
        if data.fold >= (data.folds or 1):
            raise UserError(f"fold must be less than folds: there is no fold {data.fold} of {data.folds or 1}.")
        if data.folds and data.selection_split != "validation":
            raise UserError("folds needs selection_split=validation, because the held-out fold is only scored.")
        if train.batch_norm == "local" and train.parallel == "jit":
            raise UserError(
                "batch_norm=local needs parallel=shard_map or pmap: with jit, statistics are of the global batch."
            )
        if train.multihost and train.parallel == "pmap":
            raise UserError("multihost needs parallel=jit or shard_map: pmap uses the devices of one process only.")
        if train.replicas > 1 and (train.parallel != "jit" or train.multihost):
            raise UserError(
                f"replicas={train.replicas} needs parallel=jit and no multihost: replicas are partitioned over the "
                "devices of one process."
            )
        if train.replicas > 1 and self.model.cached_views:
            raise UserError("cached_views stores the features of one network: omit it, or train without replicas.")
        if train.replicas > 1 and train.loader == "stream":
            raise UserError(
                "loader=stream reads the batches of one run: use --loader=resident, or train without replicas."
            )
        if train.sweep and train.replicas == 1:
            raise UserError("sweep needs replicas: set --replicas to the length of its lists.")
        geometry = augment.rotate_degrees or augment.shift or augment.zoom or augment.crop_min_area < 1 or augment.flip
        intensity = augment.brightness or augment.contrast or augment.gamma
        if augment.test_time_views > 1 and not (geometry or intensity):
            raise UserError(
                f"test_time_views={augment.test_time_views} needs an augmentation range above zero: "
                "otherwise all views are identical."
            )
        if self.model.cached_views and augment.mixup_alpha:
            raise UserError(
                "cached_views stores features of single images, but mixup blends images: use --mixup_alpha=0."
            )
        if self.model.cached_views and train.loader == "stream":
            raise UserError("cached_views keeps all features on the devices: use --loader=resident.")
        if self.model.pretrained and self.model.model not in PRETRAINABLE:
            raise UserError(f"pretrained needs model={', '.join(PRETRAINABLE)}, not {self.model.model}.")
        sizes = self.data.progressive_px
        if sizes and (sorted(set(sizes)) != list(sizes) or sizes[-1] != self.data.image_px):
            raise UserError(
                f"progressive_px must be ascending and end with image_px {self.data.image_px}, not be "
                f"{', '.join(map(str, sizes))}."
            )
        if len(sizes) > train.epochs:
            raise UserError(f"progressive_px has {len(sizes)} sizes: epochs must be at least {len(sizes)}.")
        if len(sizes) > 1 and self.model.model in ("mlp", "flatiron"):
            raise UserError(f"progressive_px cannot be used with {self.model.model}: its weights fit one size only.")
        if len(sizes) > 1 and self.model.cached_views:
            raise UserError("cached_views stores features of one image size: omit it, or progressive_px.")


def config_to_dict(config: Config) -> dict[str, Any]:
    """Converts a config to a flat dict {field name: value} that can be stored as JSON."""
    groups = (getattr(config, group.name) for group in dataclasses.fields(config))
    flat = {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}


def config_from_dict(values: dict[str, Any]) -> Config:
    """Converts the dict of `config_to_dict` back to a config. A missing field takes its default.

    Raises:
      UserError: a field is unknown or a value outside its limits.
    """
    values = dict(values)
    groups = {}
    for group in dataclasses.fields(Config):
        kind: type[Any] = type(group.default)
        given = {field.name: values.pop(field.name) for field in dataclasses.fields(kind) if field.name in values}
        groups[group.name] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    if values:
        raise UserError(f"unknown config fields: {', '.join(sorted(values))}.")
    return Config(**groups)


def replace_fields(config: Config, values: dict[str, Any]) -> Config:
    """Returns a copy of the config with new values for some fields, whichever groups they are in.

    Raises:
      UserError: a value is outside its limits.
    """
    groups = {}
    for group in dataclasses.fields(config):
        old = getattr(config, group.name)
        new = {field.name: values[field.name] for field in dataclasses.fields(old) if field.name in values}
        groups[group.name] = dataclasses.replace(old, **new)
    return Config(**groups)


def config_fields() -> list[dataclasses.Field]:
    """All fields of all groups, in order."""
    groups: list[Any] = [group.default for group in dataclasses.fields(Config)]
    return [field for group in groups for field in dataclasses.fields(group)]
