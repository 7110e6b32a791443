"""Exports networks with random weights to each format, and compares the files with the networks."""

import importlib.metadata
import math
import pathlib
import shlex
import tempfile
import time
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.records import describe_machine, find_commit, find_time
from experiments.flags import parse_config
from pneumojax.config import CLASS_NAMES, Config, config_fields
from pneumojax.errors import UserError
from pneumojax.evaluation.classifier import Classifier, Square, make_predict_batch
from pneumojax.evaluation.ensemble import Ensemble
from pneumojax.evaluation.export import TOLERANCES, check_export, check_parity, make_file, measure_parity
from pneumojax.evaluation.run import Predictor, Run
from pneumojax.exported_program import PLATFORMS
from pneumojax.files import write_bytes
from pneumojax.sharding import make_mesh
from pneumojax.steps import make_abstract_variables

PRESETS = pathlib.Path(__file__).parents[1] / "presets"

# Largest number of images in a batch. The others are 1 and 5.
BATCH_SIZE = 32

# What changes the exported program: layers, image sizes (even, odd and the smallest), scaling, classes and devices.
VARIANTS = [
    "--model=mlp --mlp_widths=8 --image_px=16",
    "--model=cnn --pixel_scaling=image",
    "--model=cnn --image_px=75 --task=three_class",
    "--model=cnn --parallel=shard_map",
    "--model=flatiron --image_px=75",
    "--model=flatiron --image_px=224",
    "--model=vgg16 --vgg_width=16 --vgg_dense_widths=64,64 --image_px=16",
    "--model=vgg16 --vgg_width=16 --vgg_dense_widths=64,64 --image_px=75",
    "--model=vgg16 --vgg_width=16 --vgg_dense_widths=64,64 --image_px=224 --pretrained=vgg16.safetensors",
    "--model=vgg16 --vgg_width=16 --vgg_dense_widths= --pixel_scaling=image",
    "--model=resnet9 --resnet_width=16 --resnet_stem=strided --image_px=75 --task=three_class",
    "--model=resnet9 --resnet_width=16 --resnet_stem=small --pixel_scaling=image",
    "--model=resnet18 --resnet_width=16 --resnet_stem=strided --image_px=75",
    "--model=resnet18 --resnet_width=16 --resnet_stem=small --pixel_scaling=image",
    "--model=resnet18 --resnet_width=16 --image_px=16 --pretrained=resnet18.safetensors",
    "--model=resnet50 --resnet_width=16 --resnet_stem=strided --image_px=75",
    "--model=resnet50 --resnet_width=16 --resnet_stem=small --task=three_class",
    "--model=resnet50 --resnet_width=16 --resnet_stride=1x1 --pixel_scaling=image",
    "--model=resnet50 --image_px=224 --pretrained=resnet50.safetensors",
    "--model=cnn --dtype=bfloat16",
    "--model=resnet18 --resnet_width=16 --dtype=bfloat16",
    "--model=cnn --test_time_views=4",
]


def list_cases() -> dict[str, str]:
    """Returns {name: flags of the config}: each network at its default widths, the variants, and the presets."""
    (field,) = (field for field in config_fields() if field.name == "model")
    words = [f"--model={name} --task=three_class" for name in field.metadata["choices"]] + VARIANTS
    cases = {one.replace("--model=", "").replace("--", ""): one for one in words}
    return cases | {path.stem: f"--flagfile={path}" for path in sorted(PRESETS.glob("*.flags"))}


def make_random_variables(config: Config) -> dict[str, Any]:
    """Makes random variables, {"params", "batch_stats"}, for a network.

    Scales, biases and statistics differ from their initial 0 or 1. Otherwise an export could leave them out unnoticed,
    and each residual block, whose last scale is 0 in a new network.
    """
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) > 1:
            return rng.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
        middle = 1.0 if path[-1].key in ("scale", "var") else 0.0
        if len(path) > 3 and path[-2].key in ("norm2", "norm3") and path[-1].key == "scale":
            middle = 0.5  # The last layers of a residual block: the sum over many blocks must not grow without limits.
        return rng.uniform(middle - 0.4, middle + 0.4, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, make_abstract_variables(config))


def make_random_run(config: Config) -> Predictor:
    """Makes a run with random weights, or an ensemble of such runs if the config has several replicas."""
    info = {"class_names": CLASS_NAMES[config.model.task]}
    run = Run(pathlib.Path("random"), info, config, make_random_variables(config), 0, "latest")
    return run if config.train.replicas == 1 else Ensemble(run.workdir, (run,) * config.train.replicas)


def measure(name: str, words: str) -> dict[str, Any]:
    """Exports a network to each format, and compares the files with the network.

    Args:
      name: name of the row.
      words: flags of the config.

    Returns:
      A row of results. Its "reason" says why the network cannot be exported; "" if it was. "files" is {file:
      {"differences": as from `measure_parity`, "bytes", "seconds"}}, and "platforms" are those of model.stablehlo.
    """
    predictor = make_random_run(parse_config(shlex.split(words)))
    row: dict[str, Any] = {
        "what": "export",
        "network": name,
        "image_px": predictor.config.data.image_px,
        "classes": len(predictor.info["class_names"]),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(predictor.members[0].variables["params"])),
    }
    with tempfile.TemporaryDirectory() as temporary:
        try:
            row |= {"reason": ""} | _export_and_compare(predictor, pathlib.Path(temporary))
        except UserError as error:
            row["reason"] = str(error)
    jax.clear_caches()  # Frees the memory of the constants.
    row |= describe_machine()
    row["versions"] |= {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime", "safetensors")}
    return row | {"created": find_time(), "commit": find_commit()}


def _export_and_compare(predictor: Predictor, folder: pathlib.Path) -> dict[str, Any]:
    run = check_export(predictor, folder / "new", onnx=True)
    px, names = run.config.data.image_px, run.info["class_names"]
    predict = make_predict_batch(run.config, make_mesh(), run.variables, BATCH_SIZE)
    logits, _ = predict(np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, px, px), np.uint8))
    # With this temperature, no probability is so close to 0 or 1 that it would hide a difference.
    calibration = {"temperature": float(np.abs(logits).max()) / 4, "biases": [0.0, 0.5, -0.25][: len(names)]}
    files: dict[str, dict[str, Any]] = {}
    for name in TOLERANCES:
        start = time.perf_counter()
        content = make_file(name, run, calibration)
        files[name] = {"seconds": time.perf_counter() - start, "bytes": len(content)}
        write_bytes(folder / name, content)
    square = Square(px, run.config.data.resize)
    classifier = Classifier([(square, predict)], [], {}, calibration, names, BATCH_SIZE, "random")
    for name, differences in measure_parity(run, classifier, folder).items():
        files[name]["differences"] = differences
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    return {"files": files, "platforms": list(program.platforms)}


def find_failures(rows: list[dict]) -> list[str]:
    """Returns a sentence for each row with a difference that `export.py` would refuse, or without a platform."""
    failures = []
    for row in rows:
        try:
            check_parity({name: file["differences"] for name, file in row.get("files", {}).items()})
        except UserError as error:
            failures.append(f"{row['network']}: {error}")
        if not row["reason"] and row["platforms"] != list(PLATFORMS):
            failures.append(f"{row['network']}: model.stablehlo is only for {', '.join(row['platforms'])}.")
    return failures
