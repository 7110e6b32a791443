"""The loss of a batch: of class logits, or of embeddings of two views."""

import jax
import jax.numpy as jnp
import numpy as np

from pneumojax.config import CLASS_NAMES

# The paper's.
VICREG_WEIGHTS = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
VICREG_EPSILON = 1e-4


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


def compute_vicreg(embeddings: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """VICReg: two views of an image are embedded alike, and the embeddings of a batch neither collapse nor repeat.

    Args:
      embeddings: [B, 2, F] float32, B at least 2: of the first and the second view of each image.

    Returns:
      The loss, and its three parts before they are weighted: `invariance`, the mean square of the difference between
      the views; `variance`, how much the standard deviations over the batch fall short of 1, on average; `covariance`,
      the sum of the squares of all covariances between different features, over F, of both views together.

    References:
      Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
      2022; weights and means as in the authors' code.
    """
    images, _, features = embeddings.shape
    centred = embeddings - embeddings.mean(0)
    deviations = jnp.sqrt((centred**2).sum(0) / (images - 1) + VICREG_EPSILON)
    covariances = jnp.einsum("bvf,bvg->vfg", centred, centred) / (images - 1)
    parts = {
        "invariance": jnp.mean((embeddings[:, 0] - embeddings[:, 1]) ** 2),
        "variance": jax.nn.relu(1 - deviations).mean(),
        "covariance": ((covariances * (1 - jnp.eye(features))) ** 2).sum() / features,
    }
    return sum(VICREG_WEIGHTS[name] * part for name, part in parts.items()), parts


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
