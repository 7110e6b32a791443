"""Several runs that predict together: the mean of their calibrated probabilities."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from pneumojax.checkpoint import find_replicas
from pneumojax.config import Config
from pneumojax.data.dataset import Split
from pneumojax.errors import UserError
from pneumojax.evaluation.calibration import apply_temperature
from pneumojax.evaluation.operating_point import load_or_fit_calibration
from pneumojax.evaluation.run import Run, open_run


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several runs, evaluated as one. It is a `Predictor`.

    Attributes:
      workdir: folder of its own threshold, calibration and evaluations.
      members: the runs. All have the same task.
    """

    workdir: pathlib.Path
    members: tuple[Run, ...]

    @property
    def info(self) -> dict:
        """The first member's, and which runs the members are."""
        return self.members[0].info | {"members": self.identity["checkpoint_step"]}

    @property
    def config(self) -> Config:
        """The first member's."""
        return self.members[0].config

    @property
    def checkpoint(self) -> str:
        """The first member's: best or latest."""
        return self.members[0].checkpoint

    @property
    def identity(self) -> dict:
        """The folder, step and start of each member, and its number of views. A retrained member has another start."""
        return {
            "checkpoint_step": [
                {"workdir": str(run.workdir.resolve()), "step": run.step, "created": run.info.get("created")}
                for run in self.members
            ],
            "test_time_views": [run.identity["test_time_views"] for run in self.members],
        }

    def score(self, split_name: str) -> tuple[Split, np.ndarray]:
        """Averages the members' calibrated probabilities. See `Predictor.score`.

        Raises:
          UserError: the members have different data, or a split is missing or damaged.
        """
        splits: list[Split] = []
        calibrated: list[np.ndarray] = []
        for run in self.members:
            split, probabilities = run.score(split_name)
            if splits and split.fingerprint != splits[0].fingerprint:
                raise UserError(
                    f"{self.members[0].workdir} and {run.workdir} score different {split_name} images. "
                    "Name with --data_dir the one data set that all are to be scored on."
                )
            splits.append(split)
            calibrated.append(apply_temperature(probabilities, load_or_fit_calibration(run)["temperature"]))
        return splits[0], np.mean(calibrated, axis=0)


def open_ensemble(
    workdirs: Sequence[str | pathlib.Path],
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Ensemble:
    """Opens several runs as one. Its folder is next to the first run's and is named after all of them, as `a+b+c`.

    Args:
      workdirs: folders of the runs, in any order. Their networks and image sizes may differ.
      checkpoint: best or latest, of each run.
      data_dir: where the data sets are now. None: where the runs found them.
      test_time_views: how many views of each image are averaged. None: as many as each run's config says.

    Raises:
      UserError: a run cannot be opened or is named twice, or the runs have different classes or selection splits.
    """
    runs = [open_run(workdir, checkpoint, data_dir, test_time_views) for workdir in workdirs]
    members = tuple(sorted(runs, key=lambda run: run.workdir))
    names = [str(run.workdir.resolve()) for run in members]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]} is named twice: an ensemble is of different runs.")
    first = members[0]
    for run in members[1:]:
        if run.info["class_names"] != first.info["class_names"]:
            ours, theirs = (", ".join(one.info["class_names"]) for one in (first, run))
            raise UserError(
                f"{first.workdir} and {run.workdir} have different classes ({ours}; {theirs}): "
                "their probabilities cannot be averaged."
            )
        if run.config.data.selection_split != first.config.data.selection_split:
            raise UserError(
                f"{first.workdir} was chosen on {first.config.data.selection_split}, {run.workdir} on "
                f"{run.config.data.selection_split}: no split is left to choose the threshold of both on."
            )
    directory = first.workdir.parent / "+".join(run.workdir.resolve().name for run in members)
    return Ensemble(directory, members)


def open_replicas(
    workdir: str | pathlib.Path,
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Ensemble:
    """Opens the replicas of a run as an ensemble, without those that have diverged. Its folder is the run's.

    Args:
      workdir: folder of the run.
      checkpoint: best or latest, of each replica.
      data_dir: where the data sets are now. None: where the run found them.
      test_time_views: how many views of each image are averaged. None: as many as the run's config says.

    Raises:
      UserError: all replicas have diverged, or one cannot be opened.
    """
    workdir = pathlib.Path(workdir).expanduser()
    folders = [folder for folder in find_replicas(workdir) if not (folder / "diverged.json").exists()]
    if not folders:
        raise UserError(f"{workdir} holds no replica that has not diverged.")
    ensemble = open_ensemble(folders, checkpoint, data_dir, test_time_views)
    return dataclasses.replace(ensemble, workdir=workdir)
