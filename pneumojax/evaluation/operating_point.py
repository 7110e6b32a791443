"""What a run's selection split decides, kept with the run: the threshold and the calibration.

An ensemble averages calibrated probabilities, so what its split decides rests on the calibration of each member.
"""

import datetime
import json
from collections.abc import Sequence

import jax
import numpy as np

from pneumojax.config import ThresholdConfig
from pneumojax.data.dataset import Split, ensure_prepared, load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import metrics, thresholds
from pneumojax.evaluation.calibration import apply_temperature, fit_temperature
from pneumojax.evaluation.predict import compute_probabilities, predict
from pneumojax.evaluation.run import Ensemble, Run
from pneumojax.files import write_json


def load_or_choose_threshold(run: Run | Ensemble, rules: ThresholdConfig) -> dict:
    """Loads the run's threshold, or chooses it and stores it if the stored one belongs to other rules or other scores.

    Raises:
      UserError: threshold.json is damaged, or the selection split is needed and missing.
    """
    path = run.workdir / "threshold.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            follows = _belongs_to(run, stored)
            follows = follows and all(stored[name] == wanted for name, wanted in _describe_rule(rules).items())
            float(stored["value"]), dict(stored["operating_points"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}). Delete it: the threshold is then chosen again.") from error
        if follows:
            return stored
    split, probabilities = score_split(run, run.config.data.selection_split)
    store_calibration(run, split, probabilities)
    return store_threshold(run, rules, split, probabilities)


def store_threshold(run: Run | Ensemble, rules: ThresholdConfig, split: Split, probabilities: np.ndarray) -> dict:
    """Chooses the operating point on the run's selection split and keeps it with the run in threshold.json.

    Args:
      run: the run.
      rules: how to choose.
      split: the selection split: validation, but for the leaky protocol.
      probabilities: [N, C] of that split.

    Returns:
      The content of threshold.json.

    Raises:
      UserError: the split has no pneumonia or no NORMAL, so there is nothing to choose by.
    """
    scores = metrics.compute_binary_scores(probabilities)
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
        **_describe_scores(run, split),
        # Always chosen, whatever the rule of the value above.
        "operating_points": thresholds.choose_operating_points(split.labels("binary"), scores),
    }
    if jax.process_index() == 0:
        write_json(run.workdir / "threshold.json", threshold)
    return threshold


def load_or_fit_calibration(run: Run | Ensemble) -> dict:
    """Loads the run's calibration, or fits it and stores it if the stored one belongs to other scores.

    Raises:
      UserError: calibration.json is damaged, or the selection split is needed and missing.
    """
    path = run.workdir / "calibration.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            float(stored["temperature"]), float(stored["prevalence"])
            if _belongs_to(run, stored):
                return stored
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}). Delete it: it is then fitted again.") from error
    return store_calibration(run, *score_split(run, run.config.data.selection_split))


def store_calibration(run: Run | Ensemble, split: Split, probabilities: np.ndarray) -> dict:
    """Fits the temperature on the run's selection split and keeps it with the run in calibration.json.

    Args:
      run: the run.
      split: the selection split: validation, but for the leaky protocol.
      probabilities: [N, C] of that split.

    Returns:
      The content of calibration.json: the temperature, and the prevalence that calibrated scores go with.
    """
    labels = split.labels(run.config.model.task)
    temperature = fit_temperature(labels, probabilities)
    calibration = {
        "temperature": temperature or 1.0,
        "prevalence": float(np.mean(labels > 0)),
        "split": split.name,
        **_describe_scores(run, split),
    }
    if temperature is None:
        calibration["reason"] = (
            f"No temperature is best: {split.name} is decided all right, or no better than by chance."
        )
    if jax.process_index() == 0:
        write_json(run.workdir / "calibration.json", calibration)
    return calibration


def score_split(run: Run | Ensemble, name: str) -> tuple[Split, np.ndarray]:
    """Predicts a split.

    Args:
      run: from `open_run`, `open_ensemble` or `open_replicas`.
      name: of the split.

    Returns:
      The split and its class probabilities [N, C], as the run gives them; of an ensemble calibrated and averaged.

    Raises:
      UserError: the split is missing or damaged, or the members of an ensemble have different data.
    """
    if isinstance(run, Ensemble):
        return _score_together(run.members, name)
    split = load_split(run.config.data, name)
    return split, compute_probabilities(predict(run, split.images))


def _score_together(members: Sequence[Run], name: str) -> tuple[Split, np.ndarray]:
    """A split, as the first member sees it, and the mean of the members' calibrated probabilities."""
    scored = [score_split(member, name) for member in members]
    first = scored[0][0]
    for member, (split, _) in zip(members, scored, strict=True):
        if split.fingerprint != first.fingerprint:
            raise UserError(
                f"{members[0].workdir} and {member.workdir} score different {name} images. "
                "Name with --data_dir the one data set that all are to be scored on."
            )
    temperatures = [load_or_fit_calibration(member)["temperature"] for member in members]
    calibrated = [
        apply_temperature(probabilities, temperature)
        for (_, probabilities), temperature in zip(scored, temperatures, strict=True)
    ]
    return first, np.mean(calibrated, axis=0)


def _describe_scores(run: Run | Ensemble, split: Split) -> dict:
    """Of which scores a threshold or calibration is, and since when."""
    return {
        "checkpoint_step": run.step,
        "test_time_views": run.test_time_views,
        "data_fingerprint": split.fingerprint,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _belongs_to(run: Run | Ensemble, stored: dict) -> bool:
    """Whether a stored threshold or calibration was chosen on the scores that the run gives now."""
    name = run.config.data.selection_split
    members = run.members if isinstance(run, Ensemble) else (run,)
    return (
        stored["checkpoint_step"] == run.step
        # A file that lacks test_time_views is older than the field. Its scores are of the image itself.
        and stored.get("test_time_views", 1) == run.test_time_views
        and all(
            stored.get("data_fingerprint") == ensure_prepared(member.config.data)["fingerprints"].get(name)
            for member in members
        )
    )


def _describe_rule(rules: ThresholdConfig) -> dict:
    """The rule and the numbers that it uses, as threshold.json holds them; rule comes first."""
    numbers = {
        "target_sensitivity": {"target_sensitivity": rules.target_sensitivity},
        "youden": {},
        "cost_ratio": {"cost_ratio": rules.cost_ratio, "prevalence": rules.prevalence},
        "fixed": {"value": rules.fixed_threshold},
    }
    return {"rule": rules.threshold_rule} | numbers[rules.threshold_rule]
