"""Predicts images with a trained network: logits, and probabilities of them."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax.config import AugmentConfig, Config
from pneumojax.data.dataset import make_eval_batches
from pneumojax.data.stream import stream_rows
from pneumojax.errors import UserError
from pneumojax.evaluation.run import Run
from pneumojax.inference import make_predict
from pneumojax.sharding import make_mesh, put
from pneumojax.steps import make_graph


def predict(run: Run, images: np.ndarray) -> np.ndarray:
    """Class logits of images, exact whatever the number of devices.

    Args:
      run: from `open_run`.
      images: [N, H, W] uint8, 0..255, of the size that the run was trained at (`images.decode_image` makes them).

    Returns:
      [N, C] float32 logits in the order of `run.info["class_names"]`; of a run with several test_time_views the
      logarithms of the mean probabilities.

    Raises:
      UserError: the images have another size or type than the network was trained on.
    """
    size = run.config.data.image_px
    if images.ndim != 3 or images.shape[1:] != (size, size) or images.dtype != np.uint8:
        raise UserError(
            f"{run.workdir} was trained on uint8 images of {size} x {size} pixels, "
            f"not on {images.dtype} images of shape {'x'.join(map(str, images.shape[1:]))}: "
            f"decode them at image_px={size}."
        )
    if len(images) == 0:
        raise UserError("there are no images to predict.")
    mesh = make_mesh()
    variables = jax.tree.map(lambda leaf: put(leaf, mesh), run.variables)
    return make_predict_images(run.config, images, mesh, run.config.augment)(variables)


def make_predict_images(
    config: Config, images: np.ndarray, mesh: Mesh, views: AugmentConfig | None = None, cached: bool = False
) -> Callable[[dict], np.ndarray]:
    """Prepares to predict the same images again and again; they lie where the config's loader says.

    Args:
      config: the run.
      images: [N, H, W] uint8, 0..255, or features (see `cached`).
      mesh: the devices.
      views: as in `inference.make_predict`.
      cached: as in `inference.make_predict`.

    Returns:
      `predict_images(variables) -> logits`: variables {"params", "batch_stats"} on every device, logits [N, C] float32.
    """
    batches = make_eval_batches(len(images), config.train.eval_batch_size, mesh.size)
    streamed = config.train.loader == "stream" and len(batches) > 1  # One batch is not worth the readers.
    predict_batches = make_predict(make_graph(config), mesh, views, cached, streamed)
    on_devices = () if streamed else (put(images, mesh), put(batches, mesh, axis=1))

    def predict_resident(variables):
        return jax.device_get(predict_batches(variables, *on_devices))

    def predict_streamed(variables):
        logits = []
        for rows in stream_rows((images,), lambda i: batches[i : i + 1], range(len(batches)), mesh):
            logits.append(predict_batches(variables, *rows))
            logits[-2:-1] = jax.device_get(logits[-2:-1])  # So no more than two batches wait on the devices.
        return jax.device_get(logits)

    def predict_images(variables):
        logits = np.concatenate((predict_streamed if streamed else predict_resident)(variables))
        return logits.reshape(-1, logits.shape[-1])[: len(images)]

    return predict_images


def compute_probabilities(logits: np.ndarray) -> np.ndarray:
    """[N, C] logits -> [N, C] float64 probabilities. In float64, where sure cases do not all become 1.0."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
