"""Compiled functions that attribute a decision to the pixels of an image: Grad-CAM, occlusion, integrated gradients.

All of them explain the log-odds of the decision, log P(decided class) - log P(other class), for NORMAL against
pneumonia. They work on the network's input after `preprocessing.normalise`. There, 0 is the mean grey value (of the
image with pixel_scaling=image, otherwise of the range), so a removed pixel is grey, and removing pixels does not change
the scaling of the others.

Additional letters in shapes: G fractions of the removed pixels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from pneumojax.config import Config
from pneumojax.errors import UserError
from pneumojax.losses import as_class_logits
from pneumojax.models.layers import Network
from pneumojax.preprocessing import normalise, scale_pixels
from pneumojax.steps import make_abstract_variables, make_graph

# Points of the path of integrated gradients. The sum of a map then differs from the exact sum by a few percent.
PATH_STEPS = 32

# The occluded square has this share of the image's height, and neighbouring squares overlap by half.
OCCLUDED_SHARE = 1 / 6

# Shares of removed pixels at which the curves of deletion and insertion are computed.
FRACTIONS = np.linspace(0, 1, 21)

# `attribute(model, batch, sign) -> maps`: batch [B, H, W, 1] float32, sign [B] float32, maps [B, H, W] float32.
Attribute = Callable[[Network, jax.Array, jax.Array], jax.Array]


def make_attribute(config: Config, method: str) -> Callable[[dict[str, Any], np.ndarray, np.ndarray], jax.Array]:
    """Compiles a method of attribution.

    Args:
      config: the config of the run.
      method: a key of METHODS.

    Returns:
      `attribute(variables, images, sign) -> maps`: variables {"params", "batch_stats"}, images [B, H, W] uint8, sign
      [B] float32, 1 to explain pneumonia and -1 to explain NORMAL. The maps [B, H, W] float32 are positive where the
      image supports the explained class. Those of Grad-CAM are never negative.

    Raises:
      UserError: the method is grad_cam, and the network has no spatial features.
    """
    graph, attribute = make_graph(config), METHODS[method]
    if method == "grad_cam" and not has_maps(config):
        raise UserError(
            f"Grad-CAM needs a layer with spatial positions, which {config.model.model} does not have. "
            "Choose occlusion or integrated_gradients."
        )

    def attribute_batch(variables: dict[str, Any], images: jax.Array, sign: jax.Array) -> jax.Array:
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        return attribute(model, normalise(scale_pixels(images), config.data.pixel_scaling), sign)

    return jax.jit(attribute_batch)


def make_removal_curves(config: Config) -> Callable:
    """Compiles the curves of deletion and insertion.

    Args:
      config: the config of the run.

    Returns:
      `compute_curves(variables, images, sign, maps) -> (deletion, insertion)`: arguments as in `make_attribute`. Both
      are [B, G] float32, the probability of the explained class if the share FRACTIONS of the pixels with the largest
      values of the map is removed (deletion), or if only that share is kept (insertion).

    References:
      Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", 2018.
    """
    graph = make_graph(config)

    def compute_curves(
        variables: dict[str, Any], images: jax.Array, sign: jax.Array, maps: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        batch = normalise(scale_pixels(images), config.data.pixel_scaling)
        flat = maps.reshape(len(maps), -1)
        ranks = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1).reshape(*maps.shape, 1)

        def compute_point(fraction: jax.Array) -> tuple[jax.Array, jax.Array]:
            chosen = ranks < jnp.round(fraction * flat.shape[1])
            deleted, inserted = (jnp.where(kept, batch, 0) for kept in (~chosen, chosen))
            odds = _compute_log_odds(model, deleted, sign), _compute_log_odds(model, inserted, sign)
            return jax.nn.sigmoid(odds[0]), jax.nn.sigmoid(odds[1])

        deletion, insertion = lax.map(compute_point, jnp.asarray(FRACTIONS, jnp.float32))
        return deletion.T, insertion.T

    return jax.jit(compute_curves)


def has_maps(config: Config) -> bool:
    """Returns whether a network has spatial features, which Grad-CAM needs."""
    graph, images = make_graph(config), jax.ShapeDtypeStruct((1, *[config.data.image_px] * 2, 1), jnp.float32)

    def extract(variables: dict[str, Any], batch: jax.Array) -> jax.Array:
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        pools = type(model).extract_maps is not Network.extract_maps
        return model.extract_maps(batch, train=False) if pools else model.extract(batch, train=False)

    return jax.eval_shape(extract, make_abstract_variables(config), images).ndim == 4


def _compute_log_odds(model: Network, batch: jax.Array, sign: jax.Array) -> jax.Array:
    """Computes the log-odds of the explained class, [B] float32."""
    return sign * _to_log_odds(model(batch, train=False))


def _to_log_odds(outputs: jax.Array) -> jax.Array:
    logits = as_class_logits(outputs)
    return jax.nn.logsumexp(logits[:, 1:], axis=1) - logits[:, 0]


def _grad_cam(model: Network, batch: jax.Array, sign: jax.Array) -> jax.Array:
    """Weights each map of the last spatial layer by its mean gradient, and enlarges the positive part of their sum.

    References:
      Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017.
    """
    features = model.extract(batch, train=False)
    pooled = features.ndim == 2
    maps = model.extract_maps(batch, train=False) if pooled else features

    def classify(maps: jax.Array) -> jax.Array:
        outputs = model.classify(maps.mean((1, 2), dtype="float32") if pooled else maps, train=False)
        return (sign * _to_log_odds(outputs)).sum()  # The images are independent, so this has the gradient of each.

    weights = jax.grad(classify)(maps).mean((1, 2), keepdims=True)
    cam = jax.nn.relu((weights * maps).sum(-1).astype(jnp.float32))
    return jax.image.resize(cam, batch.shape[:3], "linear")


def _integrated_gradients(model: Network, batch: jax.Array, sign: jax.Array) -> jax.Array:
    """Integrates the gradient on the line from the grey image to the image, by the midpoint rule.

    References:
      Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017.
    """
    compute_gradient = jax.grad(lambda scaled: _compute_log_odds(model, scaled, sign).sum())

    def add(total: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
        return total + compute_gradient(scale * batch), None

    midpoints = (jnp.arange(PATH_STEPS) + 0.5) / PATH_STEPS
    total, _ = lax.scan(add, jnp.zeros_like(batch), midpoints)
    return (total * batch)[..., 0] / PATH_STEPS


def _occlusion(model: Network, batch: jax.Array, sign: jax.Array) -> jax.Array:
    """Makes squares of the image grey, one after another. A pixel gets the mean loss of log-odds of its squares.

    References:
      Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014.
    """
    size = batch.shape[1]
    side = max(2, round(size * OCCLUDED_SHARE))
    starts = np.unique(np.append(np.arange(0, size - side, side // 2), size - side))[:, None]
    bands = ((np.arange(size) >= starts) & (np.arange(size) < starts + side)).astype(np.float32)
    rows, columns = np.repeat(bands, len(bands), axis=0), np.tile(bands, (len(bands), 1))

    def compute_point(square: tuple[jax.Array, jax.Array]) -> jax.Array:
        row, column = square
        return _compute_log_odds(model, batch * (1 - row[:, None] * column)[..., None], sign)

    # The first square is empty. Without it, the network would be in the program twice, and compile twice as long.
    squares = jnp.pad(rows, ((1, 0), (0, 0))), jnp.pad(columns, ((1, 0), (0, 0)))
    odds = lax.map(compute_point, squares)
    loss = (odds[0] - odds[1:]).reshape(len(bands), len(bands), -1)
    total = jnp.einsum("rh,rcb,cw->bhw", bands, loss, bands, precision="highest")
    return total / np.outer(bands.sum(0), bands.sum(0))


METHODS: dict[str, Attribute] = {
    "grad_cam": _grad_cam,
    "occlusion": _occlusion,
    "integrated_gradients": _integrated_gradients,
}
