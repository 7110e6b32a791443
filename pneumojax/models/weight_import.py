"""Imports initial weights: our own pretrained backbones, and ImageNet weights of torchvision, timm and Keras.

The input of the published networks is three colours, each normalised by its own mean and standard deviation. The input
of our networks is one grey plane with another scaling. For a grey image, every normalised colour is y = gain * grey +
offset. The first kernel is summed over the colours. It becomes a kernel for the grey plane (weighted by the gains) and
a kernel for a plane of ones (weighted by the offsets). A bias could not replace the second kernel: at the border, the
kernel reaches into the padding, where y is zero, and the logits would differ by 0.1 to 0.5 % of their scale. The plane
of ones is padded with zeros too, so the imported network equals the published one at every pixel (within 1e-6).
"""

import difflib
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pneumojax.config import CLASSIFIER, ModelConfig
from pneumojax.errors import UserError
from pneumojax.files import write_bytes
from pneumojax.models.weight_files import read_info, read_tensors

logger = logging.getLogger(__name__)

SOURCES = {"torch": "torchvision or timm", "keras": "Keras", "pneumojax": "experiments/pretrain.py"}
# The config fields that determine the shapes of a backbone, by network.
SHAPING = {
    "cnn": ("cnn_widths",),
    "vgg16": ("vgg_width",),
    "resnet18": ("resnet_width",),
    "resnet34": ("resnet_width",),
    "resnet50": ("resnet_width", "resnet_stride"),
}
# The names of our kernels that are applied to the image.
STEM_KERNELS = (("stem_conv", "kernel"), ("stage1_conv1", "kernel"))
# Mean and standard deviation of pixels 0..1 with which the published networks were trained, in their order of channels.
# Torchvision and timm use RGB. Keras's VGG16 and ResNet50 use the "caffe" mode: BGR pixels 0..255 minus a mean.
NORMALISATION = {
    "torch": (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
    "keras": (np.array([103.939, 116.779, 123.68]) / 255, np.full(3, 1 / 255)),
}
LEAVES = {
    "torch": {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"},
    "keras": {"kernel": "kernel", "scale": "gamma", "bias": "bias", "mean": "moving_mean", "var": "moving_variance"},
}
# Indices of VGG16's convolutions in torchvision's list of layers, for each stage. ReLU and pooling have the others.
VGG_POSITIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
RESNET_BLOCKS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
}


def load_pretrained(
    path: str | pathlib.Path, config: ModelConfig, variables: dict[str, Any], pixel_mean: float, pixel_std: float
) -> dict[str, Any]:
    """Loads the weights of a file into a network.

    If the classifier is missing in the file or has another shape, it keeps its random weights.

    Args:
      path: a file of `save_backbone`; a .safetensors, .pth, .pt or .bin file of torchvision or timm; or an .h5 or
        .keras file of Keras.
      config: the network.
      variables: {"params", "batch_stats"} of the fresh network. Its first kernel has two input channels, for the grey
        plane and a plane of ones.
      pixel_mean: our scaling of pixels x in 0..1 is (x - pixel_mean) / pixel_std.
      pixel_std: see pixel_mean.

    Returns:
      {"params", "batch_stats"} with the same structure as variables.

    Raises:
      UserError: the file cannot be read, is of another network, or has missing or additional tensors.
    """
    path = pathlib.Path(path).expanduser()
    source, tensors = read_tensors(path)
    if source == "pneumojax":
        _check_backbone(path, config)
    elif config.model == "cnn":
        raise UserError(
            f"{path} has weights of {SOURCES[source]}. The network cnn can only use backbones of "
            f"{SOURCES['pneumojax']}."
        )
    elif config.model.startswith("resnet"):
        _check_stride(path, source, config)
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    wanted = {tuple(entry.key for entry in keys): leaf for keys, leaf in leaves}
    names = {key: _name(source, config.model, key) for key in wanted}
    fresh = _find_fresh(wanted, names, source, tensors)
    _check_names(path, config.model, source, tensors, [names[key] for key in wanted if key[1] not in fresh])

    loaded = []
    for key, leaf in wanted.items():
        if key[1] in fresh:
            loaded.append(leaf)
            continue
        value = _convert(source, key, tensors[names[key]])
        if key[1:] in STEM_KERNELS and value.shape[2] == 3:
            value = fold_normalisation(value, *NORMALISATION[source], pixel_mean, pixel_std)
        elif key[1:] in STEM_KERNELS and source == "pneumojax":  # Our backbones were trained without a plane of ones.
            value = np.concatenate([value, np.zeros_like(value)], 2)
        if value.shape != leaf.shape:
            raise UserError(
                f"{path}: {names[key]} has shape {_shape(value)} in our layout, but this {config.model} needs "
                f"{_shape(leaf)}. Published weights need --resnet_width=64 or --vgg_width=64. Weights of wider "
                "networks cannot be used."
            )
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {names[key]} holds numbers that are not finite. The file is damaged.")
        loaded.append(value.astype(np.float32))
    logger.info("Initial weights from %s (%s); random: %s", path, source, ", ".join(fresh) or "nothing")
    return jax.tree_util.tree_unflatten(structure, loaded)


def fold_normalisation(
    kernel: np.ndarray, mean: np.ndarray, std: np.ndarray, pixel_mean: float, pixel_std: float
) -> np.ndarray:
    """Sums a kernel over the colours, and folds the normalisation of the colours into it.

    Args:
      kernel: [K, K, 3, O], for pixels (x - mean) / std with x in 0..1.
      mean: [3] float.
      std: [3] float.
      pixel_mean: our own scaling is (x - pixel_mean) / pixel_std.
      pixel_std: see pixel_mean.

    Returns:
      [K, K, 2, O] float64. The input channels are our grey plane and a plane of ones.
    """
    gain, offset = pixel_std / std, (pixel_mean - mean) / std
    return np.einsum("hwco,pc->hwpo", kernel.astype(np.float64), np.stack([gain, offset]))


def save_backbone(path: pathlib.Path, config: ModelConfig, variables: dict[str, Any], data_fingerprint: str) -> None:
    """Saves a network without its classifier, with our own names and layout.

    Args:
      path: .safetensors file to write.
      config: the network.
      variables: {"params", "batch_stats"} of the network as numpy arrays.
      data_fingerprint: fingerprint of the training split.
    """
    import safetensors.numpy

    leaves = jax.tree_util.tree_leaves_with_path(variables)
    named = {tuple(entry.key for entry in keys): np.ascontiguousarray(leaf) for keys, leaf in leaves}
    tensors = {"/".join(key): leaf for key, leaf in named.items() if not key[1].startswith(CLASSIFIER)}
    info = {"model": config.model, "data_fingerprint": data_fingerprint}
    info |= {field: getattr(config, field) for field in SHAPING[config.model]}
    write_bytes(path, safetensors.numpy.save(tensors, {"pneumojax": json.dumps(info)}))


def check_pretraining_images(path: str | pathlib.Path, data_fingerprint: str) -> None:
    """Logs a warning if one of our backbones was pretrained on a training split other than that of this run.

    Args:
      path: the weight file, which `load_pretrained` can read.
      data_fingerprint: fingerprint of the training split of this run.
    """
    info = read_info(pathlib.Path(path).expanduser())
    if info and info["data_fingerprint"] != data_fingerprint:
        logger.warning(
            "%s was pretrained on another training split than this one. It may have been trained on images that are "
            "evaluated now, so the metrics may be optimistic.",
            path,
        )


def _name(source: str, model: str, key: tuple[str, ...]) -> str:
    """Returns the source's name of one of our arrays.

    For example, ("params", "stage1_block2", "conv1", "kernel") is layer1.1.conv1.weight in torchvision.
    """
    if source == "pneumojax":
        return "/".join(key)
    *modules, leaf = key[1:]
    module, torch, vgg = "/".join(modules), source == "torch", model == "vgg16"
    if module in ("stem_conv", "stem_norm"):
        layer = {"stem_conv": ("conv1", "conv1_conv"), "stem_norm": ("bn1", "conv1_bn")}[module][not torch]
    elif match := re.fullmatch(r"stage(\d)_conv(\d)", module):
        stage, conv = map(int, match.groups())
        layer = f"features.{VGG_POSITIONS[stage - 1][conv - 1]}" if torch else f"block{stage}_conv{conv}"
    elif match := re.fullmatch(r"stage(\d)_block(\d)/(conv|norm)(\d)", module):
        stage, block, kind, i = int(match[1]), int(match[2]), match[3], match[4]
        theirs = {"conv": ("conv", "conv"), "norm": ("bn", "bn")}[kind][0]
        layer = f"layer{stage}.{block - 1}.{theirs}{i}" if torch else f"conv{stage + 1}_block{block}_{i}_{theirs}"
    elif match := re.fullmatch(r"stage(\d)_block(\d)/shortcut_(conv|norm)", module):
        stage, block, norm = int(match[1]), int(match[2]), match[3] == "norm"
        layer = f"layer{stage}.{block - 1}.downsample.{int(norm)}"
        layer = layer if torch else f"conv{stage + 1}_block{block}_0_{'bn' if norm else 'conv'}"
    elif match := re.fullmatch(r"dense(\d)", module):
        layer = f"classifier.{3 * (int(match[1]) - 1)}" if torch else f"fc{match[1]}"
    else:  # The head.
        layer = ("classifier.6" if vgg else "fc") if torch else "predictions"
    is_norm = module.split("/")[-1].split("_")[-1].startswith("norm")
    kind = "beta" if is_norm and leaf == "bias" and not torch else LEAVES[source][leaf]
    return f"{layer}.{kind}"


def _convert(source: str, key: tuple[str, ...], tensor: np.ndarray) -> np.ndarray:
    """Converts a tensor to our layout: kernels [K, K, I, O] or [I, O], inputs of the first dense layer in HWC order."""
    if source != "torch" or key[-1] != "kernel":
        return tensor
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if key[1] == "dense1":
        return tensor.reshape(len(tensor), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    return tensor.T


def _find_fresh(
    wanted: Mapping[tuple[str, ...], jax.Array],
    names: Mapping[tuple[str, ...], str],
    source: str,
    tensors: Mapping[str, np.ndarray],
) -> list[str]:
    """Returns the layers of the classifier that keep their random weights.

    These are the first layer that is missing in the file or has another shape there, and all layers after it.
    """
    layers = sorted({key[1] for key in wanted if key[1].startswith(CLASSIFIER)})
    for i, layer in enumerate(layers):
        for key in (key for key in wanted if key[1] == layer):
            tensor = tensors.get(names[key])
            if (
                tensor is None
                or tensor.size != wanted[key].size
                or _convert(source, key, tensor).shape != wanted[key].shape
            ):
                return layers[i:]
    return []


def _check_names(
    path: pathlib.Path, model: str, source: str, tensors: Mapping[str, np.ndarray], expected: list[str]
) -> None:
    unused = ("fc.", "fc1.", "fc2.", "classifier.", "predictions.")  # Classifiers that are not loaded.
    known = {*expected, *(name for name in tensors if name.startswith(unused) or name.endswith(".num_batches_tracked"))}
    missing, extra = [name for name in expected if name not in tensors], [name for name in tensors if name not in known]
    if not missing and not extra:
        return
    parts = []
    for words, found, others in (
        ("lacks", missing, extra or list(tensors)),
        ("has in addition", extra, missing or expected),
    ):
        if found:
            near = difflib.get_close_matches(found[0], others, n=1)
            nearest = f" (nearest: {near[0]})" if near else ""
            parts.append(f"{words} {found[0]}{nearest}" + (f" and {len(found) - 1} more" if found[1:] else ""))
    looks = _recognise(source, tensors)
    advice = f" It looks like {looks}: give --model={looks}." if looks and looks != model else ""
    raise UserError(f"{path} is not a {model} of {SOURCES[source]}: it {', and '.join(parts)}.{advice}")


def _check_backbone(path: pathlib.Path, config: ModelConfig) -> None:
    info = read_info(path) or {}
    fields = ("model", *SHAPING[config.model])
    made, wanted = ({name: format_value(values.get(name)) for name in fields} for values in (info, vars(config)))
    if made["model"] != wanted["model"]:
        raise UserError(f"{path} holds the backbone of a {made['model']}: give --model={made['model']}.")
    if made != wanted:
        flags = " ".join(f"--{name}={value}" for name, value in made.items() if value != wanted[name])
        raise UserError(f"{path} holds the backbone of another {config.model}: give {flags}.")


def format_value(value: object) -> str:
    """Formats a value of a config field as the text of its flag."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _recognise(source: str, tensors: Mapping[str, np.ndarray]) -> str | None:
    """Returns the name of our network to which the tensors belong, or None."""
    if ("features.28.weight" if source == "torch" else "block5_conv3.kernel") in tensors:
        return "vgg16"
    pattern = (
        r"layer(\d)\.(\d+)\.conv(\d)\.weight" if source == "torch" else r"conv(\d)_block(\d+)_([123])_conv\.kernel"
    )
    found = [match.groups() for name in tensors if (match := re.fullmatch(pattern, name))]
    stages = sorted({stage for stage, _, _ in found})
    blocks = tuple(len({block for s, block, _ in found if s == stage}) for stage in stages)
    return RESNET_BLOCKS.get((blocks, any(i == "3" for _, _, i in found)))


def _check_stride(path: pathlib.Path, source: str, config: ModelConfig) -> None:
    expected = "3x3" if source == "torch" or config.model != "resnet50" else "1x1"
    if config.model == "resnet50" and config.resnet_stride != expected:
        raise UserError(
            f"{path}: in the ResNet50 of {SOURCES[source]}, the stride of a block is in the {expected} convolution: "
            f"give --resnet_stride={expected}."
        )


def _shape(array: np.ndarray | jax.Array) -> str:
    return "x".join(map(str, array.shape))
