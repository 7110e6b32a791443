"""The Kermany chest X-rays of children as a TFDS data set. It does not need TensorFlow.

`prepare` packages a folder or zip file of the images, or synthetic radiographs. `verify` compares a prepared data set
with its metadata. `read_metadata` returns these metadata. `choose_share` selects patients who have a given share of the
images. Importing this package does not import TFDS, so a program that only reads decoded images does not need TFDS.
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
