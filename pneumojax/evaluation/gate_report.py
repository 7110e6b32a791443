"""Measures the gate: false flags on validation, and how many unsuitable images of each kind are flagged."""

import functools
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.stats

from pneumojax.config import DataConfig
from pneumojax.data.dataset import Split, load_split
from pneumojax.data.image_sources import ImageSource
from pneumojax.evaluation.classifier import Classifier
from pneumojax.evaluation.file_prediction import predict_stream
from pneumojax.evaluation.gate import FAR
from pneumojax.evaluation.gate_probes import DEFECT, FOREIGN, HARMLESS, UNFORESEEN, list_probes
from pneumojax.evaluation.gate_training import load_squares
from pneumojax.evaluation.run import Predictor
from pneumojax.reporting.format import format_interval
from pneumojax.reporting.tables import Table
from tfds_builder import kermany_pneumonia

logger = logging.getLogger(__name__)

HEADINGS = {
    DEFECT: "X-rays with a defect that the gate learns, made from validation images with other random numbers",
    UNFORESEEN: "X-rays with other defects, made from validation images",
    FOREIGN: "Images that are no X-rays",
    HARMLESS: "X-rays with changes that a radiologist accepts, so flags on them are false",
}

NOT_MEASURED = (
    "Real lateral views and X-rays of adults are not measured, because the data set has none. The nearest that can be "
    "made are halves of the chest and X-rays that are shrunk in a dark field. "
    "Mirrored images are recognised by the heart's side alone: letters such as L and R are not read. A child whose "
    "heart is on the right is flagged too. The crops of a picture are not independent, so the intervals of "
    "photographs, textures and scanned text are too narrow."
)


def measure_gate(predictor: Predictor, classifier: Classifier) -> list[Table]:
    """Measures the gate of a classifier by predicting files, as predict.py does.

    Args:
      predictor: the run or ensemble.
      classifier: its classifier, with its gate.

    Returns:
      Tables: the false flags on the validation files, and the share of flagged images for each kind of
      `gate_probes.list_probes`.

    Raises:
      UserError: the validation split is missing or damaged.
    """
    config = predictor.config.data
    split = load_split(config, "validation")
    logger.info("Gate: flags of %d validation files", len(split))
    tables = [_make_false_flag_table(find_flags(classifier, read_files(config, split)))]
    largest = max(classifier.squares, key=lambda square: square.image_px)
    rows: dict[str, list[list[str]]] = {kind: [] for kind in HEADINGS}
    for probe in list_probes(load_squares(predictor, classifier, "validation")[largest]):
        logger.info("Gate: %s", probe.title)
        flags = find_flags(classifier, probe.make_files())
        named = _format_share([probe.flag in one for one in flags]) if probe.flag else "-"
        far = _format_share([FAR in one for one in flags])
        rows[probe.kind].append(
            [probe.title, str(len(flags)), _format_rate([bool(one) for one in flags]), far, probe.flag or "-", named]
        )
    columns = ("images", "flagged (95 % interval)", "far", "name", "flagged with the name")
    return [*tables, *(Table((heading, *columns), rows[kind]) for kind, heading in HEADINGS.items())]


def _make_false_flag_table(flags: list[list[str]]) -> Table:
    rows = [["any", str(len(flags)), str(sum(map(bool, flags))), _format_rate([bool(one) for one in flags])]]
    for name in sorted({name for one in flags for name in one}):
        has_flag = [name in one for one in flags]
        rows.append([name, str(len(flags)), str(sum(has_flag)), _format_rate(has_flag)])
    return Table(("false flag on validation", "images", "flagged", "share (95 % interval)"), rows)


def _format_rate(hits: list[bool]) -> str:
    """Formats a share in percent with the exact interval of Clopper and Pearson."""
    ci95 = scipy.stats.binomtest(sum(hits), len(hits)).proportion_ci(method="exact")
    return format_interval({"value": 100 * np.mean(hits), "ci95": (100 * ci95.low, 100 * ci95.high)}, ".1f") + " %"


def _format_share(hits: list[bool]) -> str:
    """Formats a share in percent, such as "87.1 %"."""
    return f"{100 * np.mean(hits):.1f} %"


def find_flags(classifier: Classifier, files: Sequence[bytes]) -> list[list[str]]:
    """Finds the flags of image files.

    Args:
      classifier: a classifier with a gate.
      files: the bytes of the files. All of them can be read.

    Returns:
      The flags of each file.
    """
    sources = (ImageSource(str(i), functools.partial(bytes, data)) for i, data in enumerate(files))
    return [row["flags"] for rows in predict_stream(classifier, sources) for row in rows]


def read_files(config: DataConfig, split: Split) -> list[bytes]:
    """Reads the files of a split as they were before decoding.

    Args:
      config: the data set and its folder.
      split: a split of its official training images.

    Returns:
      The bytes of the files, in the order of the split.
    """
    import tensorflow_datasets as tfds

    data_dir = pathlib.Path(config.data_dir or kermany_pneumonia.default_data_dir()).expanduser().resolve()
    builder = tfds.builder_from_directory(kermany_pneumonia.dataset_dir(config.dataset, data_dir))
    wanted, found = set(split.filenames.tolist()), {}
    for name in ("validation",) if config.folds is None else ("train", "validation"):
        for example in builder.as_data_source(name, decoders={"image": tfds.decode.SkipDecoding()}):
            if (filename := example["filename"].decode()) in wanted:
                found[filename] = example["image"]
    return [found[name] for name in split.filenames.tolist()]
