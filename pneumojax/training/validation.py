"""Validation during training: metrics of the whole selection split, and the score that chooses the best checkpoint.

Validation images resemble the training images, so their AUROC says little about images of another hospital. The AUROC
on the same images with swapped aspects (see `evaluation.aspect`) is therefore reported as well.
"""

from collections.abc import Callable

import numpy as np

from pneumojax.evaluation import point_metrics
from pneumojax.evaluation.predict import compute_probabilities, make_predict_images
from pneumojax.state import TrainState
from pneumojax.training.plan import TrainingPlan


def make_validate(
    plan: TrainingPlan, labels: np.ndarray, images: np.ndarray
) -> Callable[[TrainState], dict[str, float]]:
    """Makes a function that scores a training state on the selection split.

    Args:
      plan: the training plan.
      labels: [2N] int32, class indices of the split from `aspect.add_swapped`.
      images: [2N, H, W] uint8, images of that split, or with `cached_views` their features [2N, K, ...].

    Returns:
      `validate(state) -> row`. The row is from `score_validation`.
    """
    predict_images = make_predict_images(plan.config, images, plan.mesh, cached=bool(plan.config.model.cached_views))

    def validate(state: TrainState) -> dict[str, float]:
        return score_validation(labels, predict_images(state.eval_variables()))

    return validate


def score_validation(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Computes a validation row of metrics.jsonl.

    Args:
      labels: [2N] int32, class indices of the split from `aspect.add_swapped`.
      logits: [2N, C] float32 of its images.

    Returns:
      {"val/loss", "val/accuracy", "val/auroc", "val/shift_auroc"}, or the loss alone if it is not finite.
      val/shift_auroc is the AUROC on the N images with swapped aspects. The other metrics are of the N original images.
    """
    with np.errstate(invalid="ignore"):  # If logits are not finite, the loss of the row is NaN.
        probabilities = compute_probabilities(logits)
    if not np.isfinite(probabilities).all():
        return {"val/loss": float("nan")}
    labels = labels[: len(labels) // 2]
    scores, swapped = map(point_metrics.compute_binary_scores, np.split(probabilities, 2))
    auroc, shift_auroc = (point_metrics.compute_auroc(labels, one) for one in (scores, swapped))
    assert auroc is not None and shift_auroc is not None  # The split has images of both classes.
    probabilities = probabilities[: len(labels)]
    true_class = probabilities[np.arange(len(labels)), labels]
    return {
        "val/loss": float(-np.log(np.maximum(true_class, 1e-300)).mean()),
        "val/accuracy": float((probabilities.argmax(-1) == labels).mean()),
        "val/auroc": auroc,
        "val/shift_auroc": shift_auroc,
    }


def compute_selection_score(row: dict[str, float], select_by: str, step: int) -> float:
    """Computes the score of a checkpoint. The best checkpoint of a run is the one with the largest score.

    Args:
      row: from `score_validation`.
      select_by: auroc, shift or last, from the config.
      step: training step of the checkpoint.

    Returns:
      val/auroc for auroc, val/shift_auroc for shift, and the step for last.
    """
    return {"auroc": row["val/auroc"], "shift": row["val/shift_auroc"], "last": float(step)}[select_by]
