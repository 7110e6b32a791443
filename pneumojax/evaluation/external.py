"""Evaluates a run on a collection of images from elsewhere, and measures how the images differ from validation."""

import logging
import pathlib

import numpy as np

from pneumojax.data.collection import Collection, load_collection
from pneumojax.data.dataset import Split, load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import point_metrics, thresholds
from pneumojax.evaluation.ensemble import Ensemble, average_calibrated
from pneumojax.evaluation.evaluate import write_evaluation
from pneumojax.evaluation.nuisances import NUISANCES
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import Predictor
from pneumojax.reporting.worst_errors import ErrorMaps

logger = logging.getLogger(__name__)


def evaluate_collection(
    predictor: Predictor, folder: pathlib.Path, labels: str, prevalence: float | None = None, explain: bool = True
) -> dict:
    """Evaluates a run or an ensemble on a collection. Nothing is tuned: threshold and calibration are the stored ones.

    Writes the files of `evaluate.evaluate` and unreadable.csv to `<workdir>/evaluation/<name of the folder>/`.

    Args:
      predictor: from `open_run`, `open_ensemble` or `open_replicas`.
      folder: the folder of the images.
      labels: "folders" or the path of a CSV file, as in `collection.load_collection`.
      prevalence: prevalence of pneumonia where the network will be used; None if unknown.
      explain: whether the report shows maps of the worst errors.

    Returns:
      The content of metrics.json, as in `evaluate.evaluate`. In addition, "collection" has
        "kinds_known", "patients_known": whether the labels distinguish the kinds of pneumonia and the patients.
        "unreadable": [name, reason] of each file that was left out.
        "reference": the split that the images are compared with, the selection split.
        "shift": from `compare_collections`; None without the selection split.
        "same_sensitivity": from `find_same_sensitivity`; None without the selection split.
        "reason": why the last two are None.

    Raises:
      UserError: the collection or the run is missing or damaged.
    """
    sizes = [(run.config.data.image_px, run.config.data.resize) for run in predictor.members]
    collection = load_collection(folder, labels, sizes)
    for name, reason in collection.unreadable:
        logger.warning("%s is left out: %s.", name, reason)
    threshold, calibration = load_or_choose_threshold(predictor, None), load_or_fit_calibration(predictor, True)
    probabilities = _score(predictor, collection)
    described = {
        "kinds_known": collection.has_kinds,
        "patients_known": collection.has_patients,
        "unreadable": [list(row) for row in collection.unreadable],
        "reference": predictor.config.data.selection_split,
        **_compare_with_validation(predictor, collection.split, probabilities, threshold["value"]),
    }
    task = predictor.config.model.task if collection.has_kinds else "binary"
    more = {"collection": described}
    maps = None if explain else ErrorMaps()
    return write_evaluation(
        predictor, collection.split, probabilities, threshold, calibration, prevalence, more, task, maps
    )


def compare_collections(reference: np.ndarray, images: np.ndarray) -> dict[str, dict]:
    """Compares two sets of images by the numbers of `nuisances.NUISANCES`, without labels.

    Args:
      reference: [N, H, W] uint8, the images of validation.
      images: [M, H, W] uint8, the images of the collection.

    Returns:
      {name: {"title", "reference", "collection": [25 %, 50 %, 75 % quantile], "auroc"}}. The AUROC is the probability
      that an image of the collection has the larger number. 0.5 means no difference.
    """
    origin = np.repeat([0, 1], [len(reference), len(images)])
    shift = {}
    for name, nuisance in NUISANCES.items():
        ours, theirs = nuisance.measure(reference), nuisance.measure(images)
        shift[name] = {
            "title": nuisance.title,
            "reference": np.quantile(ours, (0.25, 0.5, 0.75)).tolist(),
            "collection": np.quantile(theirs, (0.25, 0.5, 0.75)).tolist(),
            "auroc": point_metrics.compute_auroc(origin, np.concatenate([ours, theirs])),
        }
    return shift


def find_same_sensitivity(
    reference: tuple[np.ndarray, np.ndarray], collection: tuple[np.ndarray, np.ndarray], threshold: float
) -> dict:
    """Finds the threshold at which a collection has the sensitivity of validation.

    It is chosen with the labels of the evaluated images. It shows how far the scores have moved; its specificity must
    not be reported as a result.

    Args:
      reference: (labels, scores), [N] each, of the images of validation.
      collection: (labels, scores), [M] each, of the images of the collection.
      threshold: the stored threshold.

    Returns:
      {"target": sensitivity of validation at the stored threshold, "threshold", "sensitivity", "specificity": of the
      collection there}. A number that does not exist is None.
    """
    target = point_metrics.compute_threshold_metrics(*reference, threshold)["sensitivity"]
    found = {"target": target, "threshold": None, "sensitivity": None, "specificity": None}
    if not target or not np.any(collection[0] > 0):
        return found
    value = thresholds.choose_threshold(*collection, "target_sensitivity", target_sensitivity=target)
    rates = point_metrics.compute_threshold_metrics(*collection, value)
    return found | {"threshold": value} | {name: rates[name] for name in ("sensitivity", "specificity")}


def _compare_with_validation(predictor: Predictor, split: Split, probabilities: np.ndarray, threshold: float) -> dict:
    first, selection_split = predictor.members[0], predictor.config.data.selection_split
    try:
        images = load_split(first.config.data, selection_split).images
        reference, scored = predictor.score(selection_split)
    except UserError as error:
        # Whoever received only the run can still evaluate it.
        return {"shift": None, "same_sensitivity": None, "reason": f"Not compared with {selection_split}: {error}"}
    pairs = [
        (labels, point_metrics.compute_binary_scores(rows))
        for labels, rows in ((reference.labels("binary"), scored), (split.labels("binary"), probabilities))
    ]
    return {
        "shift": compare_collections(images, split.images),
        "same_sensitivity": find_same_sensitivity(pairs[0], pairs[1], threshold),
        "reason": None,
    }


def _score(predictor: Predictor, collection: Collection) -> np.ndarray:
    scored = [
        compute_probabilities(run.predict(collection.images[run.config.data.image_px, run.config.data.resize]))
        for run in predictor.members
    ]
    if not isinstance(predictor, Ensemble):
        return scored[0]
    return average_calibrated(scored, [load_or_fit_calibration(run, True) for run in predictor.members])
