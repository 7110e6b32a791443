"""Reads weight files: safetensors, PyTorch's pickles (they need torch), and Keras's HDF5 (it needs no TensorFlow)."""

import io
import json
import pathlib
import pickle
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from pneumojax.errors import UserError

if TYPE_CHECKING:
    import h5py

# Our networks and those of PyTorch add EPSILON to the variance of a normalisation. Keras's ResNet50 adds KERAS_EPSILON.
EPSILON = 1e-5
KERAS_EPSILON = 1.001e-5

# {timm's name: torchvision's name} of VGG16's last layers. In timm they are convolutions.
TIMM_NAMES = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}


def read_tensors(path: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    """Reads all tensors of a file.

    Args:
      path: a .safetensors, .pth, .pt, .bin, .h5 or .keras file.

    Returns:
      (source, {name: array}). source is torch, keras or pneumojax. The names and layouts are those of torchvision, of
      Keras's layers, or our own.

    Raises:
      UserError: the file is missing or damaged, has an unknown format, or is a pickle that contains more than tensors.
    """
    readers = {
        ".safetensors": _read_safetensors,
        ".pth": _read_pickle,
        ".pt": _read_pickle,
        ".bin": _read_pickle,
        ".h5": _read_h5,
        ".keras": _read_keras,
    }
    if path.is_dir():
        raise UserError(f"pretrained: {path} is a folder. Name a file, such as {path / 'backbone.safetensors'}.")
    if path.suffix not in readers:
        raise UserError(f"pretrained: {path} must end in {', '.join(readers)}.")
    if not path.is_file():
        raise UserError(f"pretrained: there is no file {path}.")
    damages = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile)
    try:
        tensors = readers[path.suffix](path)
        ours = read_info(path) is not None
    except damages as error:
        raise UserError(
            f"pretrained: {path} cannot be read ({_first_line(error)}). It is damaged or has another format."
        ) from error
    if ours:
        return "pneumojax", tensors
    if path.suffix in (".h5", ".keras"):
        return "keras", _fold_keras_biases(tensors)
    return "torch", _rename_timm(tensors)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(error) from error


def read_info(path: pathlib.Path) -> dict | None:
    """Reads the metadata of a file from `weight_import.save_backbone`. Returns None for a file of another source."""
    if path.suffix != ".safetensors":
        return None
    import safetensors

    with safetensors.safe_open(path, "numpy") as file:
        return json.loads((file.metadata() or {}).get("pneumojax", "null"))


def _read_pickle(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"pretrained: {path} is a pickle. Only torch can read it safely, and torch is not installed. "
            "Save it as .safetensors on a machine with torch, or install torch."
        ) from error
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"pretrained: {path} holds more than tensors, or is damaged. A pickle with other objects can run any "
            "program when it is opened, so it is not read. Save only its state_dict, preferably as .safetensors."
        ) from error
    tensors = tensors.get("state_dict", tensors)  # timm's checkpoints have it under this name.
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def _read_h5(path: pathlib.Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path) as file:
        return _read_layers(file)


def _read_keras(path: pathlib.Path) -> dict[str, np.ndarray]:
    import h5py

    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        return _read_layers(file)


def _read_layers(file: "h5py.File") -> dict[str, np.ndarray]:
    """Reads {layer.weight: array} for all layers, in the layout of Keras 3 or of an earlier version.

    In Keras 3, each layer is a group `layers/*/vars` with the attribute "name". Earlier versions list the weights of a
    layer in the attribute "weight_names".
    """
    import h5py

    layers: dict[str, list[h5py.Dataset]] = {}

    def visit(path: str, item: "h5py.Group | h5py.Dataset") -> None:
        if not isinstance(item, h5py.Group):
            return
        if path.endswith("/vars") and "name" in item.attrs:
            layers[_text(item.attrs["name"])] = [item[str(i)] for i in range(len(item))]
        elif "weight_names" in item.attrs:
            layers[path.split("/")[-1]] = [item[_text(name)] for name in item.attrs["weight_names"]]

    file.visititems(visit)
    tensors: dict[str, np.ndarray] = {}
    for layer, weights in layers.items():
        kinds = ("gamma", "beta", "moving_mean", "moving_variance") if len(weights) == 4 else ("kernel", "bias")
        tensors |= {f"{layer}.{kind}": np.asarray(weight) for kind, weight in zip(kinds, weights, strict=False)}
    if not tensors:
        raise ValueError("it holds no layers of Keras with names")
    return tensors


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _fold_keras_biases(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Folds two differences between Keras's ResNet50 and our network into the batch statistics.

    In Keras, a convolution before a normalisation has a bias, and the normalisation has a larger epsilon.
    """
    for name in [name for name in tensors if name.endswith("_conv.bias")]:
        norm = name.removesuffix("_conv.bias") + "_bn"
        if f"{norm}.moving_mean" in tensors:
            tensors[f"{norm}.moving_mean"] = tensors[f"{norm}.moving_mean"] - tensors.pop(name)
            tensors[f"{norm}.moving_variance"] = tensors[f"{norm}.moving_variance"] + (KERAS_EPSILON - EPSILON)
    return tensors


def _rename_timm(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, torchvisions in TIMM_NAMES.items():
            if name.startswith(theirs):
                name = torchvisions + name.removeprefix(theirs)
                tensor = tensor.reshape(len(tensor), -1) if tensor.ndim == 4 else tensor
        renamed[name] = tensor
    return renamed


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
