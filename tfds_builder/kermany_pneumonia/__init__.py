"""The Kermany chest X-rays of children as a TFDS data set, without TensorFlow.

`prepare` packages a folder or zip of the images (or drawn phantoms), `verify` checks a packaged set against its record,
`read_record` gives that record, `choose_share` cuts off a share by whole groups. Importing this module does not import
TFDS, so that readers can share its paths.
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
from tfds_builder.kermany_pneumonia.splits import VALIDATION_FRACTION, choose_share, name_person

__all__ = [
    "DATASETS",
    "VALIDATION_FRACTION",
    "VERSION",
    "SourceError",
    "choose_share",
    "dataset_dir",
    "default_data_dir",
    "name_person",
    "prepare",
    "read_record",
    "verify",
]
