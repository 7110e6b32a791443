"""Tests of scripts/pack_data.py: a training from packed images needs no package that reads the data set."""

import functools
import pathlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from forked import run_script

from experiments.flags import format_flags
from pneumojax.checkpoint import load_run

ROOT = pathlib.Path(__file__).parents[2]
ABSENT = ("tensorflow", "tensorflow_datasets", "array_record", "grain", "optuna", "importlib_resources")


@pytest.fixture
def pack(processes, tmp_path):
    """`pack(...)`: runs the script."""
    return functools.partial(run_script, processes, tmp_path, "scripts/pack_data.py")


@pytest.mark.slow
def test_a_training_from_packed_images_without_tfds_has_the_same_weights_to_the_last_bit(
    pack, processes, data_dir, tmp_path
):
    fields = {"image_px": 16, "model": "mlp", "mlp_widths": [8], "epochs": 1}
    out = tmp_path / "packed.zip"
    done = pack("--dataset=phantom", f"--data_dir={data_dir}", "--image_px=16", f"--out={out}")
    assert done.returncode == 0 and f"Written: {out}" in done.stdout, done.stderr
    with zipfile.ZipFile(out) as packed:
        assert len(packed.namelist()) == 1 + 2 * 3  # The metadata, and three files for each split.
        packed.extractall(tmp_path / "unpacked")
    words = format_flags(fields | {"data_dir": str(tmp_path / "unpacked")})
    command = ["train.py", f"--workdir={tmp_path / 'packed'}", *words]
    program = f"import sys, runpy; sys.modules.update(dict.fromkeys({ABSENT})); sys.argv = {command!r}\n"
    program += "runpy.run_path('experiments/train.py', run_name='__main__')"
    trained = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert trained.returncode == 0, trained.stderr
    words = [f"--workdir={tmp_path / 'prepared'}", *format_flags(fields | {"data_dir": str(data_dir)})]
    assert run_script(processes, tmp_path, "experiments/train.py", *words).returncode == 0
    weights = [jax.tree.leaves(load_run(tmp_path / name, "latest")[1]) for name in ("packed", "prepared")]
    assert all(np.array_equal(*pair) for pair in zip(*weights, strict=True))


def test_bad_input_is_a_sentence(pack, data_dir, tmp_path):
    given = ("--dataset=phantom", f"--data_dir={data_dir}", f"--out={tmp_path / 'packed.zip'}")
    for word, sentence in (
        ("--image_px=big", "--image_px must be whole numbers"),
        ("--image_px=8", "image_px must be at least 16"),
        ("--splits=other", "has no other split"),
        ("--dataset=kermany", "is not prepared"),
    ):
        done = pack(*given, word)
        assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.zip*"))
