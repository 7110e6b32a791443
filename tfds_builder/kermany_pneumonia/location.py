"""Finds the folders of prepared data sets."""

import os
import pathlib

NAME = "kermany_pneumonia"
DATASETS = ("kermany", "phantom")
VERSION = "1.1.0"


def default_data_dir() -> pathlib.Path:
    """Returns the data folder of TFDS: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def dataset_dir(dataset: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Returns the folder of a prepared data set.

    Args:
        dataset: kermany or phantom.
        data_dir: data folder; None: `default_data_dir()`.
    """
    data_dir = default_data_dir() if data_dir is None else pathlib.Path(data_dir).expanduser()
    return data_dir / NAME / dataset / VERSION
