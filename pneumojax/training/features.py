"""Computes the features of a frozen backbone once, for several views of each image (`--cached_views`)."""

import logging
import time
from collections.abc import Callable

import jax
import numpy as np

from pneumojax.data.batches import make_eval_batches
from pneumojax.data.dataset import Split
from pneumojax.inference import make_extract
from pneumojax.sharding import put
from pneumojax.state import TrainState
from pneumojax.training.plan import TrainingPlan

logger = logging.getLogger(__name__)

LOG_SECONDS = 10  # interval of the progress messages


def make_extract_split(plan: TrainingPlan, state: TrainState, key: jax.Array) -> Callable[[Split, int], np.ndarray]:
    """Compiles the backbone and returns a function that computes the features of a split.

    Args:
      plan: the training plan.
      state: the state whose parameters and batch statistics are used.
      key: the PRNG key of the run, for the augmentation of views.

    Returns:
      `extract_split(split, views) -> features`: [N, views, ...] float on the host. View 0 is the image itself; each
      other view is augmented once.
    """
    mesh, config = plan.mesh, plan.config
    extract = make_extract(config, plan.graph, mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    def extract_split(split: Split, views: int) -> np.ndarray:
        images, labels = put(split.images, mesh), put(split.labels(config.model.task), mesh)
        batches = make_eval_batches(len(split), config.train.eval_batch_size, mesh.size)
        on_devices = [put(batch, mesh, axis=0) for batch in batches]
        features, last_log = [], time.monotonic()
        for view in range(views):
            number = put(np.array(view, np.int32), mesh)
            rows = []
            for i, batch in enumerate(on_devices):
                rows.append(jax.device_get(extract(variables, images, labels, batch, number, key)))
                done = view * len(batches) + i + 1
                if time.monotonic() - last_log > LOG_SECONDS or done == views * len(batches):
                    last_log = time.monotonic()
                    logger.info("Features of %s: batch %d of %d", split.name, done, views * len(batches))
            features.append(np.concatenate(rows)[: len(split)])
        return np.stack(features, 1)

    return extract_split
