"""Recalibration: fits a temperature and a bias for each class, and converts scores to another prevalence.

`calibration.py` measures how close the results are to probabilities.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from pneumojax.evaluation.checks import check_indices, check_probabilities, check_same_length, check_unit_interval

# Log-odds are clipped to this value. It corresponds to a probability of 1e-300, near the smallest normal float64.
LARGEST_LOG_ODDS = 690.0


def fit_calibration(labels: ArrayLike, probabilities: ArrayLike) -> tuple[float, np.ndarray] | None:
    """Fits the temperature T and the biases b that maximise the likelihood of the labels under softmax(logits / T + b).

    This is bias-corrected temperature scaling. With two classes it is Platt scaling of the log-odds. The mean
    calibrated probability of each class is the share of the class among the labels.

    There is no maximum if some choice of T and b makes the true class the most probable one of every image, which is
    always so if a class has no image. There is none above T = 0 if the probabilities are no better than chance.

    Args:
      labels: [N] int, 0..C - 1.
      probabilities: [N, C] float, 0..1: softmax of the logits.

    Returns:
      (T, b): T is above 0, and above 1 if the network was overconfident. b is [C] float64 with b[0] = 0. None if the
      likelihood has no maximum.

    Raises:
      ValueError: lengths differ, there are no images, a label is not a class, or a probability is not in 0..1.

    References:
      Alexandari, Kundaje and Shrikumar, Maximum likelihood with bias-corrected calibration is hard-to-beat at label
        shift adaptation, 2020.
      Guo, Pleiss, Sun and Weinberger, On calibration of modern neural networks, 2017: the temperature.
    """
    from scipy import optimize  # Imported here because it takes half a second, and training imports this module.

    labels, logits = np.asarray(labels), compute_logits(probabilities)
    check_same_length(labels=labels, probabilities=logits)
    check_indices("label", labels, logits.shape[1])
    images, classes = logits.shape
    # covariates[n, c] @ (1 / T, b[1], ...) is logit c of image n, relative to that of its own class.
    one_hot = np.broadcast_to(np.eye(classes)[:, 1:], (images, classes, classes - 1))
    covariates = np.concatenate([logits[:, :, None], one_hot], axis=2)
    covariates = covariates - covariates[np.arange(images), labels][:, None]
    scale = np.abs(covariates[:, :, 0]).max() or 1.0
    covariates[:, :, 0] /= scale
    if not _has_maximum(covariates):
        return None

    def compute_loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margins = covariates @ parameters
        weights = special.softmax(margins, axis=1)
        gradient = np.einsum("nc,ncp->p", weights, covariates) / images
        return float(special.logsumexp(margins, axis=1).mean()), gradient

    start = np.append(scale, np.zeros(classes - 1))
    found = optimize.minimize(compute_loss, start, jac=True, method="BFGS", options={"gtol": 1e-10})
    slope = found.x[0] / scale
    if not np.isfinite(found.x).all() or np.abs(found.jac).max() > 1e-6 or slope <= 0:
        return None
    return 1 / slope, np.append(0.0, found.x[1:])


def apply_calibration(probabilities: ArrayLike, temperature: ArrayLike, biases: ArrayLike) -> np.ndarray:
    """Computes the calibrated probabilities, softmax(logits / temperature + biases).

    Args:
      probabilities: [N, C] float, 0..1: softmax of the logits.
      temperature: a float above 0, or [N] with one for each image.
      biases: [C] float, or [N, C] with one row for each image. With temperature 1 and biases 0, only the last bits
        change.

    Returns:
      [N, C] float64, 0..1. With two classes, the order of the images by score does not change. With three it can.

    Raises:
      ValueError: the shape is not [N, 2] or [N, 3], or a probability is not in 0..1.
    """
    return special.softmax(compute_logits(probabilities) / np.asarray(temperature)[..., None] + biases, axis=1)


def shift_prevalence(scores: ArrayLike, prevalence: float, new_prevalence: float) -> np.ndarray:
    """Converts probabilities of pneumonia to another prevalence.

    The odds of each score are multiplied by the ratio of the odds of the two prevalences. This assumes that only the
    prevalence differs, and that the images of each class have the same distribution (label shift).

    Args:
      scores: [N] float, 0..1: probabilities of pneumonia that are calibrated at `prevalence`.
      prevalence: share of pneumonia, between 0 and 1.
      new_prevalence: the new share of pneumonia, between 0 and 1.

    Returns:
      [N] float64, 0..1.

    Raises:
      ValueError: a prevalence is not between 0 and 1, or a score is not in 0..1.

    References:
      Saerens, Latinne and Decaestecker, Adjusting the outputs of a classifier to new a priori probabilities, 2002.
    """
    for share in (prevalence, new_prevalence):
        if not 0 < share < 1:
            raise ValueError(f"A prevalence must be between 0 and 1, not {share}.")
    scores = np.asarray(scores, np.float64)
    check_unit_interval("Scores", scores)
    with_pneumonia = scores * (new_prevalence / prevalence)
    without = (1 - scores) * ((1 - new_prevalence) / (1 - prevalence))
    return with_pneumonia / (with_pneumonia + without)


def compute_logits(probabilities: ArrayLike) -> np.ndarray:
    """Computes logits from probabilities, up to a constant for each image.

    Args:
      probabilities: [N, C] float, 0..1.

    Returns:
      [N, C] float64, -690..0.

    Raises:
      ValueError: the shape is not [N, 2] or [N, 3], or a probability is not in 0..1.
    """
    return np.log(np.maximum(check_probabilities(probabilities), math.exp(-LARGEST_LOG_ODDS)))


def _has_maximum(covariates: np.ndarray) -> bool:
    """Returns whether a multinomial likelihood has a finite maximum: no parameters separate the classes.

    A linear program searches the parameters in -1..1 whose logits of the other classes are at most those of the true
    class for all images, and lower for some.

    Args:
      covariates: [N, C, P] float, relative to those of the true class, so that a separated class is below 0.

    References:
      Albert and Anderson, On the existence of maximum likelihood estimates in logistic regression models, 1984.
    """
    from scipy import optimize

    rows = covariates.reshape(-1, covariates.shape[2])
    rows = np.unique(rows[np.any(rows != 0, axis=1)], axis=0)
    if not len(rows):
        return False
    best = optimize.linprog(rows.mean(axis=0), rows, np.zeros(len(rows)), bounds=(-1, 1), method="highs")
    return bool(best.success and best.fun > -1e-9)
