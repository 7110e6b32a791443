"""Exports a trained run as a folder that opens without this package: in JAX alone, or in any runtime for ONNX.

    scripts/run pip install -e '.[onnx]'
    scripts/run experiments/export.py --workdir=runs/flagship_small --out=flagship_small_model
    scripts/run experiments/predict.py --workdir=flagship_small_model --out=predictions.csv folder
    python flagship_small_model/example.py flagship_small_model child.jpeg    # needs only jax, numpy and pillow

The folder has the network with its preprocessing and its calibration (model.stablehlo, for CPU, GPU and TPU, and
model.onnx), the weights alone (model.safetensors), what flags unsuitable images (gate.npz), and model.json with the
classes, the image size, the threshold, the calibration and the hash of each file. The input is [batch, image_px,
image_px] uint8, 0..255. The outputs are calibrated probabilities, logits and features. Each program is compared with
the checkpoint before the folder appears. A run with --dtype=bfloat16 is exported in float32, and a run with several
test-time views with one.
"""

import dataclasses
import pathlib

from absl import flags

from experiments.cli import run

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run")
flags.DEFINE_alias("model", "workdir")
OUT = flags.DEFINE_string("out", None, "folder to make", required=True)
ONNX = flags.DEFINE_bool("onnx", True, "also write model.onnx")
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ("best", "latest"), "best by the select_by of the run, or the latest"
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder of prepared data sets, for a run without a stored threshold or gate (default: the run's)"
)
GATE = flags.DEFINE_bool("gate", True, "also write gate.npz, which flags images for which the network is not made")


EXAMPLE = pathlib.Path(__file__).with_name("export_example.py")


def main() -> int:
    # These import JAX, so they come after the flag checks.
    from pneumojax.evaluation.classifier import make_classifier
    from pneumojax.evaluation.ensemble import open_predictor
    from pneumojax.evaluation.export import check_export, export
    from pneumojax.evaluation.gate_training import load_or_train_gate
    from pneumojax.sharding import initialize

    initialize(multihost=False)
    out = pathlib.Path(OUT.value).expanduser()
    predictor = open_predictor([WORKDIR.value], CHECKPOINT.value, DATA_DIR.value, test_time_views=1)
    exported = check_export(predictor, out, ONNX.value)
    for name, value in (("dtype", exported.config.model.dtype), ("test_time_views", 1)):
        if (trained := predictor.info["config"].get(name, value)) != value:
            print(
                f"The run has {name}={trained} and the export {name}={value}, so their probabilities differ slightly."
            )
    gate = load_or_train_gate(predictor, make_classifier(predictor, batch_size=8)) if GATE.value else None
    classifier = dataclasses.replace(make_classifier(exported, batch_size=8), gate=gate)
    differences = export(predictor, classifier, out, ONNX.value, EXAMPLE.read_text())
    for name, outputs in differences.items():
        (what, difference), *_ = outputs.items()
        print(f"{name}: {what.replace('_', ' ')} within {difference:.1e} of the checkpoint's")
    print(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    print(f"Next: scripts/run experiments/predict.py --workdir={out} --out=predictions.csv FOLDER")
    return 0


if __name__ == "__main__":
    run(main)
