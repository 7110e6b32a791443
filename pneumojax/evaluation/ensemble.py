"""Ensembles of runs. An ensemble averages the calibrated probabilities of its members."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from pneumojax.checkpoint import find_replicas
from pneumojax.config import Config
from pneumojax.data.dataset import Split
from pneumojax.errors import UserError
from pneumojax.evaluation.operating_point import load_or_fit_calibration
from pneumojax.evaluation.recalibration import apply_calibration
from pneumojax.evaluation.run import Predictor, Run, open_run


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several runs that are evaluated as one. It is a `Predictor`.

    Attributes:
      workdir: folder of the ensemble's threshold, calibration and evaluations.
      members: the runs. All have the same task.
    """

    workdir: pathlib.Path
    members: tuple[Run, ...]

    @property
    def info(self) -> dict:
        """The info of the first member, and the list of members."""
        return self.members[0].info | {"members": self.identity["checkpoint_step"]}

    @property
    def config(self) -> Config:
        """The config of the first member."""
        return self.members[0].config

    @property
    def checkpoint(self) -> str:
        """The checkpoint of the first member: best or latest."""
        return self.members[0].checkpoint

    @property
    def identity(self) -> dict:
        """The folder, step, start time and number of views of each member. Retraining changes the start time."""
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
        return self._average(lambda run: run.score(split_name))

    def score_selection(self) -> tuple[Split, np.ndarray]:
        """Averages the members' calibrated probabilities. See `Predictor.score_selection`."""
        return self._average(lambda run: run.score_selection())

    def _average(self, score: Callable[[Run], tuple[Split, np.ndarray]]) -> tuple[Split, np.ndarray]:
        splits: list[Split] = []
        scored: list[np.ndarray] = []
        for run in self.members:
            split, probabilities = score(run)
            if splits and split.fingerprint != splits[0].fingerprint:
                raise UserError(
                    f"{self.members[0].workdir} and {run.workdir} score different {split.name} images. "
                    "Give --data_dir, so that all are evaluated on the same data set."
                )
            splits.append(split)
            scored.append(probabilities)
        return splits[0], average_calibrated(scored, [load_or_fit_calibration(run) for run in self.members])


def average_calibrated(probabilities: Sequence[np.ndarray], calibrations: Sequence[dict]) -> np.ndarray:
    """Averages the members' calibrated probabilities of the same images.

    Args:
      probabilities: [N, C] of each member.
      calibrations: the content of calibration.json of each member.

    Returns:
      [N, C] float64, 0..1.
    """
    calibrated = [
        apply_calibration(ours, fitted["temperature"], fitted["biases"])
        for ours, fitted in zip(probabilities, calibrations, strict=True)
    ]
    return np.mean(calibrated, axis=0)


def open_ensemble(
    workdirs: Sequence[str | pathlib.Path],
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Ensemble:
    """Opens several runs as an ensemble. Its folder has a name such as `a+b+c` and is next to the first run `a`.

    Args:
      workdirs: folders of the runs, in any order. Their networks and image sizes may differ.
      checkpoint: the checkpoint of each run, best or latest.
      data_dir: current folder of the data sets. None: the folders of the runs' configs.
      test_time_views: number of views of each image that are averaged. None: the numbers of the runs' configs.

    Raises:
      UserError: a run cannot be opened or is named twice, or the runs have different classes or selection splits.
    """
    runs = [open_run(workdir, checkpoint, data_dir, test_time_views) for workdir in workdirs]
    members = tuple(sorted(runs, key=lambda run: run.workdir))
    names = [str(run.workdir.resolve()) for run in members]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]} is named twice: an ensemble needs different runs.")
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
                f"{first.workdir} has selection_split={first.config.data.selection_split}, {run.workdir} has "
                f"{run.config.data.selection_split}. The runs of an ensemble must have the same, because its threshold "
                "is chosen on that split."
            )
        if run.config.data.selection_images != first.config.data.selection_images:
            raise UserError(
                f"{first.workdir} has selection_images={first.config.data.selection_images}, {run.workdir} has "
                f"{run.config.data.selection_images}. The runs of an ensemble must have the same, because its "
                "threshold is chosen on these images."
            )
    directory = first.workdir.parent / "+".join(run.workdir.resolve().name for run in members)
    return Ensemble(directory, members)


def open_predictor(
    workdirs: Sequence[str | pathlib.Path],
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Predictor:
    """Opens a run, several runs as an ensemble, or the replicas of a run as an ensemble.

    Args:
      workdirs: folder of the run, or folders of several runs.
      checkpoint: the checkpoint of each run, best or latest.
      data_dir: current folder of the data sets. None: the folders of the runs' configs.
      test_time_views: number of views of each image that are averaged. None: the numbers of the runs' configs.

    Raises:
      UserError: no folder is given, or `open_run`, `open_ensemble` or `open_replicas` raises it.
    """
    if not workdirs:
        raise UserError("--workdir is empty: name the folder of a run.")
    arguments = (checkpoint, data_dir, test_time_views)
    if len(workdirs) > 1:
        return open_ensemble(workdirs, *arguments)
    if find_replicas(pathlib.Path(workdirs[0]).expanduser()):
        return open_replicas(workdirs[0], *arguments)
    return open_run(workdirs[0], *arguments)


def open_replicas(
    workdir: str | pathlib.Path,
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Ensemble:
    """Opens the replicas of a run that have not diverged as an ensemble. It uses the folder of the run.

    Args:
      workdir: folder of the run.
      checkpoint: the checkpoint of each replica, best or latest.
      data_dir: current folder of the data sets. None: the folder of the run's config.
      test_time_views: number of views of each image that are averaged. None: the number of the run's config.

    Raises:
      UserError: all replicas have diverged, or one cannot be opened.
    """
    workdir = pathlib.Path(workdir).expanduser()
    folders = [folder for folder in find_replicas(workdir) if not (folder / "diverged.json").exists()]
    if not folders:
        raise UserError(f"all replicas in {workdir} have diverged.")
    ensemble = open_ensemble(folders, checkpoint, data_dir, test_time_views)
    return dataclasses.replace(ensemble, workdir=workdir)
