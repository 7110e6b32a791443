"""The compiled steps of pretraining without labels. They have the form of the steps in `steps.py`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from pneumojax.config import Config
from pneumojax.data.augment import make_augment
from pneumojax.losses import compute_contrastive
from pneumojax.parallel import make_chunk
from pneumojax.preprocessing import gather, normalise, scale_pixels
from pneumojax.state import StepResult, TrainState
from pneumojax.steps import fold_in_positions, make_update


def make_pretrain_step(
    config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformation
) -> Callable[..., StepResult]:
    """Makes a step of pretraining without labels.

    The step augments each image twice and minimises `losses.compute_contrastive`.

    Args:
      config: the run. It must have parallel=jit, because the loss compares the views of the whole batch.
      graph: from `make_graph`, for a network with a projector.
      tx: the optimizer.

    Returns:
      `pretrain_step(state, images, index, key) -> (state, metrics)`, with arguments as in `make_train_step`. The
      metrics are float32 sums over images: "loss" in nats, "count", and "correct", the number of images whose two
      views are most similar to each other. If this is true for only one of the views, the image counts half.
    """
    augment = make_augment(config.augment)

    def compute_loss(
        params: dict[str, Any], batch_stats: dict[str, Any], views: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, Any]]]:
        model = nnx.merge(graph, params, batch_stats)
        embeddings = model(normalise(views), train=True)
        losses, correct = compute_contrastive(embeddings.reshape(-1, 2, embeddings.shape[-1]))
        # Each image has two views, so the sums over views are halved.
        metrics = {"loss": losses.sum() / 2, "correct": correct.sum() / 2, "count": jnp.float32(len(views) // 2)}
        return losses.mean(), (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    update = make_update(config, compute_loss, tx, mapped=False)

    def pretrain_step(state: TrainState, images: jax.Array, index: jax.Array, key: jax.Array) -> StepResult:
        batch = jnp.repeat(gather(images, index), 2, axis=0)  # Adjacent views stay on one device.
        keys = fold_in_positions(key, state.step, len(batch), mapped=False)
        return update(state, augment(keys, scale_pixels(batch)))

    return pretrain_step


def make_pretrain_chunk(
    config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformation, mesh: Mesh
) -> jax.stages.Wrapped:
    """Compiles a chunk of pretraining steps.

    Args:
      config: the run, as in `make_pretrain_step`.
      graph: as in `make_pretrain_step`.
      tx: the optimizer.
      mesh: the devices.

    Returns:
      `pretrain_chunk(state, images, batches, key) -> (state, metrics)`, as in `make_train_chunk`. With loader=stream,
      it is `pretrain_chunk(state, images, key)`.
    """
    return make_chunk(make_pretrain_step(config, graph, tx), 1, config, mesh)
