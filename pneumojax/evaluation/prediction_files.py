"""Reads the prediction files of an evaluation, so that they can be analysed without the network."""

import csv
import dataclasses
import io
import json
import pathlib

import numpy as np

from pneumojax.errors import UserError
from pneumojax.evaluation.checks import check_probabilities
from pneumojax.files import lock_folder


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a split, sorted by filename.

    Attributes:
      workdir: folder of the run.
      class_names: C names, NORMAL first.
      filenames: [N] str, unique.
      patient_ids: [N] str.
      labels: [N] int64, 0..C - 1.
      probabilities: [N, C] float64, 0..1.
      threshold: threshold of the score for pneumonia, chosen on another split. After a cross-validation it is [N]
        float64: each image has the threshold of the run that scored it.
      fingerprint: hash of the names, labels, patients and image bytes of the split.
    """

    workdir: pathlib.Path
    class_names: list[str]
    filenames: np.ndarray
    patient_ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    threshold: float | np.ndarray
    fingerprint: str

    def to_binary(self) -> "Predictions":
        """Converts predictions of either task to predictions of NORMAL against pneumonia."""
        normal = self.probabilities[:, 0]
        return dataclasses.replace(
            self,
            class_names=["NORMAL", "PNEUMONIA"],
            labels=(self.labels > 0).astype(np.int64),
            probabilities=np.stack([normal, 1 - normal], axis=1),
        )


def read_predictions(workdir: str | pathlib.Path, split: str) -> Predictions:
    """Reads predictions.csv and metrics.json from `<workdir>/evaluation/<split>/`.

    Args:
      workdir: folder of a run that was evaluated on the split.
      split: train, validation, test or out_of_fold.

    Returns:
      The predictions.

    Raises:
      UserError: the run was not evaluated on the split, or the files are damaged.
    """
    workdir = pathlib.Path(workdir).expanduser()
    directory = workdir / "evaluation" / split
    if not directory.parent.is_dir():
        raise _not_evaluated(workdir, split)
    with lock_folder(directory.parent, shared=True):  # Both files then belong to the same evaluation.
        try:
            text = (directory / "predictions.csv").read_text()
            results = json.loads((directory / "metrics.json").read_text())
        except FileNotFoundError as error:
            raise _not_evaluated(workdir, split) from error
        except (OSError, ValueError) as error:
            raise _damaged(directory, error) from error
    try:
        rows = sorted(csv.DictReader(io.StringIO(text)), key=lambda row: row["filename"])
        images = results["counts"]["images"]
        if not len(rows) == images > 0:
            raise ValueError(f"predictions.csv has {len(rows)} rows, but {images} images were scored")
        names = list(results["run"]["class_names"])
        predictions = Predictions(
            workdir=workdir,
            class_names=names,
            filenames=np.array([row["filename"] for row in rows]),
            patient_ids=np.array([row["patient_id"] for row in rows]),
            labels=np.array([names.index(row["label"]) for row in rows]),
            probabilities=check_probabilities([[float(row[f"probability_{name}"]) for name in names] for row in rows]),
            threshold=_read_threshold(rows, results),
            fingerprint=results["run"]["split"]["fingerprint"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, error) from error
    return predictions


def _not_evaluated(workdir: pathlib.Path, split: str) -> UserError:
    return UserError(
        f"{workdir} was not evaluated on {split}. Evaluate it first: "
        f"scripts/run experiments/evaluate.py --workdir={workdir} --split={split}"
    )


def _damaged(directory: pathlib.Path, error: Exception) -> UserError:
    return UserError(f"the evaluation in {directory} is damaged ({error!r}). Evaluate the run again.")


def _read_threshold(rows: list[dict], results: dict) -> float | np.ndarray:
    if "threshold" in rows[0]:
        return np.array([float(row["threshold"]) for row in rows])
    return float(results["threshold"]["value"])


def check_same_images(a: Predictions, b: Predictions) -> None:
    """Checks that two runs were evaluated on the same images, labels and patients.

    Args:
      a: predictions of one run.
      b: predictions of the other run.

    Raises:
      UserError: the runs were evaluated on different data. The message says how they differ.
    """
    only_a, only_b = (np.setdiff1d(*pair) for pair in ((a.filenames, b.filenames), (b.filenames, a.filenames)))
    if len(only_a) or len(only_b):
        parts = []
        for run, only in ((a, only_a), (b, only_b)):
            if len(only):
                some = ", ".join(only[:3]) + (", ..." if len(only) > 3 else "")
                parts.append(f"{len(only)} of {len(run.filenames)} images are only in {run.workdir} ({some})")
        how = ", and ".join(parts)
    elif differing := [*a.filenames[(a.labels > 0) != (b.labels > 0)]]:
        how = f"{len(differing)} images have different labels, the first of them {differing[0]}"
    elif differing := [*a.filenames[a.patient_ids != b.patient_ids]]:
        how = f"{len(differing)} images have different patients, the first of them {differing[0]}"
    elif a.fingerprint != b.fingerprint:
        how = "files of the same name contain different images, or their subtypes differ"
    else:
        return
    raise UserError(
        f"{a.workdir} and {b.workdir} were scored on different data: {how}. Evaluate both on the same data set."
    )
