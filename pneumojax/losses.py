"""Loss functions: cross-entropy of class logits, and the contrastive loss of embeddings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pneumojax.config import CLASS_NAMES

# The temperature of the contrastive loss, by which similarities are divided. It is at the low end of the range in the
# paper, because small batches contain few hard negatives.
TEMPERATURE = 0.2


def as_class_logits(logits: jax.Array) -> jax.Array:
    """Converts the logit z of a network with one output to the logits (0, z) of two classes.

    The softmax of (0, z) is (1 - sigmoid(z), sigmoid(z)), so both tasks can use the same loss and metrics.

    Args:
      logits: [B, 1] or [B, C] float32.

    Returns:
      [B, C] float32, C >= 2.
    """
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1) if logits.shape[-1] == 1 else logits


def make_targets(labels: jax.Array, classes: int, label_smoothing: float) -> jax.Array:
    """Makes smoothed one-hot targets.

    Args:
      labels: [B] int32, class indices.
      classes: number of classes C.
      label_smoothing: share of each label that is spread evenly over all classes.

    Returns:
      [B, C] float32 probabilities.
    """
    return jax.nn.one_hot(labels, classes) * (1 - label_smoothing) + label_smoothing / classes


def compute_cross_entropy(logits: jax.Array, targets: jax.Array, class_weights: jax.Array | np.ndarray) -> jax.Array:
    """Computes the cross-entropy of each image, weighted by its class.

    Args:
      logits: [B, C] float32.
      targets: [B, C] float32, rows sum to 1.
      class_weights: [C] float32. The weight of an image is the sum of target * class_weights.

    Returns:
      [B] float32, in nats. Training takes the unweighted mean over B.
    """
    return -(targets * jax.nn.log_softmax(logits)).sum(-1) * (targets @ class_weights)


def compute_contrastive(embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes SimCLR's contrastive loss.

    For each view, it is the cross-entropy of finding the other view of the same image among all views of the batch, by
    the cosine similarity of their embeddings. `optax.losses.ntxent` has the same mean and gradients, but it builds a
    [2 B, 2 B, F] array where a matrix product suffices, and returns no accuracy.

    Args:
      embeddings: [B, 2, F] float32, embeddings of the two views of each image.

    Returns:
      (losses, correct): [2 B] float32, the cross-entropy of each view in nats; [2 B] bool, whether the other view of
      the image is the most similar one. The two views of an image are adjacent.

    References:
      Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020: NT-Xent.
    """
    views = embeddings.reshape(-1, embeddings.shape[-1])
    directions = views * jax.lax.rsqrt((views**2).sum(-1, keepdims=True) + 1e-12)  # The gradient at 0 is 0.
    positions = jnp.arange(len(views))
    similarities = jnp.where(positions[:, None] == positions, -jnp.inf, directions @ directions.T / TEMPERATURE)
    partners = positions ^ 1
    losses = optax.softmax_cross_entropy_with_integer_labels(similarities, partners)
    return losses, similarities.argmax(-1) == partners


def compute_class_weights(labels: np.ndarray, task: str, rule: str) -> np.ndarray:
    """Computes the weights of the classes in the loss.

    Args:
      labels: [N] int, class indices of the training split.
      task: binary or three_class.
      rule: none (all weights are 1) or balanced (each class has the same total weight).

    Returns:
      [C] float32. The mean weight of the images is 1, and so is the weight of a class without images.
    """
    classes = len(CLASS_NAMES[task])
    if rule == "none":
        return np.ones(classes, np.float32)
    counts = np.bincount(labels, minlength=classes)
    balanced = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts, balanced, 1).astype(np.float32)
