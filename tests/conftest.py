"""Eight simulated devices for all tests: set before JAX makes its first array."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A data folder with a small phantom set, prepared the real way."""
    from tfds_builder import kermany_pneumonia

    path = tmp_path_factory.mktemp("data")
    kermany_pneumonia.prepare("phantom", path, phantom_images=160)
    return path
