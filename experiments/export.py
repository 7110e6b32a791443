"""Exports a trained run as a folder that opens without this package: in JAX alone, or in any runtime for ONNX.

    scripts/run pip install -e '.[onnx]'
    scripts/run experiments/export.py --workdir=runs/flagship_small --out=flagship_small_model
    scripts/run experiments/predict.py --workdir=flagship_small_model --out=predictions.csv folder
    python flagship_small_model/example.py flagship_small_model child.jpeg       # needs jax, numpy and pillow only

The folder has the network with its preprocessing and its calibration (model.stablehlo, for CPU, GPU and TPU, and
model.onnx), the weights alone (model.safetensors), and model.json with the classes, the image size, the threshold, the
calibration and the hash of each file. The input is [batch, image_px, image_px] uint8, 0..255; the outputs are calibrated
probabilities and logits. Each file is compared with the checkpoint before the folder appears.
"""

import importlib.util
import pathlib

from absl import flags

from experiments.cli import fail, run

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run")
OUT = flags.DEFINE_string("out", None, "folder to make", required=True)
ONNX = flags.DEFINE_bool("onnx", True, "also write model.onnx")
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ("best", "latest"), "best by the select_by of the run, or the latest"
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder of prepared data sets, for a run without a stored threshold (default: the run's)"
)


def main() -> int:
    if ONNX.value and not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")):
        return fail("ONNX needs more packages: run scripts/run pip install -e '.[onnx]', or use --noonnx.")
    # These import JAX, so they come after the flag checks.
    from pneumojax.evaluation.classifier import make_classifier
    from pneumojax.evaluation.ensemble import open_predictor
    from pneumojax.evaluation.export import export
    from pneumojax.sharding import initialize

    initialize(multihost=False)
    out = pathlib.Path(OUT.value).expanduser()
    predictor = open_predictor([WORKDIR.value], CHECKPOINT.value, DATA_DIR.value, test_time_views=1)
    differences = export(predictor, make_classifier(predictor, batch_size=8), out, ONNX.value)
    for name, difference in differences.items():
        print(f"{name}: calibrated probabilities within {difference:.1e} of the checkpoint's")
    print(f"Written to {out}: model.json, {', '.join(differences)}, model.safetensors, example.py")
    print(f"Next: scripts/run experiments/predict.py --workdir={out} --out=predictions.csv FOLDER")
    return 0


if __name__ == "__main__":
    run(main)
