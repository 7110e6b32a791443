"""Fixtures of all tests, and their eight simulated devices, which are set before JAX makes its first array."""

import atexit
import contextlib
import functools
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile

# All tests, their processes and all workers share a compilation cache, so that each program is compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pneumojax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Nearly all time is spent on compilation; the programs run for milliseconds. Without XLA's fusion emitters, which use
# MLIR, a chunk of training compiles in half the time. jax 0.12 does not know this flag and would abort.
OLD_EMITTERS = importlib.metadata.version("jax") < "0.11"
FAST_TO_COMPILE = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * OLD_EMITTERS
# The tests for accelerators compile as users do.
if "gpu" not in sys.argv and FAST_TO_COMPILE not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_TO_COMPILE}"

# If a shell starts the tests in the background, they and their processes ignore Ctrl-C by default.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, worker_id):
    """A data folder with a small phantom set. The first worker prepares it for all workers."""
    pytest.importorskip("tensorflow_datasets")  # An environment that is only for GPU benchmarks does not have TFDS.
    from tfds_builder import kermany_pneumonia

    shared = tmp_path_factory.getbasetemp()
    path = (shared if worker_id == "master" else shared.parent) / "data"
    kermany_pneumonia.prepare("phantom", path, phantom_images=160)
    return path


@pytest.fixture(scope="session")
def make_config(data_dir):
    """`make_config(**fields)`: the config of a run that trains in a second, with random steps and a moving average.

    It uses the random operations that compile fast. test_steps.py tests the others.
    """
    from pneumojax.config import config_from_dict

    tiny = {"image_px": 32, "cnn_widths": (4, 8), "mlp_widths": (8,), "batch_size": 16, "chunk_steps": 2, "epochs": 3}
    tiny |= {"select_by": "auroc"}  # The best checkpoint is then often not the last one.
    drawing = {"dropout": 0.2, "ema_decay": 0.9, "rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0}
    return lambda **fields: config_from_dict({"data_dir": str(data_dir), **tiny, **drawing, **fields})


@pytest.fixture(scope="session")
def train_once(tmp_path_factory):
    """`train_once(config)`: trains a run, or returns the workdir of a run of this config. Tests must not change it."""
    from pneumojax.training.fit import fit

    @functools.cache
    def train(config):
        workdir = tmp_path_factory.mktemp("trained")
        fit(config, workdir, report=lambda *_: None)
        return workdir

    return train


@pytest.fixture(scope="module")
def make_run(data_dir, train_once, tmp_path_factory):
    """`make_run(**fields)`: returns the workdir of a small perceptron, trained on the phantom set, for this module."""
    from pneumojax.config import config_from_dict

    small = {
        "data_dir": str(data_dir),
        "select_by": "auroc",
        "image_px": 16,
        "model": "mlp",
        "mlp_widths": [16],
        "epochs": 2,
    }
    small |= {"rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0}  # Their compilation would take longest.
    runs, made = tmp_path_factory.mktemp("runs"), {}

    def make(**fields):
        config = config_from_dict(small | fields)
        if config not in made:
            made[config] = shutil.copytree(train_once(config), runs / f"run{len(made)}")
        return made[config]

    return make


@pytest.fixture(scope="session", autouse=True)
def draw_pictures():
    """`with draw_pictures():` draws figures. Elsewhere each is one white pixel, also in the scripts of `forked`."""
    from matplotlib.figure import Figure
    from pictures import save_white_pixel

    draw = Figure.savefig

    @contextlib.contextmanager
    def use(savefig):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", savefig)
            yield

    with use(save_white_pixel):
        yield lambda: use(draw)


@pytest.fixture(scope="session")
def compile_as_users_do():
    """`with compile_as_users_do():` compiles with XLA's usual flags, on which bitwise equality depends."""

    @contextlib.contextmanager
    def use():
        with pytest.MonkeyPatch.context() as patch:
            options = {"xla_backend_optimization_level": 3}
            if OLD_EMITTERS:
                options["xla_cpu_use_fusion_emitters"] = True
            patch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
            yield

    return use


@pytest.fixture(scope="session")
def processes():
    """Starts processes with other devices in half a second. They are forked from a server that has done the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pneumojax.training.fit", "pneumojax.evaluation.evaluate", "matplotlib.figure"])
    return context
