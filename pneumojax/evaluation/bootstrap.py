"""Bootstrap by patient: the resamples from which every interval of a split is computed.

A resample is a weight for each image: how often its patient was drawn. Metrics are computed for a matrix of weights,
one row per resample. The same resamples serve all metrics of a split, so differences between metrics are paired.
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
    """Resamples of the patients of a split. Draw them once per evaluation and pass them to every statistic.

    Attributes:
      patient_ids: [N], equal for images of one patient.
      resamples: number of resamples R.
      seed: seed of the draws.
      weights: [1 + R, N] float64, whole numbers. Row 0 is all ones: the split itself. Each other row draws as many
        patients as the split has, with replacement; the weight of an image is the number of times that its patient was
        drawn. The draws follow the sorted patient ids, so the order of the images does not affect any statistic.

    References:
      Efron and Tibshirani, An introduction to the bootstrap, 1993.
      Obuchowski, Nonparametric analysis of clustered ROC curve data, 1997: why images of one patient stay together.
    """

    def __init__(self, patient_ids: ArrayLike, resamples: int = RESAMPLES, seed: int = SEED):
        """Draws the resamples.

        Args:
          patient_ids: [N], equal for images of one patient.
          resamples: number of resamples R, 0 or more.
          seed: seed of the draws; the same seed draws the same patients.

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
        """Number of images N."""
        return len(self.patient_ids)

    def select(self, images: np.ndarray) -> "PatientBootstrap":
        """Restricts the resamples to some of the images, for a subgroup: the patients are still drawn from the split.

        Args:
          images: [N] bool.
        """
        part = copy.copy(self)
        part.patient_ids, part.weights = self.patient_ids[images], self.weights[:, images]
        return part

    def count_patients(self, images: np.ndarray) -> int:
        """Number of patients among the images that a [N] bool mask selects."""
        return len(np.unique(self.patient_ids[images]))


def count_patients_of_rarest_class(labels: np.ndarray, patient_ids: np.ndarray) -> int:
    """Patients of the class that has the fewest, among the classes that occur: [N] and [N] -> number."""
    return min(len(np.unique(patient_ids[labels == label])) for label in np.unique(labels))


def summarise(values: np.ndarray, reason: str, patients: int | None = None) -> dict:
    """Summarises a statistic of a split as its value and its 95 % percentile interval.

    The interval covers the middle 95 % of the resamples in which the statistic exists. It is None where fewer than 40
    resamples have the statistic, or where all of them agree.

    Args:
      values: [1 + R] float, of the split itself and of its resamples; NaN where the statistic does not exist.
      reason: why the statistic does not exist, in case it does not.
      patients: of the rarest class, for rates, which have an exact bound at 1 and 0; None for other statistics.

    Returns:
      {"value": float or None, "ci95": [low, high] or None}; where one of them is None, "reason" says why.
    """
    value, resampled = float(values[0]), values[1:]
    if math.isnan(value):
        return {"value": None, "ci95": None, "reason": reason}
    existing = resampled[~np.isnan(resampled)]
    if len(existing) < MIN_RESAMPLES_FOR_INTERVAL:
        few = (
            f"Exists in {len(existing)} of {len(resampled)} resamples; an interval needs {MIN_RESAMPLES_FOR_INTERVAL}."
        )
        return {"value": value, "ci95": None, "reason": few}
    low, high = np.percentile(existing, [2.5, 97.5]).tolist()
    if high - low > 1e-12:  # Smaller differences are rounding errors.
        return {"value": value, "ci95": [low, high]}
    if patients is not None:
        bound = 0.025 ** (1 / patients)
        if value > 1 - 1e-12:
            return {"value": value, "ci95": [bound, 1.0]}
        if value < 1e-12:
            return {"value": value, "ci95": [0.0, 1 - bound]}
    return {"value": value, "ci95": None, "reason": "The resamples do not differ, so they give no interval."}


def compute_band(resampled: np.ndarray) -> tuple[list[float], list[float]] | None:
    """Pointwise 95 % band of a curve.

    Args:
      resampled: [R, G] float: the curve of each resample at G points, without NaN.

    Returns:
      The 2.5 % and the 97.5 % percentile at each point, G floats each; None with fewer than 40 resamples.
    """
    if len(resampled) < MIN_RESAMPLES_FOR_INTERVAL:
        return None
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return low.tolist(), high.tolist()
