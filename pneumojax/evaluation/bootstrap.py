"""Bootstrap by patient, and the intervals that are computed from its resamples.

A resample is represented by a weight for each image, the number of times that its patient was sampled. Metrics are
computed for a matrix of weights with a row for each resample. All metrics of a split use the same resamples, so
differences between metrics are paired.
"""

import copy
import math

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
SEED = 0

# With fewer resamples than 1 / 0.025, the 2.5 % and 97.5 % percentiles would be the smallest and largest resample.
MIN_RESAMPLES_FOR_INTERVAL = 40


class PatientBootstrap:
    """Resamples of the patients of a split. Make one object for each evaluation and pass it to every statistic.

    Each resample has as many patients as the split, sampled with replacement, with all of their images. The resamples
    depend on the sorted patient ids, so the order of the images does not affect any statistic.

    Attributes:
      patient_ids: [N], equal for images of one patient.
      resamples: number of resamples R.
      seed: seed of the resamples.
      weights: [1 + R, N] float64, whole numbers. The weight of an image is the number of times that its patient is in
        the resample. Row 0 is the split itself and has only ones.

    References:
      Efron and Tibshirani, An introduction to the bootstrap, 1993.
      Obuchowski, Nonparametric analysis of clustered ROC curve data, 1997: why images of one patient stay together.
    """

    def __init__(self, patient_ids: ArrayLike, resamples: int = RESAMPLES, seed: int = SEED):
        """Samples the patients.

        Args:
          patient_ids: [N], equal for images of one patient.
          resamples: number of resamples R, 0 or more.
          seed: seed of the resamples.

        Raises:
          ValueError: resamples is negative, or there are no images.
        """
        if resamples < 0:
            raise ValueError(f"The number of resamples must be 0 or more, not {resamples}.")
        self.patient_ids, self.resamples, self.seed = np.asarray(patient_ids), resamples, seed
        patients, patient_of_image = np.unique(self.patient_ids, return_inverse=True)
        if len(patients) == 0:
            raise ValueError("There are no images to resample.")
        draws = np.random.default_rng(seed).integers(len(patients), size=(resamples, len(patients)))
        # An offset for each row, so that one bincount counts the draws of all rows.
        draws += len(patients) * np.arange(resamples)[:, None]
        counts = np.bincount(draws.ravel(), minlength=draws.size).reshape(draws.shape)
        self.weights = np.concatenate([np.ones((1, len(self.patient_ids))), counts[:, patient_of_image]])

    def __len__(self) -> int:
        """Returns the number of images N."""
        return len(self.patient_ids)

    def select(self, images: np.ndarray) -> "PatientBootstrap":
        """Returns the same resamples, restricted to a subgroup of the images.

        Args:
          images: [N] bool, the images of the subgroup.
        """
        part = copy.copy(self)
        part.patient_ids, part.weights = self.patient_ids[images], self.weights[:, images]
        return part

    def count_patients(self, images: np.ndarray) -> int:
        """Counts the patients of some of the images.

        Args:
          images: [N] bool, the images.
        """
        return len(np.unique(self.patient_ids[images]))

    def count_pairs(self, positive: np.ndarray) -> int:
        """Counts the pairs that can be formed of a patient with a positive and a patient with a negative image.

        Each patient is in at most one pair. The result is the largest number of such pairs.

        Args:
          positive: [N] bool, whether an image is positive.
        """
        patients = len(np.unique(self.patient_ids))
        # The third bound matters only if patients have images of both classes.
        return min(self.count_patients(positive), self.count_patients(~positive), patients // 2)


def summarise(values: np.ndarray, reason: str, patients: int | None = None) -> dict:
    """Summarises a statistic of a split as its value and its 95 % interval.

    The interval is the percentile interval: it covers the middle 95 % of the resamples in which the statistic exists.
    It is None if the statistic exists in fewer than 40 resamples, or if all resamples give the same value.

    A proportion of exactly 1 or 0 is an exception. All of its resamples give the same value, although the proportion is
    uncertain. Its interval is the exact one of Clopper and Pearson for n of n, or 0 of n. For a value of 1, the lower
    bound is 0.025 ** (1 / n). n is the number of patients in the denominator of the proportion, because images of one
    patient are not independent.

    The same interval is valid for an AUROC of 1 or 0, if n is the number of disjoint pairs of a patient with a positive
    image and a patient with a negative image (`PatientBootstrap.count_pairs`). The AUROC is the probability that a
    pair is in the right order. If the AUROC of the split is 1, all n disjoint pairs are in the right order. They are
    independent, so the probability of this is at most the true AUROC to the power of n.

    Args:
      values: [1 + R] float, the statistic of the split itself and of its resamples. NaN means that it does not exist.
      reason: the reason to report if the statistic does not exist in the split.
      patients: n for a proportion or an AUROC; None for other statistics, which have no exact interval.

    Returns:
      {"value": float or None, "ci95": [low, high] or None}. If one of them is None, "reason" says why.

    References:
      Efron and Tibshirani, An introduction to the bootstrap, 1993: percentile intervals.
      Clopper and Pearson, The use of confidence or fiducial limits, 1934.
      Hoeffding, Probability inequalities for sums of bounded random variables, 1963, section 5: disjoint pairs.
    """
    value, resampled = float(values[0]), values[1:]
    if math.isnan(value):
        return {"value": None, "ci95": None, "reason": reason}
    if patients and value in (0.0, 1.0):
        bound = 0.025 ** (1 / patients)
        return {"value": value, "ci95": [bound, 1.0] if value else [0.0, 1 - bound]}
    existing = resampled[~np.isnan(resampled)]
    if len(existing) < MIN_RESAMPLES_FOR_INTERVAL:
        few = (
            f"Exists in {len(existing)} of {len(resampled)} resamples; an interval needs {MIN_RESAMPLES_FOR_INTERVAL}."
        )
        return {"value": value, "ci95": None, "reason": few}
    low, high = np.percentile(existing, [2.5, 97.5]).tolist()
    if high - low > 1e-12:  # Smaller differences are rounding errors.
        return {"value": value, "ci95": [low, high]}
    agree = "All resamples give the same value, so there is no interval, and this statistic has no exact interval."
    return {"value": value, "ci95": None, "reason": agree}


def compute_band(resampled: np.ndarray) -> tuple[list[float], list[float]] | None:
    """Computes the pointwise 95 % band of a curve.

    Args:
      resampled: [R, G] float without NaN: the curve of each resample at G points.

    Returns:
      (low, high): the 2.5 % and the 97.5 % percentile at each point, G floats each. None with fewer than 40 resamples.
    """
    if len(resampled) < MIN_RESAMPLES_FOR_INTERVAL:
        return None
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return low.tolist(), high.tolist()
