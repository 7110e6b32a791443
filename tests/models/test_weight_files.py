"""Tests of weight files that cannot be read or must not be read."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from pneumojax.errors import UserError
from pneumojax.models.weight_files import read_tensors


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("none.safetensors", None, "there is no file"),
        ("a.zip", b"", r"must end in \.safetensors, \.pth, "),
        ("a.safetensors", b"nonsense", r"a\.safetensors cannot be read"),
        ("a.safetensors", b"", r"a\.safetensors cannot be read"),
        ("a.safetensors", safetensors.numpy.save({"kernel": np.ones(9)})[:-10], r"a\.safetensors cannot be read"),
        ("a.h5", b"", r"a\.h5 cannot be read"),
        ("a.h5", b"nonsense", r"a\.h5 cannot be read"),
        ("a.keras", b"nonsense", r"a\.keras cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_gives_a_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_tensors(tmp_path / name)


def test_a_folder_is_refused_with_the_file_in_it(tmp_path):
    with pytest.raises(UserError, match=r"is a folder. Name a file, such as \S+/backbone\.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"conv1.weight": 1}}])
def test_a_pickle_of_something_else_than_named_tensors_gives_a_sentence(tmp_path, monkeypatch, content):
    torch = types.SimpleNamespace(load=lambda path, map_location, weights_only: content if weights_only else None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.pth cannot be read .* It is damaged or has another format"):
        read_tensors(tmp_path / "a.pth")


def test_a_file_of_keras_without_layers_gives_a_sentence(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.ones(3)
    with pytest.raises(UserError, match="it holds no layers of Keras with names"):
        read_tensors(tmp_path / "a.h5")


def test_without_torch_a_pickle_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"torch is not installed. Save it as \.safetensors"):
        read_tensors(tmp_path / "a.pth")


class Harmful:
    def __reduce__(self):
        return os.mkdir, (os.environ["PNEUMOJAX_TEST_HARM"],)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_holds_more_than_tensors_is_refused_and_does_not_run(tmp_path, monkeypatch, zipped):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("PNEUMOJAX_TEST_HARM", str(tmp_path / "harm"))
    path = tmp_path / "a.pth"
    torch.save({"conv1.weight": torch.ones(3), "more": Harmful()}, path) if zipped else path.write_bytes(
        pickle.dumps(Harmful())
    )
    with pytest.raises(UserError, match="holds more than tensors, or is damaged"):
        read_tensors(path)
    assert not (tmp_path / "harm").exists()
