"""Selects the images that a run uses: the splits of a fold, or a share of the patients. Patients are never split."""

import numpy as np

from pneumojax.errors import UserError
from tfds_builder import kermany_pneumonia


def split_fold(patient_ids: np.ndarray, subtypes: np.ndarray, folds: int, fold: int) -> dict[str, np.ndarray]:
    """Splits all training images into the train, validation and test split of one fold.

    No patient is in two of the splits, and each split has about the same share of each subtype.

    Args:
      patient_ids: [N] strings.
      subtypes: [N] int, index into NORMAL, BACTERIA, VIRUS.
      folds: number of folds.
      fold: index of the fold, from 0.

    Returns:
      {"train", "validation", "test"}, a mask [N] bool for each. test is the fold itself. validation has 15 % of
      the other images, as in the prepared data set. Its patients are chosen separately for each fold.
    """

    def choose(among: np.ndarray, share: float, salt: str) -> np.ndarray:
        chosen = kermany_pneumonia.choose_share(patient_ids[among].tolist(), subtypes[among].tolist(), share, salt)
        return among & np.isin(patient_ids, list(chosen))

    rest = np.ones(len(patient_ids), bool)
    for i in range(fold + 1):
        test = choose(rest, 1 / (folds - i), "folds") if i < folds - 1 else rest
        rest = rest & ~test
    validation = choose(~test, kermany_pneumonia.VALIDATION_FRACTION, f"fold {fold}")
    return {"train": ~test & ~validation, "validation": validation, "test": test}


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
