"""Validation during training: loss, accuracy and AUROC of the whole selection split."""

from collections.abc import Callable

import numpy as np

from pneumojax.evaluation import point_metrics
from pneumojax.evaluation.predict import compute_probabilities, make_predict_images
from pneumojax.state import TrainState
from pneumojax.training.plan import TrainingPlan


def make_validate(
    plan: TrainingPlan, labels: np.ndarray, images: np.ndarray
) -> Callable[[TrainState], dict[str, float]]:
    """Compiles the prediction of the selection split.

    Args:
      plan: the training plan.
      labels: [N] int32 class indices.
      images: [N, H, W] uint8, or features [N, K, ...] with `cached_views`.

    Returns:
      `validate(state) -> row`, with the row of `score_validation`.
    """
    predict_images = make_predict_images(plan.config, images, plan.mesh, cached=bool(plan.config.model.cached_views))

    def validate(state: TrainState) -> dict[str, float]:
        return score_validation(labels, predict_images(state.eval_variables()))

    return validate


def score_validation(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Computes a validation row of metrics.jsonl.

    Args:
      labels: [N] int32 class indices.
      logits: [N, C] float32.

    Returns:
      {"val/loss", "val/accuracy", "val/auroc"}, or the loss alone if it is not finite.
    """
    with np.errstate(invalid="ignore"):  # If logits are not finite, the loss of the row is NaN.
        probabilities = compute_probabilities(logits)
    if not np.isfinite(probabilities).all():
        return {"val/loss": float("nan")}
    auroc = point_metrics.compute_auroc(labels, point_metrics.compute_binary_scores(probabilities))
    assert auroc is not None  # Each split has images of both classes.
    true_class = probabilities[np.arange(len(labels)), labels]
    return {
        "val/loss": float(-np.log(np.maximum(true_class, 1e-300)).mean()),
        "val/accuracy": float((probabilities.argmax(-1) == labels).mean()),
        "val/auroc": auroc,
    }
