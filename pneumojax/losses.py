"""The loss of a batch: of class logits, or of embeddings of two views."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pneumojax.config import CLASS_NAMES

# Of the similarities between views; the low end of what the paper tries, for small batches have few hard negatives.
TEMPERATURE = 0.2


def as_class_logits(logits: jax.Array) -> jax.Array:
    """Gives a one-output network its second class: softmax over (0, z) is (1 - sigmoid(z), sigmoid(z)).

    So one loss, one metric and one decision rule serve both tasks.

    Args:
      logits: [B, 1] or [B, C] float32.

    Returns:
      [B, C] float32, C >= 2.
    """
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1) if logits.shape[-1] == 1 else logits


def make_targets(labels: jax.Array, classes: int, label_smoothing: float) -> jax.Array:
    """[B] int32 class indices -> [B, classes] float32 probabilities, with a share spread evenly over all classes."""
    return jax.nn.one_hot(labels, classes) * (1 - label_smoothing) + label_smoothing / classes


def compute_cross_entropy(logits: jax.Array, targets: jax.Array, class_weights: jax.Array) -> jax.Array:
    """Cross-entropy of each image, weighted by its class.

    Args:
      logits: [B, C] float32.
      targets: [B, C] float32, rows sum to 1.
      class_weights: [C] float32; a mixed target is weighted by its mixture.

    Returns:
      [B] float32, in nats. Training takes the plain mean over B.
    """
    return -(targets * jax.nn.log_softmax(logits)).sum(-1) * (targets @ class_weights)


def compute_contrastive(embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """SimCLR's loss: each view is to find, by direction, the other view of its image among all views of the batch.

    Args:
      embeddings: [B, 2, F] float32, of the first and the second view of each image.

    Returns:
      ([2 B] float32 cross-entropy of each view in nats, [2 B] bool whether the other view is the nearest). The views
      of an image follow one another.

    References:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020: NT-Xent.
    """
    views = embeddings.reshape(-1, embeddings.shape[-1])
    directions = views * jax.lax.rsqrt((views**2).sum(-1, keepdims=True) + 1e-12)  # The gradient of 0 is 0.
    places = jnp.arange(len(views))
    similarities = jnp.where(places[:, None] == places, -jnp.inf, directions @ directions.T / TEMPERATURE)
    partners = places ^ 1
    losses = optax.softmax_cross_entropy_with_integer_labels(similarities, partners)
    return losses, similarities.argmax(-1) == partners


def compute_class_weights(labels: np.ndarray, task: str, rule: str) -> np.ndarray:
    """Weights of the classes in the loss; their mean over the images is 1. A class without images weighs 1.

    Args:
      labels: [N] int, class indices of the training split.
      task: binary or three_class.
      rule: none (all 1) or balanced (each class weighs the same in total).

    Returns:
      [C] float32.
    """
    classes = len(CLASS_NAMES[task])
    if rule == "none":
        return np.ones(classes, np.float32)
    counts = np.bincount(labels, minlength=classes)
    balanced = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts, balanced, 1).astype(np.float32)
