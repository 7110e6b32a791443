"""Eight simulated devices for all tests: set before JAX makes its first array."""

import atexit
import contextlib
import functools
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import tempfile

# What one test compiled, neither the next one nor a process that it starts compiles again, nor another worker.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pneumojax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Nearly all the time goes into compiling; what is compiled runs for milliseconds. Without the emitters of fusions,
# which go through MLIR, a chunk of training compiles in half the time; jax 0.12 knows no such flag and would abort.
OLD_EMITTERS = importlib.metadata.version("jax") < "0.11"
FAST_TO_COMPILE = "--xla_backend_optimization_level=0" + " --xla_cpu_use_fusion_emitters=false" * OLD_EMITTERS
if FAST_TO_COMPILE not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_TO_COMPILE}"

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, worker_id):
    """A data folder with a small phantom set, prepared the real way, by the first worker for all."""
    pytest.importorskip("tensorflow_datasets")  # An environment for GPU benchmarks alone has none.
    from tfds_builder import kermany_pneumonia

    shared = tmp_path_factory.getbasetemp()
    path = (shared if worker_id == "master" else shared.parent) / "data"
    kermany_pneumonia.prepare("phantom", path, phantom_images=160)
    return path


@pytest.fixture(scope="session")
def make_config(data_dir):
    """`make_config(**fields)`: a run on that set which trains in a second, with random numbers and a moving average.

    Of all that draws, what compiles in no time: test_steps.py tries the rest.
    """
    from pneumojax.config import config_from_dict

    tiny = {"image_px": 32, "cnn_widths": (4, 8), "mlp_widths": (8,), "batch_size": 16, "chunk_steps": 2, "epochs": 3}
    drawing = {"dropout": 0.2, "ema_decay": 0.9, "rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0}
    return lambda **fields: config_from_dict({"data_dir": str(data_dir), **tiny, **drawing, **fields})


@pytest.fixture(scope="session", autouse=True)
def draw_pictures():
    """`with draw_pictures():` draws them. Elsewhere each is one white pixel: they take most of an evaluation's time."""
    from matplotlib.figure import Figure
    from PIL import Image

    white, draw = Image.new("L", (1, 1), 255), Figure.savefig

    @contextlib.contextmanager
    def use(savefig):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Figure, "savefig", savefig)
            yield

    with use(lambda figure, path, **options: white.save(path, "png")):
        yield lambda: use(draw)


@pytest.fixture(scope="session")
def compile_as_users_do():
    """`with compile_as_users_do():` for tests of bitwise equality, which depends on how XLA optimises."""

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
    """Starts processes of their own, with other devices, in half a second: one server has done the imports for them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pneumojax.training.fit", "pneumojax.evaluation.evaluate"])
    return context
