"""Chooses the threshold and fits the calibration on the selection split, and stores both in the workdir."""

import datetime
import json

import jax
import numpy as np

from pneumojax.config import ThresholdConfig
from pneumojax.data.dataset import Split, ensure_prepared
from pneumojax.errors import UserError
from pneumojax.evaluation import point_metrics, thresholds
from pneumojax.evaluation.recalibration import fit_calibration
from pneumojax.evaluation.run import Predictor
from pneumojax.files import write_json


def load_or_choose_threshold(predictor: Predictor, rules: ThresholdConfig | None) -> dict:
    """Loads threshold.json, or chooses the threshold and its uncertain band and stores them.

    The stored threshold is used if it was chosen by the same rule, with the same checkpoint and test_time_views, on the
    same data. Otherwise a new one replaces it. The choice is deterministic, so a return to the earlier rule or data set
    gives the earlier threshold again.

    Args:
      predictor: the run or ensemble.
      rules: the rule and its numbers. None: the stored threshold is used whatever its rule and data set are, which
        needs no data set. If there is none for these scores, it is chosen by the rule of the config.

    Returns:
      The content of threshold.json.

    Raises:
      UserError: threshold.json is damaged, or the selection split is missing or lacks a class that the rule needs.
    """
    path = predictor.workdir / "threshold.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            # A file without an uncertain band is older than that field.
            follows = "uncertain" in stored and _belongs_to(predictor, stored, any_data=rules is None)
            follows = follows and all(stored[name] == wanted for name, wanted in _describe_rule(rules).items())
            float(stored["value"]), dict(stored["operating_points"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}). Delete it. The threshold is then chosen again.") from error
        if follows:
            return stored
    split, probabilities = predictor.score_selection()
    store_calibration(predictor, split, probabilities)
    return store_threshold(predictor, rules or predictor.config.threshold, split, probabilities)


def store_threshold(predictor: Predictor, rules: ThresholdConfig, split: Split, probabilities: np.ndarray) -> dict:
    """Chooses the threshold on the selection split and stores it in threshold.json.

    Args:
      predictor: the run or ensemble.
      rules: the rule and its numbers.
      split: the selection split. It is validation, except in the leaky protocol.
      probabilities: [N, C] float, 0..1, of the images of that split.

    Returns:
      The content of threshold.json.

    Raises:
      UserError: the split lacks images of a class that the rule needs.
    """
    scores = point_metrics.compute_binary_scores(probabilities)
    try:
        value = thresholds.choose_threshold(
            split.labels("binary"),
            scores,
            rules.threshold_rule,
            target_sensitivity=rules.target_sensitivity,
            cost_ratio=rules.cost_ratio,
            prevalence=rules.prevalence,
            fixed=rules.fixed_threshold,
        )
    except ValueError as error:
        raise UserError(f"threshold_rule={rules.threshold_rule} cannot choose on {split.name}: {error}") from error
    threshold = {
        "value": value,
        **_describe_rule(rules),
        "split": None if rules.threshold_rule == "fixed" else split.name,
        **_describe_scores(predictor, split),
        "uncertain": thresholds.choose_uncertain_band(split.labels("binary"), scores, value),
        # These thresholds do not depend on the rule.
        "operating_points": thresholds.choose_operating_points(split.labels("binary"), scores),
    }
    if jax.process_index() == 0:
        write_json(predictor.workdir / "threshold.json", threshold)
    return threshold


def load_or_fit_calibration(predictor: Predictor, any_data: bool = False) -> dict:
    """Loads calibration.json, or fits the calibration and stores it.

    The stored calibration is used if it was fitted with the same checkpoint and test_time_views on the same data.

    Args:
      predictor: the run or ensemble.
      any_data: whether the stored calibration is used whatever its data set is, which needs no data set.

    Returns:
      The content of calibration.json.

    Raises:
      UserError: calibration.json is damaged, or the selection split is missing.
    """
    path = predictor.workdir / "calibration.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            float(stored["temperature"]), float(stored["prevalence"])
            np.asarray(stored.get("biases", ()), np.float64)
            # A file without biases is older than they are.
            if "biases" in stored and _belongs_to(predictor, stored, any_data):
                return stored
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}). Delete it. It is then fitted again.") from error
    return store_calibration(predictor, *predictor.score_selection())


def store_calibration(predictor: Predictor, split: Split, probabilities: np.ndarray) -> dict:
    """Fits the temperature and biases on the selection split and stores them in calibration.json.

    Args:
      predictor: the run or ensemble.
      split: the selection split. It is validation, except in the leaky protocol.
      probabilities: [N, C] of that split.

    Returns:
      The content of calibration.json: the temperature, the bias of each class, and the prevalence at which the
      calibrated scores are valid.
    """
    labels = split.labels(predictor.config.model.task)
    fitted = fit_calibration(labels, probabilities)
    temperature, biases = fitted or (1.0, np.zeros(probabilities.shape[1]))
    calibration = {
        "temperature": temperature,
        "biases": biases.tolist(),
        "prevalence": float(np.mean(labels > 0)),
        "split": split.name,
        **_describe_scores(predictor, split),
    }
    if fitted is None:
        calibration["reason"] = (
            f"The scores stay as trained, because no calibration is optimal: on {split.name} they separate the classes "
            "without error, are no better than chance, or a class has no image."
        )
    if jax.process_index() == 0:
        write_json(predictor.workdir / "calibration.json", calibration)
    return calibration


def _describe_scores(predictor: Predictor, split: Split) -> dict:
    """Describes the scores for which a threshold or calibration is valid, with the current date."""
    return {
        **predictor.identity,
        "data_fingerprint": split.fingerprint,
        "selection_images": predictor.config.data.selection_images,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _belongs_to(predictor: Predictor, stored: dict, any_data: bool) -> bool:
    """Returns whether a stored threshold or calibration was chosen for the predictor's current scores.

    Args:
      predictor: the run or ensemble.
      stored: the content of the file.
      any_data: whether the file may be of another data set than that of the predictor.
    """
    # A file without test_time_views is older than that field. Its scores were computed with one view.
    identity = {"checkpoint_step": stored["checkpoint_step"], "test_time_views": stored.get("test_time_views", 1)}
    images = stored.get("selection_images", "plain")
    same_scores = identity == predictor.identity and images == predictor.config.data.selection_images
    if any_data:
        return same_scores
    selection_split = predictor.config.data.selection_split
    fingerprints = {ensure_prepared(run.config.data)["fingerprints"].get(selection_split) for run in predictor.members}
    return same_scores and fingerprints == {stored.get("data_fingerprint")}


def _describe_rule(rules: ThresholdConfig | None) -> dict:
    """Returns the rule and the numbers that it uses, in the format of threshold.json. Any rule (None) uses none."""
    if rules is None:
        return {}
    numbers: dict[str, dict[str, float | None]] = {
        "target_sensitivity": {"target_sensitivity": rules.target_sensitivity},
        "youden": {},
        "cost_ratio": {"cost_ratio": rules.cost_ratio, "prevalence": rules.prevalence},
        "fixed": {"value": rules.fixed_threshold},
    }
    return {"rule": rules.threshold_rule} | numbers[rules.threshold_rule]
