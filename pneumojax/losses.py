"""The loss of a batch of class logits."""

import jax
import jax.numpy as jnp
import numpy as np

from pneumojax.config import CLASS_NAMES


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
