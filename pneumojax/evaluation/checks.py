"""Checks of the arguments of the statistics. Each raises a ValueError with a sentence that names the problem."""

import numpy as np
from numpy.typing import ArrayLike


def check_binary(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Checks labels and scores, and converts the labels to two classes.

    Args:
      labels: [N] int or bool; 0 is negative (NORMAL), all others are positive.
      scores: [N] float, finite.

    Returns:
      (positive, scores): [N] bool, whether each image is positive, and [N] float64.

    Raises:
      ValueError: lengths differ, there are no images, an array is not one-dimensional, a score is not finite, or a
        label is negative.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    check_same_length(labels=labels, scores=scores)
    if labels.ndim != 1 or scores.ndim != 1:
        raise ValueError(f"Labels and scores must be lists, not of shape {labels.shape} and {scores.shape}.")
    check_finite("scores", scores)
    if labels.min() < 0:
        raise ValueError(f"Labels must be 0 or more, not {labels.min()}.")
    return labels > 0, scores


def check_probabilities(probabilities: ArrayLike) -> np.ndarray:
    """Converts probabilities [N, C], with C = 2 or 3, to float64.

    Raises:
      ValueError: the shape is not [N, 2] or [N, 3], or the numbers are not between 0 and 1.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] not in (2, 3):
        raise ValueError(f"Probabilities must have the shape [N, 2] or [N, 3], not {list(probabilities.shape)}.")
    check_unit_interval("Probabilities", probabilities)
    return probabilities


def check_unit_interval(what: str, numbers: np.ndarray) -> None:
    """Raises a ValueError if a number is not in 0..1 or is NaN. `what` names the numbers in the message."""
    # The sum of float32 probabilities can exceed 1 by a rounding error.
    if not np.all((numbers >= -1e-6) & (numbers <= 1 + 1e-6)):
        raise ValueError(f"{what} must be between 0 and 1; these hold other numbers, or NaN. Are they logits?")


def check_finite(what: str, numbers: np.ndarray) -> None:
    """Raises a ValueError if a number is NaN or infinite. `what` names the numbers in the message."""
    if not np.isfinite(numbers).all():
        raise ValueError(f"{np.sum(~np.isfinite(numbers))} of {numbers.size} {what} are not finite numbers.")


def check_same_length(**arrays: np.ndarray) -> None:
    """Raises a ValueError if the arrays differ in length or are empty. The message has the names of the arguments."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Lengths differ: {', '.join(f'{name} {length}' for name, length in lengths.items())}.")
    if 0 in lengths.values():
        raise ValueError("There is no image to score.")


def check_indices(what: str, indices: np.ndarray, classes: int) -> None:
    """Raises a ValueError if an index is not in 0..classes - 1. `what` names the indices in the message."""
    if indices.min() < 0 or indices.max() >= classes:
        raise ValueError(
            f"Each {what} must be a class index, 0 to {classes - 1}; found {indices.min()} to {indices.max()}."
        )
