"""Trained runs, opened to predict with: one alone, or several as an ensemble."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence

from pneumojax.checkpoint import check_shapes, find_replicas, load_run
from pneumojax.config import Config, config_from_dict
from pneumojax.data.dataset import ensure_prepared
from pneumojax.errors import UserError
from pneumojax.steps import make_abstract_variables

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network, opened to predict with.

    Attributes:
      workdir: folder of the run.
      info: content of config.json: class names, data fingerprints, versions, device.
      config: the run's config.
      variables: {"params", "batch_stats"} as numpy arrays.
      step: training step of the checkpoint.
      checkpoint: best or latest.
    """

    workdir: pathlib.Path
    info: dict
    config: Config
    variables: dict
    step: int
    checkpoint: str

    @property
    def test_time_views(self) -> int:
        """How many views of an image are averaged: threshold and temperature belong to their number."""
        return self.config.augment.test_time_views


def open_run(
    workdir: str | pathlib.Path,
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Run:
    """Opens the best (by val/auroc) or latest checkpoint of a workdir; needs neither its data nor its devices.

    Args:
      workdir: folder of the run.
      checkpoint: best or latest.
      data_dir: where the data sets lie now, if not where the run found them.
      test_time_views: views of each image that are averaged, if not as many as the run's.

    Raises:
      UserError: there is no run, it is damaged, or it has no augmentation to make views with.
    """
    workdir = pathlib.Path(workdir).expanduser()
    if replicas := find_replicas(workdir):
        raise UserError(f"{workdir} holds {len(replicas)} replicas: open one, as {replicas[0]}, or their ensemble.")
    info, variables, step = load_run(workdir, checkpoint)
    try:
        config = config_from_dict(info["config"] | ({"data_dir": data_dir} if data_dir else {}))
        check_shapes(variables, make_abstract_variables(config))
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"the checkpoint of step {step} in {workdir} does not fit its config ({error}).") from error
    if test_time_views:
        augment = dataclasses.replace(config.augment, test_time_views=test_time_views)
        config = dataclasses.replace(config, augment=augment)
    return Run(workdir, info, config, variables, step, checkpoint)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Several runs that predict together: the mean of their calibrated probabilities. It is evaluated as a run is.

    Attributes:
      workdir: folder of its own threshold, calibration and evaluations.
      members: the runs, of one task.
    """

    workdir: pathlib.Path
    members: tuple[Run, ...]

    @property
    def info(self) -> dict:
        """Of the first member, and which runs the members are."""
        return self.members[0].info | {"members": self.step}

    @property
    def config(self) -> Config:
        """Of the first member: where the data lie, the task, the split that chooses, and the rule for the threshold."""
        return self.members[0].config

    @property
    def step(self) -> list[dict]:
        """What the threshold and the calibration belong to. A member that is trained anew is another one."""
        names = [str(member.workdir.resolve()) for member in self.members]
        return [
            {"workdir": name, "step": member.step, "created": member.info.get("created")}
            for name, member in zip(names, self.members, strict=True)
        ]

    @property
    def checkpoint(self) -> str:
        """Of the first member: best or latest."""
        return self.members[0].checkpoint

    @property
    def test_time_views(self) -> list[int]:
        """Of each member."""
        return [member.test_time_views for member in self.members]


def open_ensemble(
    workdirs: Sequence[str | pathlib.Path],
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Ensemble:
    """Opens several runs as one; its folder lies beside the first run's, named after all, as `a+b+c`.

    Args:
      workdirs: folders of the runs, in any order; networks and sizes of images may differ.
      checkpoint: best or latest, of each.
      data_dir: where the data sets lie now, if not where the runs found them.
      test_time_views: views of each image that are averaged, if not as many as each run's.

    Raises:
      UserError: a run cannot be opened, is named twice, or is of another task or selection split than the first.
    """
    runs = [open_run(workdir, checkpoint, data_dir, test_time_views) for workdir in workdirs]
    members = tuple(sorted(runs, key=lambda run: run.workdir))
    names = [str(member.workdir.resolve()) for member in members]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{twice[0]} is named twice: an ensemble is of different runs.")
    for member in members[1:]:
        if member.info["class_names"] != members[0].info["class_names"]:
            first, other = (", ".join(run.info["class_names"]) for run in (members[0], member))
            raise UserError(
                f"{members[0].workdir} and {member.workdir} tell apart different classes ({first}; {other}): "
                "there is no mean of the two."
            )
        if member.config.data.selection_split != members[0].config.data.selection_split:
            raise UserError(
                f"{members[0].workdir} was chosen on {members[0].config.data.selection_split}, {member.workdir} on "
                f"{member.config.data.selection_split}: no split is left to choose the threshold of both on."
            )
    directory = members[0].workdir.parent / "+".join(member.workdir.resolve().name for member in members)
    return Ensemble(directory, members)


def open_replicas(
    workdir: str | pathlib.Path,
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Ensemble:
    """Opens all replicas of a run as an ensemble, whose folder is the run's; what has diverged is left out.

    Args:
      workdir: folder of the run.
      checkpoint: best or latest, of each.
      data_dir: where the data sets lie now, if not where the run found them.
      test_time_views: views of each image that are averaged, if not as many as the run's.

    Raises:
      UserError: as of `open_ensemble`.
    """
    workdir = pathlib.Path(workdir).expanduser()
    folders = [folder for folder in find_replicas(workdir) if not (folder / "diverged.json").exists()]
    if not folders:
        raise UserError(f"{workdir} holds no replica that has not diverged.")
    ensemble = open_ensemble(folders, checkpoint, data_dir, test_time_views)
    return dataclasses.replace(ensemble, workdir=workdir)


def check_data(run: Run | Ensemble) -> bool:
    """Whether the run was trained on the training split that belongs to the data set that is scored now."""
    if isinstance(run, Ensemble):
        return all([check_data(member) for member in run.members])  # A list: each that differs is to be named.
    record = ensure_prepared(run.config.data)
    same = record["fingerprints"]["train"] == run.info["data"]["fingerprints"]["train"]
    if not same:
        logger.warning(
            "this data set's training split is not the one the run was trained on: images that are scored now may have "
            "been trained on. Read the figures with that in mind."
        )
    return same
