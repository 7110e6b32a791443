"""The Kermany chest X-rays of children as a TFDS data set, without TensorFlow.

`prepare` packages a folder or zip file of the images (or synthetic radiographs). `verify` compares a prepared data set
with its metadata, which `read_metadata` reads. `choose_share` selects patients who hold a share of the images.
Importing this package does not import TFDS, so that a program which only reads decoded images needs no TFDS.
"""

from tfds_builder.kermany_pneumonia.prepare import (
    DATASETS,
    VERSION,
    dataset_dir,
    default_data_dir,
    prepare,
    read_metadata,
    verify,
)
from tfds_builder.kermany_pneumonia.sources import SourceError
from tfds_builder.kermany_pneumonia.splits import VALIDATION_FRACTION, choose_share

__all__ = [
    "DATASETS",
    "VALIDATION_FRACTION",
    "VERSION",
    "SourceError",
    "choose_share",
    "dataset_dir",
    "default_data_dir",
    "prepare",
    "read_metadata",
    "verify",
]
