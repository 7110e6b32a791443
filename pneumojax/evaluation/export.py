"""Exports a run as a folder that opens without this package, and opens such folders.

The folder has these files:

  model.json          what the model takes and returns, threshold, calibration, licence, and the hash of each file
  model.stablehlo     the network with preprocessing and calibration, from `jax.export`, for CPU, CUDA and TPU
  model.onnx          the same for other runtimes, if it was asked for
  model.safetensors   the weights alone
  gate.npz            flags unsuitable images in predict.py, if the run has a gate
  model_card.md       what the model is made for, how it was trained, and its results
  example.py          predicts an image with JAX alone
"""

import dataclasses
import datetime
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save

from pneumojax.config import replace_fields
from pneumojax.errors import UserError
from pneumojax.evaluation.cards import make_model_card
from pneumojax.evaluation.classifier import Classifier, Square
from pneumojax.evaluation.gate import read_gate, write_gate
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.recalibration import apply_calibration
from pneumojax.evaluation.run import Predictor, Run
from pneumojax.exported_program import OUTPUTS, make_function, open_program, serialize
from pneumojax.files import compute_sha256, replace_folder, write_bytes, write_text
from pneumojax.ops.xla import algorithms

FORMAT = "pneumojax export 1"

# The files of the network, and the largest differences of calibrated probabilities (model.safetensors: of weights) from
# those of the checkpoint.
TOLERANCES = {"model.stablehlo": 1e-5, "model.onnx": 1e-4, "model.safetensors": 0.0}

GATE = "gate.npz"


def export(
    predictor: Predictor, classifier: Classifier, out: pathlib.Path, onnx: bool, example: str
) -> dict[str, dict[str, float]]:
    """Exports a run.

    Args:
      predictor: the run.
      classifier: the run that `check_export` returns, from `classifier.make_classifier`. Its gate is exported too, if
        it has one.
      out: the folder to make.
      onnx: whether to write model.onnx. It requires the extra `onnx`.
      example: content of example.py.

    Returns:
      As `measure_parity`.

    Raises:
      UserError: `out` exists, the run cannot be exported, or a file does not predict what the checkpoint predicts.
      OSError: `out` cannot be written.
    """
    run = check_export(predictor, out, onnx)
    card = make_model_card(predictor.members[0])
    content = describe(run, classifier)
    with replace_folder(out) as folder:
        for name in TOLERANCES:
            if onnx or name != "model.onnx":
                write_bytes(folder / name, make_file(name, run, classifier.calibration))
        if classifier.gate:
            write_gate(folder / GATE, classifier.gate)
        write_text(folder / "example.py", example)
        write_text(folder / "model_card.md", card)
        content["parity"] = differences = measure_parity(run, classifier, folder)
        check_parity(differences)
        content["files"] = {path.name: compute_sha256(path) for path in sorted(folder.iterdir())}
        write_text(folder / "model.json", _format_description(content))
    return differences


def make_file(name: str, run: Run, calibration: dict[str, Any]) -> bytes:
    """Makes the content of one of the files that `TOLERANCES` names.

    Args:
      name: the file.
      run: the run.
      calibration: content of calibration.json.

    Raises:
      UserError: the network has an operation that ONNX does not have.
    """
    if name == "model.safetensors":
        return save(flatten(run.variables))
    function, px = make_function(run.config, run.variables, calibration), run.config.data.image_px
    if name == "model.stablehlo":
        return serialize(function, px)
    from pneumojax.evaluation.onnx_graph import convert

    with algorithms("xla"):
        metadata = {"classes": ",".join(run.info["class_names"]), "format": FORMAT}
        return convert(function, px, OUTPUTS, metadata).SerializeToString()


def check_export(predictor: Predictor, out: pathlib.Path, onnx: bool) -> Run:
    """Checks that a run can be exported to a folder.

    Returns:
      The run that is exported. It computes in float32: bfloat16 is rounded differently on each platform, and runtimes
      for ONNX lack it.

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
        raise UserError("several test-time views cannot be exported. Open the run with test_time_views=1.")
    return dataclasses.replace(run, config=replace_fields(run.config, {"dtype": "float32"}))


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


def measure_parity(run: Run, classifier: Classifier, folder: pathlib.Path) -> dict[str, dict[str, float]]:
    """Compares the files of an export with the checkpoint.

    The programs predict random images in batches of 1, of 5 and of the largest size of the classifier.

    Returns:
      {file: {name of an output, or "weights": largest absolute difference}}, for the files that are in the folder.
    """
    openers = {"model.stablehlo": open_program, "model.onnx": open_onnx}
    opened = {name: open_file(folder / name) for name, open_file in openers.items() if (folder / name).exists()}
    differences = {name: dict.fromkeys(OUTPUTS, 0.0) for name in opened}
    (square,), calibration, rng = classifier.squares, classifier.calibration, np.random.default_rng(0)
    for number in sorted({1, min(5, classifier.batch_size), classifier.batch_size}):
        images = _draw_images(rng, number, square.image_px)
        (logits,), features = classifier.compute({square: images})
        probabilities = apply_calibration(
            compute_probabilities(logits), calibration["temperature"], calibration["biases"]
        )
        for name, predict in opened.items():
            expected = (probabilities, logits, features)
            for output, found, wanted in zip(OUTPUTS, predict(images), expected, strict=True):
                largest = float(np.abs(found - wanted).max())
                differences[name][output] = float(np.maximum(differences[name][output], largest))  # Keeps a NaN.
    if (folder / "model.safetensors").exists():
        stored, ours = load_file(folder / "model.safetensors"), flatten(run.variables)
        assert stored.keys() == ours.keys()
        differences["model.safetensors"] = {"weights": max(float(np.abs(stored[k] - ours[k]).max()) for k in ours)}
    return differences


def check_parity(differences: dict[str, dict[str, float]]) -> None:
    """Checks the differences that `measure_parity` returns.

    Raises:
      UserError: calibrated probabilities or weights differ by more than the tolerance of their file.
    """
    for name, outputs in differences.items():
        (what, difference), *_ = outputs.items()
        if not difference <= TOLERANCES[name]:
            raise UserError(
                f"the {what.replace('_', ' ')} of {name} differ from those of the checkpoint by {difference:.1e}, more "
                f"than {TOLERANCES[name]:.0e}: nothing was written. Please report this with the config of the run."
            )


def _draw_images(rng: np.random.Generator, number: int, image_px: int) -> np.ndarray:
    """Draws images [number, image_px, image_px] uint8 of all contrasts: the first is the sharpest, the last is dim."""
    repeats = -(-image_px // 5)
    coarse = rng.integers(0, 236, (number, 5, 5)).repeat(repeats, 1).repeat(repeats, 2)[:, :image_px, :image_px]
    fine = rng.integers(0, 21, coarse.shape)
    return ((coarse + fine) * np.linspace(1, 0.1, number)[:, None, None]).astype(np.uint8)


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
        text = (folder / "model.json").read_bytes()
        content = json.loads(text)
        found, files, _ = content["format"], dict(content["files"]), content.pop("sha256")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / 'model.json'} is damaged: export the run again.") from error
    if found != FORMAT:
        raise UserError(f"{folder} has the format {found!r}, and this version reads {FORMAT!r}: export the run again.")
    if text != _format_description(content).encode():
        raise UserError(f"{folder / 'model.json'} was changed after the export: export the run again.")
    for name, expected in files.items():
        if (actual := compute_sha256(folder / name)) != expected:
            state = "is missing" if actual is None else "was changed after the export"
            raise UserError(f"{folder / name} {state}: export the run again.")
    return content


def _format_description(content: dict[str, Any]) -> str:
    """Formats the content of model.json, and adds its own hash."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content | {"sha256": digest}, indent=2) + "\n"


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
