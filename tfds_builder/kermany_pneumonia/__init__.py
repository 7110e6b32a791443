"""The Kermany chest X-rays of children as a TFDS data set, without TensorFlow.

`prepare` packages a folder or zip of the images (or drawn phantoms), `verify` checks a packaged set against its record,
`read_record` gives that record. Importing this module does not import TFDS, so that readers can share its paths.
"""

from tfds_builder.kermany_pneumonia.prepare import (
    DATASETS,
    VERSION,
    dataset_dir,
    default_data_dir,
    prepare,
    read_record,
    verify,
)
from tfds_builder.kermany_pneumonia.sources import SourceError

__all__ = [
    "DATASETS",
    "VERSION",
    "SourceError",
    "dataset_dir",
    "default_data_dir",
    "prepare",
    "read_record",
    "verify",
]
