"""Eight simulated devices for all tests: set before JAX makes its first array."""

import atexit
import multiprocessing
import os
import shutil
import tempfile

# What one test compiled, neither the next one nor a process that it starts compiles again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pneumojax-compiled-")
atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Nearly all the time goes into compiling; what is compiled runs for milliseconds.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A data folder with a small phantom set, prepared the real way."""
    from tfds_builder import kermany_pneumonia

    path = tmp_path_factory.mktemp("data")
    kermany_pneumonia.prepare("phantom", path, phantom_images=160)
    return path


@pytest.fixture(scope="session")
def make_config(data_dir):
    """`make_config(**fields)`: a run on that set which trains in a second, with all that draws random numbers."""
    from pneumojax.config import config_from_dict

    tiny = {"image_px": 32, "cnn_widths": (4, 8), "mlp_widths": (8,), "batch_size": 16, "chunk_steps": 2, "epochs": 3}
    drawing = {"dropout": 0.2, "mixup_alpha": 0.3, "ema_decay": 0.9, "erase_probability": 0.3, "crop_min_area": 0.8}
    return lambda **fields: config_from_dict({"data_dir": str(data_dir), **tiny, **drawing, **fields})


@pytest.fixture(scope="session")
def processes():
    """Starts processes of their own, with other devices, in half a second: one server has done the imports for them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pneumojax.train"])
    return context
