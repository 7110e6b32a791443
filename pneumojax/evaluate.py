"""Opens a run, scores a whole split, and writes the numbers with their intervals."""

import csv
import dataclasses
import datetime
import io
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax import metrics
from pneumojax.calibration import apply_temperature, fit_temperature, shift_prevalence
from pneumojax.checkpoint import check_shapes, find_replicas, load_run
from pneumojax.config import AugmentConfig, Config, ThresholdConfig, config_from_dict
from pneumojax.data import Split, load_split, make_eval_batches, read_record
from pneumojax.errors import UserError
from pneumojax.figures.evaluation import (
    save_confusion_matrix,
    save_decision_curve,
    save_precision_recall,
    save_predictive_values,
    save_reliability,
    save_roc,
)
from pneumojax.figures.training import save_learning_curves
from pneumojax.report import make_report
from pneumojax.sharding import make_mesh, put
from pneumojax.statistics import BOOTSTRAP_RESAMPLES, BOOTSTRAP_SEED, compute_curves, compute_statistics
from pneumojax.steps import make_abstract_variables, make_graph, make_predict
from pneumojax.stream import stream_rows
from pneumojax.writer import read_rows, write_json, write_text

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


def predict(run: Run, images: np.ndarray) -> np.ndarray:
    """Class logits of images, exact whatever the number of devices.

    Args:
      run: from `open_run`.
      images: [N, H, W] uint8, 0..255, of the size that the run was trained at (`images.decode_image` makes them).

    Returns:
      [N, C] float32 logits in the order of `run.info["class_names"]`; of a run with several test_time_views the
      logarithms of the mean probabilities.

    Raises:
      UserError: the images have another size or type than the network was trained on.
    """
    size = run.config.data.image_px
    if images.ndim != 3 or images.shape[1:] != (size, size) or images.dtype != np.uint8:
        raise UserError(
            f"{run.workdir} was trained on uint8 images of {size} x {size} pixels, "
            f"not on {images.dtype} images of shape {'x'.join(map(str, images.shape[1:]))}: "
            f"decode them at image_px={size}."
        )
    if len(images) == 0:
        raise UserError("there are no images to predict.")
    mesh = make_mesh()
    variables = jax.tree.map(lambda leaf: put(leaf, mesh), run.variables)
    return make_predict_images(run.config, images, mesh, run.config.augment)(variables)


def make_predict_images(
    config: Config, images: np.ndarray, mesh: Mesh, views: AugmentConfig | None = None, cached: bool = False
) -> Callable[[dict], np.ndarray]:
    """Prepares to predict the same images again and again; they lie where the config's loader says.

    Args:
      config: the run.
      images: [N, H, W] uint8, 0..255, or features (see `cached`).
      mesh: the devices.
      views: as in `steps.make_predict`.
      cached: as in `steps.make_predict`.

    Returns:
      `predict_images(variables) -> logits`: variables {"params", "batch_stats"} on every device, logits [N, C] float32.
    """
    batches = make_eval_batches(len(images), config.train.eval_batch_size, mesh.size)
    streamed = config.train.loader == "stream" and len(batches) > 1  # One batch is not worth the readers.
    predict_batches = make_predict(make_graph(config), mesh, views, cached, streamed)
    on_devices = () if streamed else (put(images, mesh), put(batches, mesh, axis=1))

    def predict_resident(variables):
        return jax.device_get(predict_batches(variables, *on_devices))

    def predict_streamed(variables):
        logits = []
        for rows in stream_rows((images,), lambda i: batches[i : i + 1], range(len(batches)), mesh):
            logits.append(predict_batches(variables, *rows))
            logits[-2:-1] = jax.device_get(logits[-2:-1])  # So no more than two batches wait on the devices.
        return jax.device_get(logits)

    def predict_images(variables):
        logits = np.concatenate((predict_streamed if streamed else predict_resident)(variables))
        return logits.reshape(-1, logits.shape[-1])[: len(images)]

    return predict_images


def compute_probabilities(logits: np.ndarray) -> np.ndarray:
    """[N, C] logits -> [N, C] float64 probabilities. In float64, where sure cases do not all become 1.0."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


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
        value = metrics.choose_threshold(
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
        "checkpoint_step": run.step,
        "test_time_views": run.test_time_views,
        "data_fingerprint": split.fingerprint,
        "date": _now(),
        # Always chosen, whatever the rule of the value above.
        "operating_points": metrics.choose_operating_points(split.labels("binary"), scores),
    }
    if jax.process_index() == 0:
        write_json(run.workdir / "threshold.json", threshold)
    return threshold


def load_threshold(run: Run | Ensemble, rules: ThresholdConfig) -> dict:
    """The run's stored threshold if it follows these rules at this checkpoint; else chosen anew and stored.

    Raises:
      UserError: threshold.json is damaged, or the selection split is needed and missing.
    """
    path = run.workdir / "threshold.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            follows = _is_of(run, stored)
            follows = follows and all(stored[name] == wanted for name, wanted in _describe_rule(rules).items())
            float(stored["value"]), dict(stored["operating_points"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}). Delete it: the threshold is then chosen again.") from error
        if follows:
            return stored
    split, probabilities = _score_split(run, run.config.data.selection_split)
    store_calibration(run, split, probabilities)
    return store_threshold(run, rules, split, probabilities)


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
        "checkpoint_step": run.step,
        "test_time_views": run.test_time_views,
        "data_fingerprint": split.fingerprint,
        "date": _now(),
    }
    if temperature is None:
        calibration["reason"] = (
            f"No temperature is best: {split.name} is decided all right, or no better than by chance."
        )
    if jax.process_index() == 0:
        write_json(run.workdir / "calibration.json", calibration)
    return calibration


def load_calibration(run: Run | Ensemble) -> dict:
    """The run's stored calibration if it is of this checkpoint; else fitted anew and stored.

    Raises:
      UserError: calibration.json is damaged, or the selection split is needed and missing.
    """
    path = run.workdir / "calibration.json"
    if path.exists():
        try:
            stored = json.loads(path.read_text())
            float(stored["temperature"]), float(stored["prevalence"])
            if _is_of(run, stored):
                return stored
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}). Delete it: it is then fitted again.") from error
    return store_calibration(run, *_score_split(run, run.config.data.selection_split))


def evaluate(run: Run | Ensemble, split_name: str, rules: ThresholdConfig | None = None) -> dict:
    """Scores a split; writes its numbers, predictions, curves, pictures and report to `<workdir>/evaluation/<split>/`.

    Args:
      run: from `open_run` or `open_ensemble`.
      split_name: validation or test (or train, to see how much was memorised).
      rules: of the threshold; None: the run's own. The threshold comes from the run's selection split, validation but
        for the leaky protocol, whatever split is scored.

    Returns:
      The content of metrics.json: what `statistics.compute_statistics` returns, and "threshold", "counts" and "run";
      the temperature stands in "calibration".

    Raises:
      UserError: the split or the run is missing or damaged.
    """
    rules = rules or run.config.threshold
    split, probabilities = _score_split(run, split_name)
    return write_evaluation(
        run, split, probabilities, load_threshold(run, rules), load_calibration(run), rules.prevalence
    )


def write_evaluation(
    run: Run | Ensemble,
    split: Split,
    probabilities: np.ndarray,
    threshold: dict,
    calibration: dict,
    prevalence: float | None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict:
    """Computes and writes what `evaluate` does, of probabilities that are at hand.

    Args:
      run: that they are of.
      split: what was scored.
      probabilities: [N, C] of the split.
      threshold: content of threshold.json; its thresholds may be [N] arrays, one for each image.
      calibration: content of calibration.json; its temperature may be [N] too.
      prevalence: of the rules.
      more: what metrics.json is to hold beside that.

    Returns:
      The content of metrics.json; of an array its distinct values.
    """
    task = run.config.model.task
    labels = split.labels(task)
    numbers = compute_statistics(split, task, probabilities, threshold, calibration, prevalence)
    results = {
        **numbers,
        "calibration": calibration | numbers["calibration"],
        "threshold": threshold,
        "counts": _count(split, labels, probabilities, threshold["value"], run.info["class_names"]),
        "run": {
            "workdir": str(run.workdir),
            "checkpoint": {"which": run.checkpoint, "step": run.step},
            "split": {"name": split.name, "fingerprint": split.fingerprint},
            "trained_on_this_data": check_data(run),
            "test_time_views": run.test_time_views,
            "bootstrap": {"resamples": BOOTSTRAP_RESAMPLES, "seed": BOOTSTRAP_SEED, "unit": "patient"},
            "date": _now(),
            **run.info,
        },
        **more,
    }
    directory = run.workdir / "evaluation" / split.name
    write_text(directory / "predictions.csv", _format_predictions(run, split, labels, probabilities, results))
    curves = compute_curves(split, probabilities, threshold, calibration)
    write_json(directory / "curves.json", curves)
    scores = metrics.compute_binary_scores(probabilities)
    decisions = metrics.compute_decisions(scores, threshold["value"])
    results = _list_distinct(results)
    _draw(run, split, curves, results, directory)
    networks = {str(one.workdir): one.info | {"step": one.step} for one in _list_networks(run)}
    write_text(directory / "report.html", make_report(results, split, scores, decisions, networks, directory))
    write_json(directory / "metrics.json", results)  # last: where it is, the rest is too
    return results


def _list_networks(run: Run | Ensemble) -> tuple[Run, ...]:
    return run.members if isinstance(run, Ensemble) else (run,)


def _list_distinct(content: Any) -> Any:
    """Puts lists of their distinct values for arrays, so that JSON can hold the content."""
    if isinstance(content, dict):
        return {name: _list_distinct(value) for name, value in content.items()}
    return np.unique(content).tolist() if isinstance(content, np.ndarray) else content


def _score_split(run: Run | Ensemble, name: str) -> tuple[Split, np.ndarray]:
    """A split and its class probabilities [N, C]."""
    if isinstance(run, Ensemble):
        return _score_split_together(run.members, name)
    split = load_split(run.config.data, name)
    return split, compute_probabilities(predict(run, split.images))


def _score_split_together(members: Sequence[Run], name: str) -> tuple[Split, np.ndarray]:
    """A split, as the first member sees it, and the mean of the members' calibrated probabilities."""
    scored = [_score_split(member, name) for member in members]
    first = scored[0][0]
    for member, (split, _) in zip(members, scored, strict=True):
        if split.fingerprint != first.fingerprint:
            raise UserError(
                f"{members[0].workdir} and {member.workdir} score different {name} images. "
                "Name with --data_dir the one data set that all are to be scored on."
            )
    temperatures = [load_calibration(member)["temperature"] for member in members]
    calibrated = [
        apply_temperature(probabilities, temperature)
        for (_, probabilities), temperature in zip(scored, temperatures, strict=True)
    ]
    return first, np.mean(calibrated, axis=0)


def _is_of(run: Run | Ensemble, stored: dict) -> bool:
    """Whether a stored threshold or calibration is of the scores that the run gives now."""
    # Files older than test_time_views are of the image itself.
    return stored["checkpoint_step"] == run.step and stored.get("test_time_views", 1) == run.test_time_views


def _describe_rule(rules: ThresholdConfig) -> dict:
    """The rule and the numbers that it uses, as threshold.json holds them; rule comes first."""
    numbers = {
        "target_sensitivity": {"target_sensitivity": rules.target_sensitivity},
        "youden": {},
        "cost_ratio": {"cost_ratio": rules.cost_ratio, "prevalence": rules.prevalence},
        "fixed": {"value": rules.fixed_threshold},
    }
    return {"rule": rules.threshold_rule} | numbers[rules.threshold_rule]


def check_data(run: Run | Ensemble) -> bool:
    """Whether the run was trained on the training split that belongs to the data set that is scored now."""
    if isinstance(run, Ensemble):
        return all([check_data(member) for member in run.members])  # A list: each that differs is to be named.
    record = read_record(run.config.data)
    same = record["fingerprints"]["train"] == run.info["data"]["fingerprints"]["train"]
    if not same:
        logger.warning(
            "this data set's training split is not the one the run was trained on: images that are scored now may have "
            "been trained on. Read the figures with that in mind."
        )
    return same


def _count(
    split: Split, labels: np.ndarray, probabilities: np.ndarray, threshold: float, class_names: list[str]
) -> dict:
    scores = metrics.compute_binary_scores(probabilities)
    decisions = metrics.compute_decisions(scores, threshold)
    confusion = {"at_threshold": metrics.compute_confusion(split.labels("binary"), decisions, 2).tolist()}
    if len(class_names) == 3:
        confusion["most_probable_class"] = metrics.compute_confusion(labels, probabilities.argmax(-1), 3).tolist()
    return {
        "images": len(split),
        "patients": len(np.unique(split.patient_ids)),
        "classes": {name: int((labels == i).sum()) for i, name in enumerate(class_names)},
        "confusion_matrix": {"rows": "true class", "columns": "decided class", **confusion},
    }


def _format_predictions(
    run: Run | Ensemble, split: Split, labels: np.ndarray, probabilities: np.ndarray, results: dict
) -> str:
    """CSV text, a row for each image. Python's shortest exact form of a float: read back, it decides the same."""
    names = run.info["class_names"]
    scores = metrics.compute_binary_scores(probabilities)
    decisions = metrics.compute_decisions(scores, results["threshold"]["value"])
    calibration, there = results["calibration"], results["at_prevalence"]
    calibrated = metrics.compute_binary_scores(apply_temperature(probabilities, calibration["temperature"]))
    calibrated_scores = {"calibrated_score": calibrated}
    if there:
        shifted = shift_prevalence(calibrated, calibration["prevalence"], there["prevalence"])
        calibrated_scores["score_at_prevalence"] = shifted
    by_image = {name: one for name, one in (("threshold", results["threshold"]["value"]),) if np.ndim(one)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    probability_columns = [f"probability_{name}" for name in names]
    class_column = ["most_probable_class"] if len(names) == 3 else []
    columns = ["filename", "patient_id", "label", *probability_columns, "score", "decision", *class_column]
    writer.writerow([*columns, *calibrated_scores, *by_image])
    for i in range(len(split)):
        row = [
            split.filenames[i],
            split.patient_ids[i],
            names[labels[i]],
            *map(float, probabilities[i]),
            float(scores[i]),
        ]
        row.append("PNEUMONIA" if decisions[i] else "NORMAL")
        row += [names[probabilities[i].argmax()]] if class_column else []
        writer.writerow(row + [float(column[i]) for column in (calibrated_scores | by_image).values()])
    return text.getvalue()


def _draw(run: Run | Ensemble, split: Split, curves: dict, results: dict, directory: pathlib.Path) -> None:
    values, threshold = results["metrics"], results["threshold"]["value"]
    save_roc(directory / "roc.png", curves["roc"], values, threshold, split.name)
    save_precision_recall(directory / "precision_recall.png", curves["precision_recall"], values, threshold, split.name)
    save_reliability(directory / "reliability.png", curves["reliability"], results["calibration"], split.name)
    save_decision_curve(directory / "decision_curve.png", curves["decision_curve"], split.name)
    save_predictive_values(
        directory / "predictive_values.png", curves["predictive_values"], results["counts"], threshold, split.name
    )
    confusion = results["counts"]["confusion_matrix"]
    save_confusion_matrix(
        directory / "confusion_matrix.png", np.array(confusion["at_threshold"]), ("NORMAL", "PNEUMONIA"), split.name
    )
    if "most_probable_class" in confusion:
        save_confusion_matrix(
            directory / "confusion_matrix_three_class.png",
            np.array(confusion["most_probable_class"]),
            run.info["class_names"],
            split.name,
        )
    rows, selection_split = read_rows(run.workdir / "metrics.jsonl"), run.config.data.selection_split
    save_learning_curves(directory / "learning_curves.png", rows, selection_split)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
