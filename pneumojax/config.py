"""All options of a run, in frozen dataclasses: the type, default, help text and limits of each.

Each default is written once, here. `experiments/flags.py` defines one flag for each field; the library itself never
reads flags. `limits.py` checks the values.
"""

import dataclasses
from typing import Any, TypeVar

from pneumojax.errors import UserError
from pneumojax.limits import Checked, check_combination, check_strength, option

T = TypeVar("T")

# The index of a name is its class label. The score for pneumonia is 1 - P(NORMAL) in both tasks.
CLASS_NAMES = {"binary": ("NORMAL", "PNEUMONIA"), "three_class": ("NORMAL", "BACTERIA", "VIRUS")}

# Prefixes of the names of a network's last layers, the classifier. All layers before them are its backbone.
CLASSIFIER = ("dense", "head")

# Fields that may differ between the replicas of a run, besides the seed.
SWEPT = ("learning_rate", "weight_decay", "label_smoothing", "augment_strength")


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    dataset: str = option(
        "phantom",
        "data set: synthetic radiographs (phantom) or the Kermany X-rays (kermany)",
        choices=("phantom", "kermany"),
    )
    data_dir: str | None = option(
        None, "folder of prepared data sets (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)", identity=False
    )
    train_share: float = option(
        1.0,
        "fraction of the training images of each class that is used; all images of a patient are used, or none",
        above=0.0,
        at_most=1.0,
    )
    folds: int | None = option(
        None,
        "split the training images by patient into this many folds, one of which becomes the test split (default: use "
        "the prepared splits)",
        at_least=2,
    )
    folds_by: str = option(
        "patient",
        "assignment to folds: at random by patient (patient), or so that the NORMAL images of the test split are all "
        "images of one series of file names (series); the other images are then assigned by patient",
        choices=("patient", "series"),
    )
    fold: int = option(0, "index of the fold that is the test split, from 0", at_least=0)
    image_px: int = option(64, "height and width of the network's input, in pixels", at_least=16)
    resize: str = option(
        "squeeze",
        "how a file becomes a square: squeeze scales both axes independently, crop keeps the central square, pad adds "
        "black bars; square files stay the same",
        choices=("squeeze", "crop", "pad"),
    )
    pixel_scaling: str = option(
        "fixed",
        "how pixels are scaled: by constants (fixed), or to mean 0 and standard deviation 1 of each image (image)",
        choices=("fixed", "image"),
    )
    progressive_px: tuple[int, ...] = option(
        (),
        "training image sizes in pixels, ascending and ending with image_px; each has an equal share of the epochs",
        at_least=16,
    )
    selection_split: str = option(
        "validation",
        "split on which the epoch, the threshold and the calibration are chosen; test is the leaky protocol of many "
        "publications: its metrics are biased and serve only to show that bias",
        choices=("validation", "test"),
    )
    selection_images: str = option(
        "plain",
        "images of that split on which the threshold and the calibration are chosen: as they are (plain), or together "
        "with a copy of each with swapped aspect (shift)",
        choices=("plain", "shift"),
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checked):
    model: str = option(
        "cnn",
        "network architecture",
        choices=("mlp", "cnn", "flatiron", "vgg16", "resnet9", "resnet18", "resnet34", "resnet50"),
    )
    task: str = option(
        "binary", "binary: NORMAL, PNEUMONIA; three_class: NORMAL, BACTERIA, VIRUS", choices=tuple(CLASS_NAMES)
    )
    mlp_widths: tuple[int, ...] = option((512, 128), "units in each hidden layer of mlp", at_least=1)
    cnn_widths: tuple[int, ...] = option((32, 64, 128, 256), "channels of each convolution of cnn", at_least=1)
    vgg_width: int = option(
        64, "channels in vgg16's first stage; the other stages have 2, 4, 8 and 8 times as many", at_least=1
    )
    vgg_dense_widths: tuple[int, ...] = option(
        (4096, 4096),
        "units in each dense layer of vgg16; if empty, global average pooling replaces these layers",
        at_least=1,
    )
    resnet_width: int = option(64, "channels of a resnet's stem, which later stages double", at_least=1)
    resnet_stem: str = option(
        "imagenet",
        "first layers of a resnet: 7x7 at stride 2 and max-pooling at stride 2 (imagenet), 3x3 at stride 2 (strided), "
        "or 3x3 at stride 1, for small images (small)",
        choices=("imagenet", "strided", "small"),
    )
    resnet_stride: str = option(
        "3x3",
        "convolution of a resnet50 block that has the stride: 3x3 as in PyTorch, or 1x1 as in Keras",
        choices=("3x3", "1x1"),
    )
    pretrained: str | None = option(
        None,
        "file of weights to start from: ImageNet weights of torchvision, timm or Keras, or a backbone.safetensors of "
        "experiments/pretrain.py (default: random initialisation)",
    )
    frozen: tuple[str, ...] = option(
        (),
        "stages that are not trained: stem, stage1, ... of a resnet; stage1, ... of vgg16; conv1, norm1, ... of cnn",
    )
    cached_views: int | None = option(
        None,
        "compute the features of the frozen backbone only once, for this many views of each image: the image itself "
        "and augmented copies of it (default: compute the features in each step)",
        at_least=1,
    )
    dropout: float = option(0.0, "dropout rate in the classifier", at_least=0.0, below=1.0)
    dtype: str = option(
        "float32",
        "data type of the computation; parameters, batch statistics and loss are always float32",
        choices=("float32", "bfloat16"),
    )


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Checked):
    augment_classes: str = option(
        "all", "images that are augmented: all images, or only those of NORMAL (normal)", choices=("all", "normal")
    )
    rotate_degrees: float = option(
        10.0, "largest rotation in either direction, in degrees", at_least=0.0, at_most=180.0
    )
    shift: float = option(
        0.05, "largest shift along each axis, as a fraction of the image size", at_least=0.0, below=1.0
    )
    zoom: float = option(0.1, "zoom range: the scale is drawn between 1 - zoom and 1 + zoom", at_least=0.0, below=1.0)
    crop_min_area: float = option(
        1.0,
        "smallest area of the random resized crop, as a fraction of the image; 1 disables the crop",
        above=0.0,
        at_most=1.0,
    )
    crop_max_aspect: float = option(
        4 / 3, "largest ratio of width to height, or of height to width, of the random resized crop", at_least=1.0
    )
    stretch: float = option(
        0.0,
        "stretch range: width and height are scaled independently between 1 / (1 + stretch) and 1 + stretch",
        at_least=0.0,
    )
    brightness: float = option(
        0.1, "largest change of brightness in either direction, for pixels in 0..1", at_least=0.0, at_most=1.0
    )
    contrast: float = option(0.2, "largest relative change of contrast in either direction", at_least=0.0, below=1.0)
    gamma: float = option(0.2, "gamma range: the exponent is drawn between 1 / (1 + gamma) and 1 + gamma", at_least=0.0)
    tone: float = option(
        0.0,
        "strength of a random monotone tone curve: standard deviation of the logarithms of its slopes; 0 disables it",
        at_least=0.0,
    )
    sharpness: float = option(
        0.0,
        "largest change of sharpness in either direction: 1 blurs by 3x3 pixels or doubles the detail that this blur "
        "removes; 0 disables it",
        at_least=0.0,
        at_most=1.0,
    )
    noise: float = option(
        0.0,
        "largest standard deviation of Gaussian noise that is added to the pixels, which are 0..1; 0 disables it",
        at_least=0.0,
        at_most=1.0,
    )
    flip: bool = option(False, "flip each image left to right with probability 1/2 (the heart then changes sides)")
    erase_probability: float = option(
        0.0, "probability that a rectangle of an image is erased", at_least=0.0, at_most=1.0
    )
    mixup_alpha: float = option(0.0, "parameter of the beta distribution of mixup; 0 disables mixup", at_least=0.0)
    augment_strength: float = option(
        1.0, "factor on augmentation ranges and erase_probability, not crop_max_aspect, flip, mixup_alpha", at_least=0.0
    )
    test_time_views: int = option(
        1,
        "number of views of each image whose probabilities are averaged in evaluation: the image itself and copies "
        "of it, augmented as in training but without erasing and mixup",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength(self)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    optimizer: str = option("adamw", "optimizer", choices=("adamw", "sgd", "muon"))
    learning_rate: float = option(1e-3, "peak learning rate, reached after the warm-up", above=0.0)
    backbone_learning_rate_scale: float = option(
        1.0,
        "factor on the learning rate of the backbone, which is all layers but the classifier (dense layers and head)",
        above=0.0,
    )
    momentum: float = option(0.9, "Nesterov momentum of the optimizer sgd", at_least=0.0, below=1.0)
    weight_decay: float = option(1e-2, "weight decay of the kernels", at_least=0.0)
    warmup: float = option(
        0.1,
        "fraction of all steps during which the learning rate rises linearly; afterwards it decays as a cosine",
        at_least=0.0,
        below=1.0,
    )
    label_smoothing: float = option(
        0.0, "label smoothing: fraction of the target that is spread over all classes", at_least=0.0, below=1.0
    )
    class_weights: str = option(
        "none",
        "weights of the classes in the loss: equal (none), or inverse to the class frequency (balanced)",
        choices=("none", "balanced"),
    )
    ema_decay: float | None = option(
        None,
        "decay of the exponential moving average of the weights, which replaces them in evaluation (default: none)",
        above=0.0,
        below=1.0,
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    epochs: int = option(30, "passes over the training images", at_least=1)
    batch_size: int = option(32, "images per training step, over all devices", at_least=1)
    chunk_steps: int = option(16, "approximate number of steps per compiled call, at most an epoch", at_least=1)
    eval_batch_size: int = option(128, "images per prediction step, over all devices", at_least=1)
    loader: str = option(
        "resident",
        "resident keeps all images on each device; stream reads from disk the images that a process needs next",
        choices=("resident", "stream"),
        identity=False,
    )
    select_by: str = option(
        "last",
        "how the best checkpoint is chosen: always the last one (last), by the AUROC on validation (auroc), or by the "
        "AUROC on validation images with swapped aspects (shift)",
        choices=("last", "auroc", "shift"),
    )
    seed: int = option(
        0, "seed of the initialisation, the order of the images and the augmentation", at_least=0, at_most=2**31 - 1
    )
    parallel: str = option(
        "jit", "JAX function that shards the batch over the devices", choices=("jit", "shard_map", "pmap")
    )
    batch_norm: str = option(
        "global",
        "images over which batch normalisation averages: the global batch, or each device's shard of it (local)",
        choices=("global", "local"),
    )
    replicas: int = option(
        1,
        "number of runs that are trained in one program, with the seeds seed, seed + 1, ...; they form an ensemble",
        at_least=1,
    )
    replica_map: str = option(
        "auto",
        "how a device runs its replicas: one after another (map), all at once (vmap), or map on CPU and vmap elsewhere",
        choices=("auto", "map", "vmap"),
        identity=False,
    )
    sweep: str | None = option(
        None,
        f"TOML file with the values that differ between the replicas: a list for any of {', '.join(SWEPT)} or seed",
        identity=False,  # Each replica's own config.json holds the values.
    )
    multihost: bool = option(
        False, "connect to the other processes of the run with jax.distributed.initialize()", identity=False
    )


@dataclasses.dataclass(frozen=True)
class ThresholdConfig(Checked):
    threshold_rule: str = option(
        "target_sensitivity",
        "rule that chooses the threshold on the selection split",
        choices=("target_sensitivity", "youden", "cost_ratio", "fixed"),
    )
    target_sensitivity: float = option(
        0.95, "sensitivity that the rule target_sensitivity must reach", above=0.0, at_most=1.0
    )
    cost_ratio: float = option(
        10.0,
        "cost of a false negative in units of a false positive, for the rule cost_ratio",
        above=0.0,
        identity=False,
    )
    prevalence: float | None = option(
        None,
        "prevalence of pneumonia where the network will be used, for the rule cost_ratio (default: that of the "
        "selection split) and for predictive values",
        above=0.0,
        below=1.0,
        identity=False,
    )
    fixed_threshold: float = option(0.5, "threshold that the rule fixed sets", at_least=0.0, at_most=1.0)


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """A whole run. Field names are unique across the groups, so that each becomes one flag.

    Raises:
      UserError: a value is outside its limits, or two fields exclude each other.
    """

    data: DataConfig = option(DataConfig(), "")
    model: ModelConfig = option(ModelConfig(), "")
    augment: AugmentConfig = option(AugmentConfig(), "")
    optimizer: OptimizerConfig = option(OptimizerConfig(), "")
    train: TrainConfig = option(TrainConfig(), "")
    threshold: ThresholdConfig = option(ThresholdConfig(), "")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_combination(self)


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
    """Returns a copy of the config in which some fields, named without their group, have new values.

    Raises:
      UserError: a field is unknown or a value outside its limits, or two values exclude each other.
    """
    return config_from_dict(config_to_dict(config) | values)


def config_fields() -> list[dataclasses.Field]:
    """All fields of all groups, in order."""
    groups: list[Any] = [group.default for group in dataclasses.fields(Config)]
    return [field for group in groups for field in dataclasses.fields(group)]
