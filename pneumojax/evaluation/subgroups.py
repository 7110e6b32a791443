"""Metrics of subgroups of a split: kinds of pneumonia, grey and colour files, small and large images.

If a network relies on the size or the colour of the file instead of the lungs, its metrics differ between subgroups.
"""

import numpy as np
from numpy.typing import ArrayLike

from pneumojax.data.dataset import Split
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.metrics import compute_binary_metrics
from pneumojax.evaluation.point_metrics import compute_binary_scores

# Metrics of `metrics.compute_binary_metrics` that are reported for each subgroup.
REPORTED = ("auroc", "accuracy", "sensitivity", "specificity", "specificity_at_sensitivity_0.95")


def find_subgroups(split: Split) -> dict[str, tuple[str, np.ndarray]]:
    """Finds the subgroups of a split. They overlap.

    "bacterial" and "viral" contain the images of one kind of pneumonia and all NORMAL images. An image is small or
    narrow if its size or aspect ratio is at most the median of the split.

    Subgroups that contain all images of the split, or none, are left out. "bacterial" and "viral" are also left out if
    the split lacks one of the two kinds.

    Args:
      split: the split.

    Returns:
      {name: (description of its images, [N] bool)}.
    """
    pixels = split.heights.astype(np.int64) * split.widths
    aspects = split.widths / split.heights
    middle_pixels, middle_aspect = float(np.median(pixels)), float(np.median(aspects))
    grey, bacterial, viral = split.channels == 1, split.subtypes == 1, split.subtypes == 2
    both_kinds = bacterial.any() and viral.any()
    subgroups = {
        "bacterial": ("bacterial pneumonia and all NORMAL images", ~viral & both_kinds),
        "viral": ("viral pneumonia and all NORMAL images", ~bacterial & both_kinds),
        "grey": ("files of one channel", grey),
        "rgb": ("files of several channels", ~grey),
        "small": (f"up to {middle_pixels / 1e6:.2f} megapixels, the median", pixels <= middle_pixels),
        "large": (f"above {middle_pixels / 1e6:.2f} megapixels, the median", pixels > middle_pixels),
        "narrow": (f"width / height up to {middle_aspect:.2f}, the median", aspects <= middle_aspect),
        "wide": (f"width / height above {middle_aspect:.2f}, the median", aspects > middle_aspect),
        "without_duplicates": ("of byte-identical files only the first", split.duplicate_of == ""),
    }
    return {name: (holds, mask) for name, (holds, mask) in subgroups.items() if mask.any() and not mask.all()}


def compute_subgroups(
    split: Split, probabilities: ArrayLike, threshold: ArrayLike, bootstrap: PatientBootstrap
) -> dict[str, dict]:
    """Computes metrics of pneumonia against NORMAL in each subgroup, and of bacterial against viral pneumonia.

    Args:
      split: the evaluated split.
      probabilities: [N, C] float, 0..1, class 0 is NORMAL.
      threshold: threshold of the score for pneumonia in all subgroups: a float, or [N] with one for each image.
      bootstrap: resamples of the patients of the whole split.

    Returns:
      {name: {"holds": description, "images", "patients", "metrics": {name: {"value", "ci95"}}}} for each subgroup of
      `find_subgroups`, and for "bacterial_against_viral". The only metric of the latter is "auroc", computed from
      P(BACTERIA) and P(VIRUS) for the images of pneumonia. A number that does not exist is None, with a "reason".

    Raises:
      ValueError: shapes do not match, or a probability is not in 0..1.
    """
    probabilities = np.asarray(probabilities, np.float64)
    scores = compute_binary_scores(probabilities)
    threshold = np.broadcast_to(threshold, scores.shape)
    results = {}
    for name, (holds, of_group) in find_subgroups(split).items():
        group = {"holds": holds} | _count(of_group, bootstrap)
        values = compute_binary_metrics(
            split.subtypes[of_group], scores[of_group], threshold[of_group], bootstrap.select(of_group)
        )
        results[name] = group | {"metrics": {metric: values[metric] for metric in REPORTED}}
    kinds = {"holds": "pneumonia of either kind"} | _count(split.subtypes > 0, bootstrap)
    results["bacterial_against_viral"] = kinds | {"metrics": {"auroc": _compare_kinds(split, probabilities, bootstrap)}}
    return results


def _count(of_group: np.ndarray, bootstrap: PatientBootstrap) -> dict[str, int]:
    return {"images": int(of_group.sum()), "patients": bootstrap.count_patients(of_group)}


def _compare_kinds(split: Split, probabilities: np.ndarray, bootstrap: PatientBootstrap) -> dict:
    """Computes the AUROC of bacterial against viral pneumonia."""
    pneumonia = split.subtypes > 0
    bacterial = split.subtypes[pneumonia] == 1
    if probabilities.shape[1] == 2:
        reason = "The network was trained on two classes and does not distinguish the kinds of pneumonia."
        return {"value": None, "ci95": None, "reason": reason}
    if len(np.unique(bacterial)) < 2:
        reason = "Needs bacterial and viral pneumonia; the split lacks one of them."
        return {"value": None, "ci95": None, "reason": reason}
    # The ratio ranks images by the odds of bacterial against viral pneumonia, whatever P(NORMAL) is.
    ratio = probabilities[pneumonia, 1] / np.maximum(probabilities[pneumonia, 1:].sum(axis=1), 1e-300)
    return compute_binary_metrics(bacterial, ratio, 0.5, bootstrap.select(pneumonia))["auroc"]
