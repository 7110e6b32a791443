"""Trains and measures the gate, with which predict.py flags images for which a network is not made.

    scripts/run experiments/gate.py --workdir=runs/flagship_small
    scripts/run experiments/gate.py --workdir=runs/a,runs/b

The gate learns from the training images, and from images that are made from them: rotated, inverted, mirrored and so
on. It is stored as `<workdir>/gate.npz`, which contains averages over the training images and no image. predict.py also
trains it, if it is missing.

The measurement predicts the validation files, images that are made from them with defects and with harmless changes,
photographs, text and noise. Prints tables with the share of flagged images of each kind, and writes them to
`<workdir>/gate.md`. With flagship_small, training takes half a minute and the measurement one minute on 2 idle CPU
cores.
"""

import dataclasses

from absl import flags

from experiments.cli import run
from pneumojax.files import write_text

WORKDIR = flags.DEFINE_list(
    "workdir", ["runs/latest"], "folder of the run; several folders, separated by commas, are one ensemble"
)
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ("best", "latest"), "best by the select_by of the run, or the latest"
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets (default: where the run found them)")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "number of images that are predicted together", lower_bound=1)


def main() -> int:
    # These import JAX, so they come after the flags were checked.
    from pneumojax.evaluation.classifier import make_classifier
    from pneumojax.evaluation.ensemble import open_predictor
    from pneumojax.evaluation.gate_report import NOT_MEASURED, measure_gate
    from pneumojax.evaluation.gate_training import load_or_train_gate
    from pneumojax.sharding import initialize

    initialize(multihost=False)
    predictor = open_predictor(WORKDIR.value, CHECKPOINT.value, DATA_DIR.value)
    classifier = make_classifier(predictor, BATCH_SIZE.value)
    classifier = dataclasses.replace(classifier, gate=load_or_train_gate(predictor, classifier))
    tables = measure_gate(predictor, classifier)
    for table in tables:
        print("", table.format_text(), sep="\n")
    text = "\n\n".join(table.format_markdown() for table in tables)
    heading = f"Model {classifier.model} of {predictor.workdir}."
    path = predictor.workdir / "gate.md"
    write_text(path, f"# Input gate\n\n{heading}\n\n{text}\n\n{NOT_MEASURED}\n")
    print(f"\n{NOT_MEASURED}\n\nWritten to {path}.")
    return 0


if __name__ == "__main__":
    run(main)
