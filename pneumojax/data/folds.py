"""Selects the images that a run uses: the splits of a fold, or a share of the patients. Patients are never split."""

import re

import numpy as np

from pneumojax.errors import UserError
from tfds_builder import kermany_pneumonia


def split_fold(
    patient_ids: np.ndarray, subtypes: np.ndarray, folds: int, fold: int, series: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Splits all training images into the train, validation and test split of one fold.

    No patient is in two of the splits. Each split has about the same share of each subtype, unless series are given.

    Args:
      patient_ids: [N] strings.
      subtypes: [N] int, index into NORMAL, BACTERIA, VIRUS.
      folds: number of folds.
      fold: index of the fold, from 0.
      series: [N] strings, from `find_series`. If given, the NORMAL images of test are all those of one series. Series
        differ in scanner or in time, so test is a natural shift of the data. They are sorted by name.

    Returns:
      {"train", "validation", "test"}, a mask [N] bool for each. test is the fold itself. validation has 15 % of
      the other images, as in the prepared data set. Its patients are chosen separately for each fold.

    Raises:
      UserError: the number of folds is not the number of series, or a patient is in two series.
    """

    def choose(among: np.ndarray, share: float, salt: str) -> np.ndarray:
        chosen = kermany_pneumonia.choose_share(patient_ids[among].tolist(), subtypes[among].tolist(), share, salt)
        return among & np.isin(patient_ids, list(chosen))

    rest = np.ones(len(patient_ids), bool)
    for i in range(fold + 1):
        test = choose(rest, 1 / (folds - i), "folds") if i < folds - 1 else rest
        rest = rest & ~test
    if series is not None:
        test = np.where(subtypes == 0, series == _name_series(subtypes, series, folds)[fold], test)
        if set(patient_ids[test]) & set(patient_ids[~test]):
            raise UserError("folds_by=series cannot split this data set, because a patient has images of two series.")
    validation = choose(~test, kermany_pneumonia.VALIDATION_FRACTION, f"fold {fold}")
    return {"train": ~test & ~validation, "validation": validation, "test": test}


def _name_series(subtypes: np.ndarray, series: np.ndarray, folds: int) -> np.ndarray:
    """Returns the sorted names of the NORMAL images' series. Raises UserError if there are not as many as folds."""
    names = np.unique(series[subtypes == 0])
    if len(names) != folds:
        raise UserError(
            f"folds_by=series needs folds={len(names)}, because the NORMAL images have the series {', '.join(names)}."
        )
    return names


def find_series(filenames: np.ndarray) -> np.ndarray:
    """Returns the series of each image [N], the first part of its file name, such as IM, NORMAL2 or person1."""
    return np.array([re.split(r"[^A-Za-z0-9]", name)[0] for name in filenames])


def choose_patients(patient_ids: np.ndarray, subtypes: np.ndarray, share: float) -> np.ndarray:
    """Chooses patients who have a given share of the images of each class. The choice is deterministic.

    Args:
      patient_ids: [N] strings.
      subtypes: [N] int, index into NORMAL, BACTERIA, VIRUS.
      share: share of the images, above 0 and below 1.

    Returns:
      [N] bool, the images of the chosen patients.

    Raises:
      UserError: the share is so small that a class would have no image.
    """
    chosen = kermany_pneumonia.choose_share(patient_ids.tolist(), subtypes.tolist(), share, "train_share")
    mask = np.isin(patient_ids, list(chosen))
    if len(np.unique(subtypes[mask])) < len(np.unique(subtypes)):
        raise UserError(f"train_share={share} is too small: a class would have no training image.")
    return mask
