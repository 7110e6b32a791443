"""Tests of the cache of decoded images: it is complete or absent, verified, and cleaned after killed writers."""

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from pneumojax.data import cache
from pneumojax.data.cache import read_cache, write_cache
from pneumojax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8)).astype(np.uint8)
EXAMPLES = {"subtype": [0, 1, 2, 0, 1]}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "decoded" / "train-8px"
    write_cache(path, IMAGES, EXAMPLES)
    return path


def test_what_was_written_is_read(folder):
    images, examples = read_cache(folder, 8)
    np.testing.assert_array_equal(images, IMAGES)
    assert isinstance(images, np.memmap) and not images.flags.writeable
    assert examples == EXAMPLES
    assert [path.name for path in folder.parent.iterdir()] == ["train-8px"]


@pytest.mark.parametrize("name", ["images.npy", "examples.json"])
def test_one_flipped_bit_is_noticed(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"damaged .{name} has another checksum.*Delete that folder"):
        read_cache(folder, 8)


@pytest.mark.parametrize("text", ["", "[]", "1", '{"images.npy": 1}', '{"none.npy": 1}'])
def test_damaged_checksums_are_noticed(folder, text):
    (folder / "checksums.json").write_text(text)
    with pytest.raises(UserError, match="are damaged"):
        read_cache(folder, 8)


def test_checksums_are_computed_once_for_each_content(folder, monkeypatch):
    computed = []
    crc32 = cache.zlib.crc32
    monkeypatch.setattr(cache.zlib, "crc32", lambda content: computed.append(len(content)) or crc32(content))
    read_cache(folder, 8)
    times = len(computed)
    read_cache(folder, 8)
    assert len(computed) == times
    os.utime(folder / "images.npy", (1, 1))
    read_cache(folder, 8)
    assert len(computed) == times + 1


def test_a_folder_without_checksums_is_written_anew(folder):
    (folder / "checksums.json").unlink()
    assert read_cache(folder, 8) is None
    write_cache(folder, IMAGES, EXAMPLES)
    assert json.loads((folder / "checksums.json").read_text()).keys() == {"images.npy", "examples.json"}
    assert read_cache(folder, 8) is not None


def write_and_die(folder):
    cache.np.save = lambda path, images: os.kill(os.getpid(), signal.SIGKILL)
    write_cache(folder, IMAGES, EXAMPLES)


def test_what_a_killed_writer_left_is_removed(folder):
    process = multiprocessing.get_context("fork").Process(target=write_and_die, args=(folder,))
    process.start()
    process.join()
    assert len([*folder.parent.iterdir()]) == 2
    assert read_cache(folder, 8) is not None
    assert [path.name for path in folder.parent.iterdir()] == ["train-8px"]
