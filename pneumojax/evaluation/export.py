"""Exports a run as a folder that opens without this package, and opens such folders.

The folder has these files:

  model.json          what the model takes and returns, threshold, calibration, licence, and the hash of each other file
  model.stablehlo     the network with preprocessing and calibration, from `jax.export`, for CPU, CUDA and TPU
  model.onnx          the same for other runtimes, if it was asked for
  model.safetensors   the weights alone
  gate.npz            flags unsuitable images in predict.py, if the run has a gate
  model_card.md       what the model is made for, how it was trained, and its results
  example.py          predicts an image with JAX alone
"""

import dataclasses
import datetime
import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from pneumojax.errors import UserError
from pneumojax.evaluation.cards import make_model_card
from pneumojax.evaluation.classifier import Classifier, Square
from pneumojax.evaluation.gate import read_gate, write_gate
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.recalibration import apply_calibration
from pneumojax.evaluation.run import Predictor, Run
from pneumojax.exported_program import OUTPUTS, make_function, open_program, serialize
from pneumojax.files import compute_sha256, replace_folder, write_bytes, write_json, write_text
from pneumojax.ops.xla import algorithms

FORMAT = "pneumojax export 1"

# Largest differences of calibrated probabilities from those of the checkpoint.
TOLERANCES = {"model.stablehlo": 1e-5, "model.onnx": 1e-4}

GATE = "gate.npz"


def export(
    predictor: Predictor, classifier: Classifier, out: pathlib.Path, onnx: bool, example: str
) -> dict[str, float]:
    """Exports a run.

    Args:
      predictor: the run.
      classifier: the same run, from `classifier.make_classifier`. Its gate is exported too, if it has one.
      out: the folder to make.
      onnx: whether to write model.onnx. It requires the extra `onnx`.
      example: content of example.py.

    Returns:
      {file: largest difference of its calibrated probabilities from those of the checkpoint, on random images}.

    Raises:
      UserError: `out` exists, the run cannot be exported, or a file does not predict what the checkpoint predicts.
      OSError: `out` cannot be written.
    """
    run = check_export(predictor, out, onnx)
    function = make_function(run.config, run.variables, classifier.calibration)
    card = make_model_card(run)
    px, content = run.config.data.image_px, describe(run, classifier)
    with replace_folder(out) as folder:
        write_bytes(folder / "model.stablehlo", serialize(function, px))
        if onnx:
            from pneumojax.evaluation.onnx_graph import convert

            with algorithms("xla"):
                model = convert(function, px, OUTPUTS, {"classes": ",".join(classifier.class_names), "format": FORMAT})
            write_bytes(folder / "model.onnx", model.SerializeToString())
        write_bytes(folder / "model.safetensors", save(flatten(run.variables)))
        if classifier.gate:
            write_gate(folder / GATE, classifier.gate)
        write_text(folder / "example.py", example)
        write_text(folder / "model_card.md", card)
        differences = measure_parity(run, classifier, folder)
        content["parity"] = differences
        content["files"] = {path.name: compute_sha256(path) for path in sorted(folder.iterdir())}
        write_json(folder / "model.json", content)
    return differences


def check_export(predictor: Predictor, out: pathlib.Path, onnx: bool) -> Run:
    """Checks that a run can be exported to a folder, and returns the run.

    Raises:
      UserError: as in `export`, and if a package for ONNX is missing.
    """
    if onnx and not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")):
        raise UserError("ONNX needs more packages: run scripts/run pip install -e '.[onnx]', or use --noonnx.")
    if out.exists():
        raise UserError(f"{out} exists already. Name a new folder with --out, or delete this one.")
    if len(predictor.members) > 1:
        raise UserError("an ensemble cannot be exported as one model. Export each of its runs.")
    (run,) = predictor.members
    if run.config.augment.test_time_views > 1:
        raise UserError("a model with several test-time views cannot be exported. Use --test_time_views=1.")
    if onnx and run.config.model.dtype != "float32":
        raise UserError(f"ONNX is written for float32 only, and this run has {run.config.model.dtype}. Use --noonnx.")
    return run


def describe(run: Run, classifier: Classifier) -> dict[str, Any]:
    """Returns the content of model.json, except for the hashes of the files."""
    data = run.config.data
    return {
        "format": FORMAT,
        "input": {
            "name": "images",
            "shape": ["batch", data.image_px, data.image_px],
            "dtype": "uint8",
            "range": [0, 255],
            "content": "grey radiographs, bright bones, upright",
            "image_px": data.image_px,
            "resize": data.resize,
        },
        "outputs": {
            "calibrated_probabilities": "[batch, classes] float32",
            "logits": "[batch, classes] float32, before calibration",
            "features": "[batch, features] float32, what the classifier gets, averaged over positions",
        },
        "class_names": list(classifier.class_names),
        "score": "1 - softmax(logits)[0], the probability of pneumonia before calibration",
        "threshold": classifier.threshold,
        "calibration": classifier.calibration,
        "model": classifier.model,
        "network": dataclasses.asdict(run.config.model),
        "trained_on": run.info["data"],
        "versions": run.info["versions"],
        "licence": "Apache-2.0 for the code. The licence of the data named in trained_on also holds for the weights.",
        "not_a_medical_device": "For research. It must not be used to decide about patients.",
        "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def flatten(variables: dict) -> dict[str, np.ndarray]:
    """Names each array of nested dicts by its path: {"params": {"head": ...}} -> {"params.head. ...": array}."""
    flat = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {".".join(str(part.key) for part in path): np.ascontiguousarray(leaf) for path, leaf in flat}


def measure_parity(run: Run, classifier: Classifier, folder: pathlib.Path) -> dict[str, float]:
    """Compares the files of an export with the checkpoint, on random images of 1 and of 5.

    Returns:
      {file: largest difference of the calibrated probabilities}.

    Raises:
      UserError: a difference is larger than the file's tolerance.
    """
    px, rng = run.config.data.image_px, np.random.default_rng(0)
    differences: dict[str, float] = {}
    for number in (1, 5):
        # Smooth images of all contrasts resemble radiographs more than noise does.
        coarse = rng.integers(0, 256, (number, 5, 5)).repeat(-(-px // 5), 1).repeat(-(-px // 5), 2)
        images = (coarse[:, :px, :px] * rng.random((number, 1, 1))).astype(np.uint8)
        calibration = classifier.calibration
        expected = apply_calibration(
            compute_probabilities(run.predict(images)), calibration["temperature"], calibration["biases"]
        )
        for name in TOLERANCES:
            if (folder / name).exists():
                opened = open_program(folder / name) if name == "model.stablehlo" else open_onnx(folder / name)
                found = opened(images)[0]
                differences[name] = max(differences.get(name, 0.0), float(np.abs(found - expected).max()))
    for name, difference in differences.items():
        if not difference <= TOLERANCES[name]:
            raise UserError(
                f"{name} differs from the checkpoint by {difference:.1e}, more than {TOLERANCES[name]:.0e}: "
                f"it was not written. Please report this with the config of the run."
            )
    return differences


def open_onnx(path: pathlib.Path) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Opens a model.onnx as a function of images [B, H, W] uint8, which runs on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(list(OUTPUTS), {"images": images}))


def is_export(path: pathlib.Path) -> bool:
    """Returns whether a folder is an export."""
    return (path / "model.json").is_file()


def read_export(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the model.json of an export, and checks the hash of each file.

    Raises:
      UserError: the format is another one, or a file is missing or was changed.
    """
    try:
        content = json.loads((folder / "model.json").read_text())
        found, files = content["format"], dict(content["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / 'model.json'} is damaged: export the run again.") from error
    if found != FORMAT:
        raise UserError(f"{folder} has the format {found!r}, and this version reads {FORMAT!r}: export the run again.")
    for name, expected in files.items():
        if (actual := compute_sha256(folder / name)) != expected:
            state = "is missing" if actual is None else "was changed after the export"
            raise UserError(f"{folder / name} {state}: export the run again.")
    return content


def open_export(folder: pathlib.Path, batch_size: int, gate: bool) -> Classifier:
    """Opens an export as a classifier.

    Args:
      folder: the export.
      batch_size: largest number of images in a batch.
      gate: whether to flag images for which the model is not made.

    Raises:
      UserError: `read_export` raises it, or the export has no gate and `gate` is true.
    """
    content = read_export(folder)
    if gate and GATE not in content["files"]:
        raise UserError(f"{folder} was exported with --nogate: give --nogate here too, or export the run again.")
    predict = open_program(folder / "model.stablehlo")

    def predict_batch(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((batch_size, *images.shape[1:]), np.uint8)  # A batch of another size is compiled again.
        padded[: len(images)] = images
        _, logits, features = predict(padded)
        return logits[: len(images)], features[: len(images)]

    square = Square(content["input"]["image_px"], content["input"]["resize"])
    return Classifier(
        [(square, predict_batch)],
        [],
        content["threshold"],
        content["calibration"],
        content["class_names"],
        batch_size,
        content["model"],
        read_gate(folder / GATE) if gate else None,
    )
