"""Prepares the chest X-rays for training: finds and checks the images, splits them by patient, prints what it found.

    scripts/run scripts/prepare_data.py --source=ChestXRay2017.zip    # or any folder that holds chest_xray
    scripts/run scripts/prepare_data.py                               # downloads Mendeley v2 (1.2 GB), checks it
    scripts/run scripts/prepare_data.py --verify                      # compares a prepared data set with its metadata

For 5,232 images it takes about a minute at their original size, and a few seconds if they are reduced to 224 pixels.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from absl import app, flags, logging

from tfds_builder import kermany_pneumonia
from tfds_builder.kermany_pneumonia import SourceError

_DATASET = flags.DEFINE_enum(
    "dataset", "kermany", kermany_pneumonia.DATASETS, "kermany: the real images. phantom: synthetic radiographs."
)
_SOURCE = flags.DEFINE_string(
    "source", None, "Folder or zip file of the real images. Without it, Mendeley v2 is downloaded."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of all data sets. Default: $TFDS_DATA_DIR or ~/tensorflow_datasets."
)
_SKIP_BAD_IMAGES = flags.DEFINE_bool(
    "skip_bad_images", False, "Leave out images that do not decode, and list them, instead of stopping."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that was prepared before.")
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Read a prepared data set and compare it with its metadata; write nothing."
)

DUPLICATES = {
    "left_out_redundant": "left out of train and validation: byte-identical to another training image",
    "left_out_in_test": "left out of train and validation: byte-identical to a test image",
    "left_out_contradictory": "left out of train and validation: the same bytes are filed under two subtypes",
    "marked_in_test": "kept in test and marked: byte-identical to another test image",
}
SUBTYPES = ("NORMAL", "BACTERIA", "VIRUS")


def main() -> None:
    """Prepares or verifies a data set, and prints its table."""
    directory = kermany_pneumonia.dataset_dir(_DATASET.value, _DATA_DIR.value)
    if _VERIFY.value:
        problems = kermany_pneumonia.verify(directory)
        if problems:
            sys.exit("\n".join(f"prepare_data.py: {problem}" for problem in problems))
        metadata = kermany_pneumonia.read_metadata(directory)
        print(f"{directory} matches its metadata: {count_images(metadata)} images were read, and no byte has changed.")
    else:
        was_there = directory.exists() and not _OVERWRITE.value
        kermany_pneumonia.prepare(
            _DATASET.value, _DATA_DIR.value, _SOURCE.value, _SKIP_BAD_IMAGES.value, _OVERWRITE.value
        )
        metadata = kermany_pneumonia.read_metadata(directory)
        print(f"{directory}: {'already prepared' if was_there else 'prepared'} from {metadata['source']}.")
    print(format_table(metadata))
    print("\nNext: " + next_command())


def count_images(metadata: dict[str, Any]) -> int:
    """Returns the number of images in all splits of a data set, given its metadata."""
    return sum(sum(counts.values()) for counts in metadata["counts"].values())


def format_table(metadata: dict[str, Any]) -> str:
    """Formats the metadata of a data set: a row for each split, then the images that were left out and the reasons."""
    rows = [("split", *SUBTYPES, "images", "patients", "RGB", "width px", "height px")]
    for split, counts in metadata["counts"].items():
        sizes = [
            "{min}..{median}..{max}".format(**metadata["sizes"][split][dimension]) for dimension in ("width", "height")
        ]
        numbers = [counts[subtype] for subtype in SUBTYPES]
        rows.append((split, *numbers, sum(numbers), metadata["groups"][split], metadata["rgb"][split], *sizes))
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    lines = [""]
    for row in rows:
        cells = [str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    lines.append("(sizes: smallest..median..largest; a patient is a series and number in the file names)\n")
    for key, count in metadata["duplicates"].items():
        if count:
            lines.append(f"{count:6} {DUPLICATES[key]}")
    for reason, count in sorted(metadata["skipped"].items()):
        lines.append(f"{count:6} files ignored: {reason}")
    if metadata["bad_images"]:
        lines.append(f"{len(metadata['bad_images']):6} bad images skipped:")
        lines += [f"         {image['reason']}" for image in metadata["bad_images"]]
    lines.append(f"layout {metadata['layout']}, fingerprint {metadata['fingerprint'][:16]}")
    if metadata["synthetic"]:
        lines.append("These radiographs are synthetic: a result on them says nothing about real X-rays.")
    if not metadata["has_test"]:
        lines.append(
            "The source has no test folder, so there is no test split, and evaluating on test will be refused."
        )
    return "\n".join(lines)


def next_command() -> str:
    """Returns the command that trains on the prepared data set."""
    preset = " --flagfile=experiments/presets/resnet.flags --workdir=DIR" if _DATASET.value == "kermany" else ""
    data_dir = f" --data_dir={_DATA_DIR.value}" if _DATA_DIR.value else ""
    return f"scripts/run experiments/train.py --dataset={_DATASET.value}{preset}{data_dir}"


def run(argv: list[str]) -> None:
    """Runs main. An error that the user can correct is printed as one sentence. A signal leaves no unfinished files."""
    if len(argv) > 1:
        _exit_wrong_flag(f"Unexpected argument {argv[1]}; every option is a flag.")
    logging.set_verbosity(logging.WARNING)  # TFDS logs every step.

    def stop(signum: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(signum)

    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except SourceError as error:
        sys.exit(f"prepare_data.py: {error}")
    except KeyboardInterrupt as error:
        signum = error.args[0] if error.args else signal.SIGINT
        print("prepare_data.py: interrupted; the data folder is as it was before.", file=sys.stderr, flush=True)
        os._exit(128 + signum)  # A thread of TFDS may still be downloading; sys.exit would wait for it.


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _exit_wrong_flag(str(error))


def _exit_wrong_flag(message: str) -> NoReturn:
    print(f"prepare_data.py: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    app.run(run, flags_parser=_parse_flags)
