"""Fixtures with small sets of synthetic radiographs, so that the tests need no real X-rays."""

import pathlib
import shutil

import pytest
from source_files import NUM_IMAGES

from tfds_builder.kermany_pneumonia import phantom


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> pathlib.Path:
    """Synthetic radiographs in Kaggle's layout. Tests must not change them."""
    return phantom.draw_folder(tmp_path_factory.mktemp("drawn"), NUM_IMAGES)


@pytest.fixture
def chest_xray(drawn, tmp_path) -> pathlib.Path:
    """A copy of the synthetic radiographs that a test may change."""
    return shutil.copytree(drawn, tmp_path / "source" / "chest_xray")
