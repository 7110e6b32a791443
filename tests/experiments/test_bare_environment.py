"""Tests of a minimal GPU environment: training and benchmarks need no package that only reads or prepares data."""

import pathlib
import subprocess
import sys

import pytest

from experiments.flags import format_flags
from pneumojax.config import config_from_dict
from pneumojax.data.dataset import load_split

ROOT = pathlib.Path(__file__).parents[2]
ABSENT = ("tensorflow", "tensorflow_datasets", "array_record", "grain", "optuna", "importlib_resources")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"


def run_without(program):
    """Runs a program in a process in which the packages of ABSENT cannot be imported."""
    done = subprocess.run([sys.executable, "-c", f"{BLOCK}\n{program}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_training_runs_and_benchmarks_are_imported_without_the_packages_that_prepare_data(data_dir, tmp_path):
    fields = {"data_dir": str(data_dir), "image_px": 16, "model": "mlp", "mlp_widths": [8], "epochs": 1}
    config = config_from_dict(fields)
    for split in ("train", "validation"):
        load_split(config.data, split)  # Decodes the images into the cache.
    command = ["train.py", f"--workdir={tmp_path / 'run'}", *format_flags(fields)]
    modules = ("experiments.benchmarks.measure", "pneumojax.training.replicas", "pneumojax.evaluation.evaluate")
    output = run_without(
        f"import runpy, {', '.join(modules)}; runpy.run_path('experiments/benchmark.py')\n"
        f"sys.argv = {command!r}; runpy.run_path('experiments/train.py', run_name='__main__')"
    )
    assert "Finished" in output


@pytest.mark.slow
def test_the_tests_for_accelerators_are_collected_without_the_packages_that_prepare_data():
    listed = run_without(
        "import pytest; sys.exit(pytest.main('-n 0 -p no:cacheprovider --collect-only -q -m gpu'.split()))"
    )
    assert "test_accelerator.py" in listed and "error" not in listed
