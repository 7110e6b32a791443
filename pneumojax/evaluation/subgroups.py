"""Whether a classifier is as good on every part of a split: on each kind of pneumonia, of file and of size.

A network that reads the file's size or colour instead of the lungs shows here.
"""

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.data.dataset import Split
from pneumojax.evaluation import metrics

# What is reported of each subgroup, of the metrics of `metrics.compute_metrics`.
REPORTED = ("auroc", "accuracy", "sensitivity", "specificity", "specificity_at_sensitivity_0.95")


def find_subgroups(split: Split) -> dict[str, tuple[str, np.ndarray]]:
    """The subgroups of a split, which overlap.

    Args:
      split: the split.

    Returns:
      {name: (what it holds, [N] bool)}. bacterial and viral are each kind of pneumonia with all NORMAL images. Sizes
      are cut at the median of the split, images of the median being small, or narrow.
    """
    pixels = split.heights.astype(np.int64) * split.widths
    aspects = split.widths / split.heights
    middle_pixels, middle_aspect = float(np.median(pixels)), float(np.median(aspects))
    grey = split.channels == 1
    return {
        "bacterial": ("bacterial pneumonia and all NORMAL images", split.subtypes != 2),
        "viral": ("viral pneumonia and all NORMAL images", split.subtypes != 1),
        "grey": ("files of one channel", grey),
        "rgb": ("files of several channels", ~grey),
        "small": (f"up to {middle_pixels / 1e6:.2f} megapixels, the median", pixels <= middle_pixels),
        "large": (f"above {middle_pixels / 1e6:.2f} megapixels, the median", pixels > middle_pixels),
        "narrow": (f"width / height up to {middle_aspect:.2f}, the median", aspects <= middle_aspect),
        "wide": (f"width / height above {middle_aspect:.2f}, the median", aspects > middle_aspect),
        "without_duplicates": ("of byte-identical files only the first", split.duplicate_of == ""),
    }


def compute_subgroups(
    split: Split, probabilities: ArrayLike, threshold: ArrayLike, resamples: int = 1000, seed: int = 0
) -> dict[str, dict]:
    """Metrics of pneumonia against NORMAL in each subgroup, and of one kind of pneumonia against the other.

    Args:
      split: what was scored.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      threshold: of the score for pneumonia, the same for all groups; one for all images or [N].
      resamples: number of bootstrap resamples R; they draw patients of the whole split.
      seed: of the draws.

    Returns:
      {name: {"holds", "images", "patients", "metrics": {name: {"value", "ci95"}}}} for `find_subgroups`, and
      "bacterial_against_viral" with "auroc" as its one metric: of P(BACTERIA) against P(VIRUS) within pneumonia. Where
      a number does not exist, it is None with a "reason".

    Raises:
      ValueError: shapes do not fit, or a probability is outside 0..1.
    """
    probabilities = np.asarray(probabilities, np.float64)
    draws = metrics.compute_bootstrap_weights(split.patient_ids, resamples, seed)
    weights = np.concatenate([np.ones((1, len(split))), draws])
    scores = metrics.compute_binary_scores(probabilities)
    threshold = np.broadcast_to(threshold, scores.shape)

    results = {}
    for name, (holds, of_group) in find_subgroups(split).items():
        group = {"holds": holds} | _count(split, of_group)
        if not of_group.any():
            reason = "The split has no such image."
            group["metrics"] = {metric: {"value": None, "ci95": None, "reason": reason} for metric in REPORTED}
        else:
            values = metrics.compute_score_values(
                split.subtypes[of_group] > 0, scores[of_group], threshold[of_group], weights[:, of_group]
            )
            patients = metrics.count_patients_of_rarest_class(split.subtypes[of_group] > 0, split.patient_ids[of_group])
            group["metrics"] = {
                metric: metrics.summarise(values[metric], metrics.explain(metric), patients) for metric in REPORTED
            }
        results[name] = group

    pneumonia = split.subtypes > 0
    results["bacterial_against_viral"] = {"holds": "pneumonia of either kind"} | _count(split, pneumonia)
    results["bacterial_against_viral"]["metrics"] = {"auroc": _compare_kinds(split, probabilities, pneumonia, weights)}
    return results


def _count(split: Split, of_group: np.ndarray) -> dict[str, int]:
    return {"images": int(of_group.sum()), "patients": len(np.unique(split.patient_ids[of_group]))}


def _compare_kinds(split: Split, probabilities: np.ndarray, pneumonia: np.ndarray, weights: np.ndarray) -> dict:
    if probabilities.shape[1] == 2:
        reason = "The network was trained on two classes and does not tell the kinds of pneumonia apart."
        return {"value": None, "ci95": None, "reason": reason}
    bacterial = split.subtypes[pneumonia] == 1
    if len(np.unique(bacterial)) < 2:
        return {
            "value": None,
            "ci95": None,
            "reason": "Needs bacterial and viral pneumonia; the split lacks one of them.",
        }
    # The ratio orders images as the odds of bacterial against viral do, whatever P(NORMAL) is.
    ratio = probabilities[pneumonia, 1] / np.maximum(probabilities[pneumonia, 1:].sum(axis=1), 1e-300)
    values = metrics.compute_score_values(bacterial, ratio, 0.5, weights[:, pneumonia])["auroc"]
    patients = metrics.count_patients_of_rarest_class(bacterial, split.patient_ids[pneumonia])
    return metrics.summarise(values, "", patients)
