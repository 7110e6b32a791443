"""Opens trained runs and predicts with them."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from pneumojax.checkpoint import check_shapes, find_replicas, load_run
from pneumojax.config import Config, config_from_dict
from pneumojax.data.dataset import Split, ensure_prepared, load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.aspect import add_swapped
from pneumojax.evaluation.predict import compute_probabilities, make_predict_images
from pneumojax.sharding import make_mesh, put
from pneumojax.steps import make_abstract_variables

logger = logging.getLogger(__name__)


class Predictor(Protocol):
    """The interface of runs and ensembles that an evaluation uses."""

    @property
    def workdir(self) -> pathlib.Path:
        """The folder of the threshold, the calibration and the evaluations."""

    @property
    def info(self) -> dict:
        """The content of config.json: class names, data fingerprints, versions, device."""

    @property
    def config(self) -> Config:
        """The config, with the data set, the task, the selection split and the threshold rule."""

    @property
    def checkpoint(self) -> str:
        """The checkpoint that was opened: best or latest."""

    @property
    def identity(self) -> dict:
        """Everything that determines the scores, except for the data. A threshold is valid for one identity only.

        It is a dict with the keys "checkpoint_step" and "test_time_views" that can be stored as JSON.
        """

    @property
    def members(self) -> Sequence["Run"]:
        """The runs that predict: several for an ensemble, the run itself for a run."""

    def score(self, split_name: str) -> tuple[Split, np.ndarray]:
        """Predicts a split.

        Args:
          split_name: train, validation or test.

        Returns:
          (split, probabilities): the split, and [N, C] float64 class probabilities, 0..1.

        Raises:
          UserError: the split is missing or damaged.
        """

    def score_selection(self) -> tuple[Split, np.ndarray]:
        """Predicts the images on which the threshold and the calibration are chosen.

        These are the images of the config's selection_split. With selection_images=shift, they are followed by the same
        images with swapped aspects (see `aspect.add_swapped`). Results and errors are as in `score`.
        """


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network. It is a `Predictor`.

    Attributes:
      workdir: folder of the run.
      info: content of config.json: class names, data fingerprints, versions, device.
      config: the config of the run.
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
    def identity(self) -> dict:
        """The step of the checkpoint, and the number of views of each image that are averaged."""
        return {"checkpoint_step": self.step, "test_time_views": self.config.augment.test_time_views}

    @property
    def members(self) -> tuple["Run"]:
        """The run itself."""
        return (self,)

    def score(self, split_name: str) -> tuple[Split, np.ndarray]:
        """Predicts a split. See `Predictor.score`."""
        split = load_split(self.config.data, split_name)
        return split, compute_probabilities(self.predict(split.images))

    def score_selection(self) -> tuple[Split, np.ndarray]:
        """Predicts the images on which the threshold is chosen. See `Predictor.score_selection`."""
        split = load_split(self.config.data, self.config.data.selection_split)
        if self.config.data.selection_images == "shift":
            split = add_swapped(split)
        return split, compute_probabilities(self.predict(split.images))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Computes the logits of images. They do not depend on the number of devices.

        Args:
          images: [N, H, W] uint8, 0..255, of the size on which the run was trained, from `decode.decode_image`.

        Returns:
          [N, C] float32 logits in the order of `info["class_names"]`. If the run has several test_time_views, they are
          the logarithms of the mean probabilities of the views.

        Raises:
          UserError: the images have another size or type than those of the training.
        """
        size = self.config.data.image_px
        if images.ndim != 3 or images.shape[1:] != (size, size) or images.dtype != np.uint8:
            raise UserError(
                f"{self.workdir} was trained on uint8 images of {size} x {size} pixels, "
                f"not on {images.dtype} images of shape {'x'.join(map(str, images.shape[1:]))}: "
                f"decode them at image_px={size}."
            )
        if len(images) == 0:
            raise UserError("there are no images to predict.")
        mesh = make_mesh()
        variables = jax.tree.map(lambda leaf: put(leaf, mesh), self.variables)
        return make_predict_images(self.config, images, mesh, self.config.augment)(variables)


def open_run(
    workdir: str | pathlib.Path,
    checkpoint: str = "best",
    data_dir: str | None = None,
    test_time_views: int | None = None,
) -> Run:
    """Opens the best or the latest checkpoint of a run. It needs neither the data nor the devices of the training.

    Args:
      workdir: folder of the run.
      checkpoint: best (by the select_by of the run) or latest.
      data_dir: current folder of the data sets. None: the folder of the run's config.
      test_time_views: number of views of each image that are averaged. None: the number of the run's config.

    Raises:
      UserError: there is no run, it is damaged, or it has no augmentation to make views with.
    """
    workdir = pathlib.Path(workdir).expanduser()
    if replicas := find_replicas(workdir):
        raise UserError(f"{workdir} holds {len(replicas)} replicas. Open one of them, such as {replicas[0]}.")
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


def check_data(predictor: Predictor) -> bool:
    """Checks that all members were trained on the training split of the data set on which they are now evaluated.

    Logs a warning for each member that was trained on another training split.

    Returns:
      Whether this is true for all members.
    """
    differing = [
        run.workdir
        for run in predictor.members
        if ensure_prepared(run.config.data)["fingerprints"]["train"] != run.info["data"]["fingerprints"]["train"]
    ]
    for workdir in differing:
        logger.warning(
            "%s: the run was trained on another training split than that of this data set. It may have been trained on "
            "images that are evaluated now.",
            workdir,
        )
    return not differing
