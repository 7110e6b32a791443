"""A trained network with its preprocessing and calibration as one program, which JAX runs without this package."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pneumojax.config import Config
from pneumojax.losses import as_class_logits
from pneumojax.ops.xla import algorithms
from pneumojax.preprocessing import normalise, scale_pixels
from pneumojax.steps import make_graph

OUTPUTS = ("calibrated_probabilities", "logits", "features")
PLATFORMS = ("cpu", "cuda", "tpu")


def make_function(
    config: Config, variables: dict[str, Any], calibration: dict[str, Any]
) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Makes the function that is exported.

    Args:
      config: the config of the run.
      variables: {"params", "batch_stats"}. They become constants of the function.
      calibration: content of calibration.json.

    Returns:
      `function(images) -> (calibrated_probabilities, logits, features)`: images [B, H, W] uint8, probabilities and
      logits [B, C] float32, and the backbone's features [B, F] float32, averaged over positions.
    """
    model = nnx.merge(make_graph(config), variables["params"], variables["batch_stats"])
    biases = np.asarray(calibration["biases"], np.float32)

    def function(images: jax.Array) -> tuple[jax.Array, ...]:
        maps = model.extract(normalise(scale_pixels(images), config.data.pixel_scaling), train=False)
        logits = as_class_logits(model.classify(maps, train=False))
        features = maps.mean(tuple(range(1, maps.ndim - 1)), dtype=jnp.float32)
        return jax.nn.softmax(logits / calibration["temperature"] + biases), logits, features

    return function


def serialize(function: Callable[[jax.Array], tuple[jax.Array, ...]], image_px: int) -> bytes:
    """Serializes a function of `make_function` for all platforms and any number of images.

    Args:
      function: the function.
      image_px: height and width of the images.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, image_px, image_px), jnp.uint8)
    # The algorithms of this package for one platform must not get into the program for all platforms.
    with algorithms("xla"):
        return bytes(jax.export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())


def open_program(path: pathlib.Path) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Opens a file of `serialize` as a function of images [B, H, W] uint8, which returns what `OUTPUTS` names."""
    predict = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: jax.device_get(predict(images))
