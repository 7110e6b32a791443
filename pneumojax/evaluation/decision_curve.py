"""Decision curve analysis: is it better to act on the score than to treat everybody, or nobody?

Additional letters in shapes: G points of a grid.
"""

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.evaluation.bootstrap import PatientBootstrap, compute_band
from pneumojax.evaluation.checks import check_binary, check_same_length

# Threshold probabilities in steps of one percent. 0 and 1 are left out: at 0 a false positive has no cost, and at 1 a
# true positive has no benefit.
THRESHOLD_GRID = np.linspace(0.01, 0.99, 99)


def compute_decision_curve(labels: ArrayLike, scores: ArrayLike, bootstrap: PatientBootstrap) -> dict:
    """Computes the net benefit at each threshold probability, with its pointwise 95 % band.

    A reader who treats every patient with a probability of at least t considers a false negative (1 - t) / t times as
    bad as a false positive. The net benefit is true positives / N - t / (1 - t) * false positives / N. Treating nobody
    has a net benefit of 0.

    Args:
      labels: [N] int or bool; 0 is NORMAL, all others are pneumonia.
      scores: [N] float, 0..1. They must be calibrated, because they are compared with threshold probabilities.
      bootstrap: resamples of the split's patients.

    Returns:
      {"threshold", "net_benefit", "treat_all": G floats each, "band": {"low", "high": G floats each}}. The band is None
      with fewer than 40 resamples.

    Raises:
      ValueError: lengths differ, there are no images, or a score is not finite.

    References:
      Vickers and Elkin, Decision curve analysis: a novel method for evaluating prediction models, 2006.
      Vickers, Cronin, Elkin and Gonen, Extensions to decision curve analysis, 2008: the interval.
    """
    positive, scores = check_binary(labels, scores)
    check_same_length(scores=scores, patient_ids=bootstrap.patient_ids)
    weights = bootstrap.weights / bootstrap.weights.sum(axis=1, keepdims=True)
    odds = THRESHOLD_GRID / (1 - THRESHOLD_GRID)
    decisions = (scores[:, None] >= THRESHOLD_GRID).astype(np.float64)
    benefit = (weights * positive) @ decisions - odds * ((weights * ~positive) @ decisions)
    prevalence = float(positive.mean())
    band = compute_band(benefit[1:])
    return {
        "threshold": THRESHOLD_GRID.tolist(),
        "net_benefit": benefit[0].tolist(),
        "treat_all": (prevalence - odds * (1 - prevalence)).tolist(),
        "band": band and {"low": band[0], "high": band[1]},
    }
