"""Computes the logits of images, and probabilities from logits."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax.config import AugmentConfig, Config
from pneumojax.data.batches import make_eval_batches
from pneumojax.inference import make_predict
from pneumojax.sharding import put
from pneumojax.steps import make_graph


def make_predict_images(
    config: Config, images: np.ndarray, mesh: Mesh, views: AugmentConfig | None = None, cached: bool = False
) -> Callable[[dict], np.ndarray]:
    """Makes a function that predicts the same images with different variables.

    With `loader=resident` the images stay on the devices. With `loader=stream` they are streamed in each call.

    Args:
      config: the config of the run.
      images: [N, H, W] uint8, 0..255, or features (see `cached`).
      mesh: the devices.
      views: as in `inference.make_predict`.
      cached: as in `inference.make_predict`.

    Returns:
      `predict_images(variables) -> logits`: variables {"params", "batch_stats"} on every device, logits [N, C] float32.
    """
    batches = make_eval_batches(len(images), config.train.eval_batch_size, mesh.size)
    streamed = config.train.loader == "stream" and len(batches) > 1  # Streaming a single batch would only cost time.
    predict_batches = make_predict(make_graph(config), mesh, views, cached, streamed, config.data.pixel_scaling)
    on_devices = () if streamed else (put(images, mesh), put(batches, mesh, axis=1))

    def predict_resident(variables: dict[str, Any]) -> list[np.ndarray]:
        return jax.device_get(predict_batches(variables, *on_devices))

    def predict_streamed(variables: dict[str, Any]) -> list[np.ndarray]:
        from pneumojax.data.stream import stream_rows

        logits = []
        for rows in stream_rows((images,), lambda i: batches[i : i + 1], range(len(batches)), mesh):
            logits.append(predict_batches(variables, *rows))
            logits[-2:-1] = jax.device_get(logits[-2:-1])  # At most two batches are on the devices.
        return jax.device_get(logits)

    def predict_images(variables: dict[str, Any]) -> np.ndarray:
        logits = np.concatenate((predict_streamed if streamed else predict_resident)(variables))
        return logits.reshape(-1, logits.shape[-1])[: len(images)]

    return predict_images


def compute_probabilities(logits: np.ndarray) -> np.ndarray:
    """Computes the softmax of logits in float64. In float32, probabilities above 1 - 3e-8 would be rounded to 1.

    Args:
      logits: [N, C] float.

    Returns:
      [N, C] float64, 0..1.
    """
    from scipy import special  # Imported here because it takes a third of a second, and training imports this module.

    return special.softmax(np.asarray(logits, np.float64), axis=-1)
