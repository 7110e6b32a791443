"""The Kermany chest X-rays of children as a TFDS data set. It does not need TensorFlow.

`prepare` packages a folder or zip file of the images (or synthetic radiographs). `verify` compares a prepared data set
with its metadata, which `read_metadata` reads. `choose_share` selects patients who together have a share of the images.
Importing this package imports neither TFDS nor the code that prepares a data set, because a program that only reads
decoded images does not need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfds_builder.kermany_pneumonia.location import DATASETS, VERSION, dataset_dir, default_data_dir

if TYPE_CHECKING:
    from tfds_builder.kermany_pneumonia.preparation import prepare, read_metadata, verify
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

# The modules of the names that are imported on their first use.
_MODULES = {
    "SourceError": "sources",
    "VALIDATION_FRACTION": "splits",
    "choose_share": "splits",
    "prepare": "preparation",
    "read_metadata": "preparation",
    "verify": "preparation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
