"""Turns the pixels of images into rows of a prediction table, with a run or an ensemble as it is stored.

It needs the stored threshold and calibration, but no data set.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax.config import Config, config_to_dict
from pneumojax.evaluation import point_metrics
from pneumojax.evaluation.ensemble import Ensemble, average_calibrated
from pneumojax.evaluation.gate import Gate
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.recalibration import apply_calibration
from pneumojax.evaluation.run import Predictor
from pneumojax.inference import make_predict
from pneumojax.sharding import make_mesh, put
from pneumojax.steps import make_graph


@dataclasses.dataclass(frozen=True)
class Square:
    """How an image becomes the square that a network takes: the arguments of `image_files.read_image`."""

    image_px: int
    resize: str


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A run or an ensemble that predicts batches of images.

    Attributes:
      members: for each run the square that it takes, and the function from `make_predict_batch`.
      calibrations: content of calibration.json of each member of an ensemble; empty for a single run.
      threshold: content of threshold.json.
      calibration: content of calibration.json.
      class_names: C names, NORMAL first.
      batch_size: largest number of images in a batch.
      model: fingerprint of everything that determines the predictions. It starts with the steps of the checkpoints.
      gate: flags the images for which the model is not made; None: no image is flagged.
    """

    members: Sequence[tuple[Square, Callable]]
    calibrations: Sequence[dict]
    threshold: dict
    calibration: dict
    class_names: Sequence[str]
    batch_size: int
    model: str
    gate: Gate | None = None

    @property
    def squares(self) -> list[Square]:
        """The different squares that the members take."""
        return list(dict.fromkeys(square for square, _ in self.members))

    @property
    def columns(self) -> list[str]:
        """The columns of the prediction table."""
        probabilities = [f"calibrated_probability_{name}" for name in self._predicted_names()]
        return ["file", "decision", "uncertain", "flags", "score", *probabilities, "notices", "error", "model"]

    def _predicted_names(self) -> list[str]:
        return ["PNEUMONIA", *(name for name in self.class_names[1:] if name != "PNEUMONIA")]

    def predict(self, images: Mapping[Square, np.ndarray]) -> list[dict[str, Any]]:
        """Predicts a batch.

        The score is the one in the predictions.csv of an evaluation: 1 - P(NORMAL) before calibration. The decision is
        PNEUMONIA if it is at least the threshold. It is uncertain inside the band of
        `thresholds.choose_uncertain_band`.

        Args:
          images: [N, H, W] uint8 for each square, with N of at most `batch_size`.

        Returns:
          For each image the columns decision, uncertain, flags, score and calibrated probabilities.
        """
        member_logits, features = self.compute(images)
        member_probabilities = [compute_probabilities(logits) for logits in member_logits]
        if self.calibrations:
            probabilities = average_calibrated(member_probabilities, self.calibrations)
        else:
            (probabilities,) = member_probabilities
        scores = point_metrics.compute_binary_scores(probabilities)
        decisions = point_metrics.compute_decisions(scores, self.threshold["value"])
        band = self.threshold["uncertain"]
        uncertain = (scores >= band["low"]) & (scores <= band["high"])
        flags = self.gate.check(images[self.squares[0]], features) if self.gate else [[]] * len(scores)
        calibrated = apply_calibration(probabilities, self.calibration["temperature"], self.calibration["biases"])
        columns = {"PNEUMONIA": point_metrics.compute_binary_scores(calibrated)}
        columns |= {name: calibrated[:, i] for i, name in enumerate(self.class_names) if name not in columns}
        return [
            {
                "decision": "PNEUMONIA" if decisions[i] else "NORMAL",
                "uncertain": bool(uncertain[i]),
                "flags": list(flags[i]),
                "score": float(scores[i]),
            }
            | {f"calibrated_probability_{name}": float(columns[name][i]) for name in self._predicted_names()}
            for i in range(len(scores))
        ]

    def compute(self, images: Mapping[Square, np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        """Computes the logits and the features of a batch.

        Args:
          images: as in `predict`.

        Returns:
          (logits, features): [N, C] float32 for each member, and [N, F] float32 with the features of all members.
        """
        logits, features = zip(*(predict(images[square]) for square, predict in self.members), strict=True)
        return list(logits), np.concatenate(features, axis=1)


def make_classifier(predictor: Predictor, batch_size: int) -> Classifier:
    """Makes the classifier of a run or ensemble, with its stored threshold and calibration.

    Args:
      predictor: the run or ensemble. If its folder has no threshold, uncertain band or calibration for its checkpoint,
        they are chosen on validation and stored. Only then is the data set needed.
      batch_size: number of images in a batch. It is rounded up to a multiple of the number of devices.

    Raises:
      UserError: a stored file is damaged, or the data set is needed and missing.
    """
    mesh = make_mesh()
    batch_size = math.ceil(batch_size / mesh.size) * mesh.size
    threshold, calibration = load_or_choose_threshold(predictor, None), load_or_fit_calibration(predictor, True)
    is_ensemble = isinstance(predictor, Ensemble)
    calibrations = [load_or_fit_calibration(run, True) for run in predictor.members] if is_ensemble else []
    members = [
        (
            Square(run.config.data.image_px, run.config.data.resize),
            make_predict_batch(run.config, mesh, run.variables, batch_size),
        )
        for run in predictor.members
    ]
    stored = [
        {name: content.get(name) for name in ("value", "uncertain", "temperature", "biases")}
        for content in (threshold, calibration, *calibrations)
    ]
    model = _fingerprint(predictor, stored)
    names = predictor.info["class_names"]
    return Classifier(members, calibrations, threshold, calibration, names, batch_size, model)


def _fingerprint(predictor: Predictor, stored: list[dict]) -> str:
    """Computes a hash of the weights and configs of the members and of their threshold and calibrations."""
    digest = hashlib.sha256(json.dumps(stored).encode())
    for run in predictor.members:
        config = config_to_dict(run.config)
        del config["data_dir"]  # The folder of the data does not change a prediction.
        digest.update(json.dumps(config, sort_keys=True).encode())
        for leaf in jax.tree.leaves(run.variables):
            digest.update(np.ascontiguousarray(leaf).data)
    steps = "+".join(str(run.step) for run in predictor.members)
    return f"{steps}-{digest.hexdigest()[:16]}"


def make_predict_batch(config: Config, mesh: Mesh, variables: dict, batch_size: int) -> Callable:
    """Makes a function that predicts batches of equal size, which need not exist at the same time.

    Args:
      config: the config of the run.
      mesh: the devices.
      variables: {"params", "batch_stats"} as numpy arrays.
      batch_size: B, a multiple of the number of devices.

    Returns:
      `predict_batch(images) -> (logits, features)`: images [N, H, W] uint8 with N <= B, logits [N, C] float32, features
      [N, F] float32. The logits are those of `predict.make_predict_images`.
    """
    predict = make_predict(
        make_graph(config),
        mesh,
        config.augment,
        streamed=True,
        pixel_scaling=config.data.pixel_scaling,
        features=True,
    )
    on_devices = jax.tree.map(lambda leaf: put(leaf, mesh), variables)

    def predict_batch(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((1, batch_size, *images.shape[1:]), np.uint8)  # A batch of another size is compiled again.
        padded[0, : len(images)] = images
        logits, features = jax.device_get(predict(on_devices, put(padded, mesh, axis=1)))
        return logits[0, : len(images)], features[0, : len(images)]

    return predict_batch
