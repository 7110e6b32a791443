"""Small sets of synthetic radiographs for the tests of the builder; no real X-ray is needed."""

import pathlib
import shutil

import pytest
from source_files import NUM_IMAGES

from tfds_builder.kermany_pneumonia import phantom


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> pathlib.Path:
    """Synthetic radiographs in Kaggle's layout; not to be changed."""
    return phantom.draw_folder(tmp_path_factory.mktemp("drawn"), NUM_IMAGES)


@pytest.fixture
def chest_xray(drawn, tmp_path) -> pathlib.Path:
    """A copy of them that a test may change."""
    return shutil.copytree(drawn, tmp_path / "source" / "chest_xray")
