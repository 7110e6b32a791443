"""Decision curve: whether deciding by the score does more good than deciding for everybody, or for nobody.

Letters beside those of the package: G points of a grid.
"""

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.evaluation import metrics

# In steps of one percent. At 0 a false alarm costs nothing, at 1 a hit is worth nothing.
THRESHOLD_GRID = np.linspace(0.01, 0.99, 99)


def compute_decision_curve(
    labels: ArrayLike, scores: ArrayLike, patient_ids: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict:
    """Net benefit over the threshold probability, with its pointwise 95 % band by patient.

    Who decides for pneumonia from the probability t on holds a missed patient for (1 - t) / t times as bad as a false
    alarm. Net benefit counts hits for each image and takes off false alarms at that rate: hits / N - t / (1 - t) *
    false alarms / N. Deciding for nobody has 0.

    Args:
      labels: [N] int or bool; 0 is NORMAL, everything above is pneumonia.
      scores: [N] float, 0..1, calibrated: else a threshold does not mean what it says.
      patient_ids: [N], equal for images of one patient.
      resamples: number of bootstrap resamples R.
      seed: of the draws.

    Returns:
      {"threshold", "net_benefit", "treat_all": G floats each, "band": {"low", "high": G floats each}}; the band is None
      with fewer than 40 resamples.

    Raises:
      ValueError: lengths differ, or there is no image.

    References:
      Vickers and Elkin, Decision curve analysis: a novel method for evaluating prediction models, 2006.
      Vickers, Cronin, Elkin and Gonen, Extensions to decision curve analysis, 2008: the interval.
    """
    positive, scores = np.asarray(labels) > 0, np.asarray(scores, np.float64)
    if len(positive) != len(scores):
        raise ValueError(f"Lengths differ: labels {len(positive)}, scores {len(scores)}.")
    draws = metrics.compute_bootstrap_weights(patient_ids, resamples, seed)
    weights = np.concatenate([np.ones((1, len(scores))), draws])
    weights /= weights.sum(axis=1, keepdims=True)
    odds = THRESHOLD_GRID / (1 - THRESHOLD_GRID)
    decisions = (scores[:, None] >= THRESHOLD_GRID).astype(np.float64)
    benefit = (weights * positive) @ decisions - odds * ((weights * ~positive) @ decisions)
    prevalence = float(positive.mean())
    band = None
    if resamples >= metrics.MIN_RESAMPLES_FOR_INTERVAL:
        low, high = np.percentile(benefit[1:], [2.5, 97.5], axis=0)
        band = {"low": low.tolist(), "high": high.tolist()}
    return {
        "threshold": THRESHOLD_GRID.tolist(),
        "net_benefit": benefit[0].tolist(),
        "treat_all": (prevalence - odds * (1 - prevalence)).tolist(),
        "band": band,
    }
