"""Predicts image files with a trained run, and writes a table with a row for each file.

    scripts/run experiments/predict.py --workdir=runs/resnet --out=predictions.csv child.jpeg folder archive.zip
    scripts/run experiments/predict.py --workdir=runs/a,runs/b --out=predictions.jsonl '/data/**/*.dcm'

PATH is a file, a folder with its subfolders, a zip archive or a pattern in quotes. JPEG, PNG, TIFF, GIF, BMP, WebP and
DICOM files are recognised by their content; DICOM needs `scripts/run pip install -e '.[dicom]'`. --workdir is as in
evaluate.py: one run, several runs as an ensemble, or the folder of a run's replicas. It can also be a folder of
export.py, whose checkpoint and number of views are fixed.

A row has the decision at the run's stored threshold, whether it is uncertain, flags, the score, the calibrated
probabilities of pneumonia (and of BACTERIA and VIRUS), notices about the file, the error if the file cannot be read,
and the fingerprint of the model. A score is uncertain inside the narrowest range of scores around the threshold that
contains half of the wrong decisions on validation. threshold.json holds this range.

A flagged image is probably unsuitable for the network, so its score should not be relied on. The flags are colour;
burnt_in_text, lateral and not_radiograph, if the header of a DICOM file says so; far (unlike the training images); and
the most probable defect: rotated_90, rotated_180, rotated_270, inverted, mirrored, clipped, corner, collimated, half,
wide_field, blank, text or picture. The first prediction of a run trains what finds far images and defects on the
training images, in a minute or less, and stores it as gate.npz. experiments/gate.py also trains it, and measures how
often it is right.

A bad file is a row with the reason, and never ends the command. Formats other than JPEG and PNG are decoded in
processes of their own, because their decoders may crash. Such a process has 60 s and 4 GiB for a file.

The command can be stopped with Ctrl-C. The same command resumes it: the rows in --out are kept, but files that failed
are tried again. The exit code is 1 if no file in the table could be predicted.
"""

import dataclasses
import pathlib
import warnings

from absl import flags

from experiments.cli import fail, run
from experiments.progress import FileProgress, format_resume

WORKDIR = flags.DEFINE_list(
    "workdir", ["runs/latest"], "folder of the run or export; several runs, separated by commas, predict as an ensemble"
)
flags.DEFINE_alias("model", "workdir")
OUT = flags.DEFINE_string("out", None, "the table to write, a .csv or .jsonl file", required=True)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "number of images that are predicted together", lower_bound=1)
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ("best", "latest"), "best by the select_by of the run, or the latest"
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder of prepared data sets, for a run without a stored threshold or gate (default: the run's)"
)
GATE = flags.DEFINE_boolean("gate", True, "whether to flag images for which the network is not made")
VIEWS = flags.DEFINE_integer(
    "test_time_views",
    None,
    "number of views of each image whose probabilities are averaged, including the image itself (default: the run's)",
    lower_bound=1,
)


def main(*paths: str) -> int:
    out = pathlib.Path(OUT.value).expanduser()
    # These import JAX, so they come after the flag checks.
    from pneumojax.data.image_sources import find_images
    from pneumojax.evaluation.classifier import make_classifier
    from pneumojax.evaluation.ensemble import open_predictor
    from pneumojax.evaluation.export import is_export, open_export
    from pneumojax.evaluation.file_prediction import predict_files
    from pneumojax.evaluation.gate_training import load_or_train_gate
    from pneumojax.sharding import initialize
    from pneumojax.training.interrupts import catch_signals

    warnings.simplefilter("ignore")  # Pillow warns about damage that it tolerates.
    initialize(multihost=False)
    if exports := [folder for folder in WORKDIR.value if is_export(pathlib.Path(folder).expanduser())]:
        if len(WORKDIR.value) > 1:
            return fail(f"{exports[0]} is an export, which cannot be a member of an ensemble: name it alone.")
        if VIEWS.value:
            return fail(f"{exports[0]} is an export, whose number of views is fixed: leave out --test_time_views.")
        classifier = open_export(pathlib.Path(exports[0]).expanduser(), BATCH_SIZE.value, GATE.value)
    else:
        predictor = open_predictor(WORKDIR.value, CHECKPOINT.value, DATA_DIR.value, VIEWS.value)
        classifier = make_classifier(predictor, BATCH_SIZE.value)
        if GATE.value:
            classifier = dataclasses.replace(classifier, gate=load_or_train_gate(predictor, classifier))
    progress = FileProgress()
    with catch_signals() as caught:
        try:
            counts = predict_files(classifier, find_images(paths), out, progress.report, lambda: bool(caught))
        finally:
            progress.close()
    if not counts.files:
        return fail(f"{', '.join(paths)}: there is no file to predict.")
    if caught:
        print(f"Stopped after {counts.files:,} files, which are in {out}.\n{format_resume()}")
        return 128 + caught[0]
    if not counts.predicted:
        return fail(
            f"no file could be predicted ({counts.failed:,} failed). The column error of {out} has the reasons."
        )
    print(
        f"{out}: {counts.files:,} files, {counts.predicted:,} predicted ({counts.pneumonia:,} PNEUMONIA), "
        f"{counts.uncertain:,} uncertain, {counts.flagged:,} flagged, {counts.failed:,} failed."
    )
    return 0


if __name__ == "__main__":
    run(main, ("PATH...",))
