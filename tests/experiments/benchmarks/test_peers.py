"""Tests of what the peers of a benchmark share with pneumojax. The peers themselves need PyTorch or Keras."""

import json
import pathlib
import subprocess
import sys

import pytest

from experiments.benchmarks import peers
from pneumojax import preprocessing
from pneumojax.config import OptimizerConfig
from pneumojax.models import MODELS


def test_the_peers_use_our_constants():
    assert (peers.MEAN, peers.STD) == (preprocessing.PIXEL_MEAN, preprocessing.PIXEL_STD)
    ours = OptimizerConfig()
    assert (ours.learning_rate, ours.weight_decay) == (peers.LEARNING_RATE, peers.WEIGHT_DECAY)


@pytest.mark.parametrize("name", peers.BLOCKS)
def test_the_peers_have_our_numbers_of_blocks(name):
    assert peers.BLOCKS[name] == MODELS[name].args[0]


def test_files_are_read_in_order(tmp_path):
    files = [["b.jpeg", 0], ["a.jpeg", 1]]
    (tmp_path / "files.json").write_text(json.dumps(files))
    assert peers.read_files({"files": str(tmp_path / "files.json")}) == files


def test_the_file_of_the_peers_needs_none_of_our_packages():
    program = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-S", "-c", program, peers.__file__]
    loaded = subprocess.check_output(command, text=True, cwd=pathlib.Path(peers.__file__).parent).split()
    assert not {"experiments", "pneumojax", "jax", "numpy"} & set(loaded)
