"""Compiled functions without gradients: prediction, and extraction of a frozen backbone's features."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pneumojax.config import AugmentConfig, Config
from pneumojax.data.augment import make_augment
from pneumojax.losses import as_class_logits
from pneumojax.preprocessing import make_class_augment, normalise, scale_pixels
from pneumojax.sharding import AXIS, replicated


def make_extract(config: Config, graph: nnx.GraphDef, mesh: Mesh) -> jax.stages.Wrapped:
    """Compiles the extraction of the backbone's features.

    Args:
      config: the config of the run.
      graph: from `make_graph`.
      mesh: the devices.

    Returns:
      `extract(variables, images, labels, index, view, key) -> features`: variables {"params", "batch_stats"}, images
      [N, H, W] uint8, labels [N] int32, index [B] int32 sharded over the devices, view [] int32. The features [B, ...]
      are on every device. View 0 is the image itself. Each other view of an image is augmented with its own key.
    """
    augment = make_class_augment(config)

    def extract(
        variables: dict, images: jax.Array, labels: jax.Array, index: jax.Array, view: jax.Array, key: jax.Array
    ) -> jax.Array:
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        batch = scale_pixels(images[index])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, view), index)
        batch = jnp.where(view == 0, batch, augment(keys, batch, labels[index]))
        return model.extract(normalise(batch, config.data.pixel_scaling), train=False)

    copies = replicated(mesh)
    in_shardings = (copies, copies, copies, NamedSharding(mesh, PartitionSpec(AXIS)), copies, copies)
    return jax.jit(extract, in_shardings=in_shardings, out_shardings=copies)


def make_predict(
    graph: nnx.GraphDef,
    mesh: Mesh,
    views: AugmentConfig | None = None,
    cached: bool = False,
    streamed: bool = False,
    pixel_scaling: str = "fixed",
    features: bool = False,
) -> jax.stages.Wrapped:
    """Compiles prediction over many batches as one call.

    Args:
      graph: from `make_graph`.
      mesh: the devices.
      views: number of test-time views of each image and the ranges of their augmentation; None: only the image itself.
        All images are augmented with the same keys, so the logits of an image do not depend on its batch.
      cached: whether the images are features [N, K, ...] from `make_extract`. The first view is then classified.
      streamed: whether the function is called with the images of each batch, instead of all images and indices.
      pixel_scaling: the config's, as in `preprocessing.normalise`.
      features: whether to return (logits, features): the backbone's [S, B, F] float32, averaged over positions.

    Returns:
      `predict(variables, images, batches) -> logits`: variables {"params", "batch_stats"}, images [N, H, W] uint8,
      batches [S, B] int32 indices sharded along B. The logits [S, B, C] float32 are on every device. With several views
      they are logarithms of mean probabilities. If streamed, there is no index, and the images are [S, B, H, W].
    """
    copies, sharded = replicated(mesh), NamedSharding(mesh, PartitionSpec(None, AXIS))
    in_shardings = (copies, sharded) if streamed else (copies, copies, sharded)
    predict = make_uncompiled_predict(graph, views, cached, streamed, pixel_scaling, features)
    return jax.jit(predict, in_shardings=in_shardings, out_shardings=copies)


def make_uncompiled_predict(
    graph: nnx.GraphDef,
    views: AugmentConfig | None = None,
    cached: bool = False,
    streamed: bool = False,
    pixel_scaling: str = "fixed",
    features: bool = False,
) -> Callable[..., Any]:
    """Makes the function that `make_predict` compiles. The arguments are the same."""
    others = views.test_time_views - 1 if views else 0

    def predict(variables: dict[str, Any], images: jax.Array, *batches: jax.Array) -> Any:
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])

        def classify(batch: jax.Array) -> jax.Array:
            return as_class_logits(model(normalise(batch, pixel_scaling), train=False))

        def predict_batch(batch: jax.Array) -> Any:
            if cached:
                return as_class_logits(model.classify(batch[:, 0], train=False))
            batch = scale_pixels(batch)
            logits = average_views(classify, batch, views) if views and others else classify(batch)
            if not features:
                return logits
            maps = model.extract(normalise(batch, pixel_scaling), train=False)  # XLA computes the backbone only once.
            return logits, maps.mean(tuple(range(1, maps.ndim - 1)), dtype=jnp.float32)

        return lax.map(predict_batch, images) if streamed else lax.map(lambda i: predict_batch(images[i]), *batches)

    def average_views(classify: Callable[[jax.Array], jax.Array], batch: jax.Array, views: AugmentConfig) -> jax.Array:
        augment = make_augment(dataclasses.replace(views, erase_probability=0.0))

        def classify_view(key: jax.Array) -> jax.Array:
            return jax.nn.log_softmax(classify(augment(jnp.broadcast_to(key, len(batch)), batch)))

        logits = lax.map(classify_view, jax.random.split(jax.random.key(0), others))  # In turn, to save memory.
        logits = jnp.concatenate([jax.nn.log_softmax(classify(batch))[None], logits])
        return jax.nn.logsumexp(logits, axis=0) - math.log(1 + others)

    return predict
