"""Tests of `prepare`, which changes the data folder completely or not at all, and of `verify`."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest
from source_files import first_image, read_files, read_split, write_zip

from tfds_builder.kermany_pneumonia import (
    VERSION,
    SourceError,
    dataset_dir,
    prepare,
    read_metadata,
    sources,
    verify,
)

pytest.importorskip("tensorflow_datasets")
from tfds_builder.kermany_pneumonia import kermany_pneumonia_dataset_builder as builder_module


def spoil_missing(folder):
    shutil.rmtree(folder)


def spoil_empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def spoil_no_xrays(folder):
    spoil_empty(folder)
    (folder / "notes.txt").write_text("none")


def spoil_pointing_below(folder):
    (folder / "train").rename(folder.parent / "train")
    shutil.rmtree(folder)
    (folder.parent / "train").rename(folder)


def spoil_class_folder(folder):
    shutil.rmtree(folder / "train" / "NORMAL")


def spoil_name(folder):
    first_image(folder).rename(folder / "train" / "NORMAL" / "holiday.jpeg")


def spoil_class(folder):
    first_image(folder).rename(folder / "train" / "PNEUMONIA" / "IM-0001-0001.jpeg")


def spoil_truncated(folder):
    path = first_image(folder)
    path.write_bytes(path.read_bytes()[:-2000])


def spoil_zero(folder):
    first_image(folder).write_bytes(b"")


def spoil_text(folder):
    first_image(folder).write_text("not an image")


def spoil_second_set(folder):
    shutil.rmtree(folder / "val")
    shutil.rmtree(folder / "test")
    shutil.copytree(folder / "train", folder / "one" / "train")
    (folder / "two").mkdir()
    (folder / "train").rename(folder / "two" / "train")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_missing, "chest_xray does not exist"),
        (spoil_empty, "chest_xray is empty"),
        (spoil_no_xrays, "holds no chest X-rays"),
        (spoil_pointing_below, "point to the folder above"),
        (spoil_class_folder, "class folder train/NORMAL of chest_xray is missing"),
        (spoil_name, "The file name holiday.jpeg has no known pattern. Known patterns are: person1"),
        (spoil_class, "IM-0001-0001.jpeg is in a PNEUMONIA folder, but its name says NORMAL"),
        (spoil_truncated, "-0001.jpeg in chest_xray does not decode: .*truncated"),
        (spoil_zero, "-0001.jpeg in chest_xray is empty"),
        (spoil_text, "-0001.jpeg in chest_xray does not decode: it is neither JPEG nor PNG"),
        (spoil_second_set, "holds two image sets, one and two"),
    ],
)
def test_bad_source_is_a_sentence_and_leaves_nothing(chest_xray, tmp_path, spoil, sentence):
    spoil(chest_xray)
    with pytest.raises(SourceError, match=sentence):
        prepare("kermany", tmp_path / "data", source=chest_xray)
    assert not (tmp_path / "data").exists()


def test_bad_zip_is_a_sentence(drawn, tmp_path):
    data = write_zip(tmp_path / "good.zip", read_files(drawn, "chest_xray/")).read_bytes()
    name = b"chest_xray/train/NORMAL/"
    inside = data.index(name) + 3000
    bad = {
        "cut.zip": (data[: len(data) // 2], "cut.zip is cut short or damaged"),
        "text.zip": (b"hello", "neither a folder nor a zip"),
        "member.zip": (data[:inside] + b"\0\1\2\3\4" + data[inside + 5 :], "chest_xray/train/NORMAL/.* can't be read"),
    }
    for filename, (content, sentence) in bad.items():
        (tmp_path / filename).write_bytes(content)
        with pytest.raises(SourceError, match=sentence):
            prepare("kermany", tmp_path / "data", source=tmp_path / filename)
        assert not (tmp_path / "data").exists()


def test_zip_inside_is_pointed_to(drawn, tmp_path):
    inner = write_zip(tmp_path / "ChestXRay2017.zip", read_files(drawn))
    with pytest.raises(SourceError, match=r"holds ChestXRay2017\.zip: point to that file"):
        prepare("kermany", tmp_path / "data", source=tmp_path)
    outer = write_zip(tmp_path / "outer.zip", {"inner.zip": inner.read_bytes()})
    with pytest.raises(SourceError, match=r"holds inner\.zip: unpack that first"):
        prepare("kermany", tmp_path / "data", source=outer)


def test_bad_images_are_skipped_counted_and_listed_when_asked(chest_xray, tmp_path):
    path = first_image(chest_xray)
    path.write_bytes(path.read_bytes()[:-2000])
    metadata = read_metadata(prepare("kermany", tmp_path / "data", source=chest_xray, skip_bad_images=True))
    assert [image["filename"] for image in metadata["bad_images"]] == [path.name]
    assert "truncated" in metadata["bad_images"][0]["reason"]
    assert str(tmp_path) not in metadata["bad_images"][0]["reason"]
    assert sum(metadata["counts"]["train"].values()) + sum(metadata["counts"]["validation"].values()) == 43


def test_phantom_takes_no_source_and_dataset_is_known(drawn, tmp_path):
    with pytest.raises(SourceError, match="takes no source"):
        prepare("phantom", tmp_path, source=drawn)
    with pytest.raises(SourceError, match="one of kermany, phantom"):
        prepare("imagenet", tmp_path)


def test_same_source_is_accepted_another_refused_and_overwrite_replaces(drawn, chest_xray, tmp_path):
    data_dir = tmp_path / "data"
    directory = prepare("kermany", data_dir, source=drawn)
    written = (directory / "metadata.json").stat().st_mtime_ns
    assert prepare("kermany", data_dir, source=write_zip(tmp_path / "same.zip", read_files(drawn))) == directory
    assert (directory / "metadata.json").stat().st_mtime_ns == written
    shutil.rmtree(chest_xray / "test")
    with pytest.raises(SourceError, match="--overwrite"):
        prepare("kermany", data_dir, source=chest_xray)
    with pytest.raises(SourceError, match="--overwrite"):
        prepare("kermany", data_dir)
    prepare("kermany", data_dir, source=chest_xray, overwrite=True)
    assert not read_metadata(directory)["has_test"]
    assert os.listdir(directory.parent) == [VERSION]


@pytest.mark.parametrize(
    ("error", "expected", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), SourceError, "data: No space left on device.$"),
        # This is the format of array_record's messages.
        (
            RuntimeError("write() failed: No space left on device; writing F"),
            SourceError,
            "data: No space left on devi",
        ),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_failed_overwrite_keeps_the_earlier_set(drawn, chest_xray, tmp_path, monkeypatch, error, expected, sentence):
    directory = prepare("kermany", tmp_path / "data", source=drawn)
    before = read_files(tmp_path / "data")

    def fail(*_):
        raise error

    monkeypatch.setattr(builder_module.Builder, "_generate_examples", fail)
    with pytest.raises(expected, match=sentence):
        prepare("kermany", tmp_path / "data", source=chest_xray, overwrite=True)
    assert read_files(tmp_path / "data") == before
    assert verify(directory) == []


def test_failed_move_keeps_the_earlier_set(drawn, tmp_path, monkeypatch):
    prepare("kermany", tmp_path / "data", source=drawn)
    before = read_files(tmp_path / "data")
    rename = pathlib.Path.rename

    def fail_into_place(self, target):
        if "incomplete" in str(self) and self.name == VERSION:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail_into_place)
    with pytest.raises(SourceError, match="Input/output error"):
        prepare("kermany", tmp_path / "data", source=drawn, overwrite=True)
    assert read_files(tmp_path / "data") == before


def test_full_disk_read_only_folder_and_file_in_the_way_name_the_data_folder(drawn, tmp_path, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("a file")
    with pytest.raises(SourceError, match=f"data folder {in_the_way}: Not a directory"):
        prepare("kermany", in_the_way, source=drawn)
    assert in_the_way.read_text() == "a file"
    with monkeypatch.context() as patch:
        for free, sentence in ((1000, "MiB needed, 0 MiB free"), (-1, "Not enough disk space")):
            patch.setattr(shutil, "disk_usage", lambda _, free=free: types.SimpleNamespace(free=free))
            with pytest.raises(SourceError, match=f"data folder {tmp_path}/data: .*{sentence}"):
                prepare("kermany", tmp_path / "data", source=drawn)

    def refuse(*_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(SourceError, match=f"data folder {tmp_path}/data: Read-only"):
        prepare("kermany", tmp_path / "data", source=drawn)
    assert not (tmp_path / "data").exists()


def test_leftovers_of_a_killed_run_are_removed(drawn, tmp_path):
    leftover = tmp_path / "data" / "kermany_pneumonia" / "kermany" / "incomplete.killed"
    leftover.mkdir(parents=True)
    (leftover / "shard").write_text("half")
    directory = prepare("kermany", tmp_path / "data", source=drawn)
    assert os.listdir(directory.parent) == [VERSION]


@pytest.mark.slow
def test_two_at_once_give_one_good_set(drawn, tmp_path):
    code = "import sys; from tfds_builder.kermany_pneumonia import prepare; prepare('kermany', *sys.argv[1:])"
    command = [sys.executable, "-c", code, tmp_path / "data", drawn]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    directory = dataset_dir("kermany", tmp_path / "data")
    assert verify(directory) == []
    assert os.listdir(directory.parent) == [VERSION]


def test_second_process_waits_for_the_first(drawn, tmp_path):
    folder = dataset_dir("kermany", tmp_path / "data").parent
    folder.mkdir(parents=True)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    code = "import sys; from tfds_builder.kermany_pneumonia import prepare; prepare('kermany', *sys.argv[1:])"
    command = [sys.executable, "-c", code, tmp_path / "data", drawn]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert "waiting for another process" in process.stderr.readline()
    assert os.listdir(folder) == []
    os.close(handle)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert os.listdir(folder) == [VERSION]


@pytest.fixture(scope="session")
def prepared(drawn, tmp_path_factory) -> pathlib.Path:
    """A prepared data set. Tests must not change it."""
    return prepare("kermany", tmp_path_factory.mktemp("prepared"), source=drawn)


def test_verify_finds_a_flipped_bit_a_cut_and_a_missing_shard(prepared, tmp_path):
    assert verify(prepared) == []
    directory = shutil.copytree(prepared, tmp_path / "set")
    shard = next(directory.glob("*train*"))
    original = shard.read_bytes()
    image = read_split(prepared, "train")[5]["image"]
    place = original.index(image) + len(image) // 2
    shard.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
    assert any("train split" in problem for problem in verify(directory))
    shard.write_bytes(original[: len(original) // 2])
    assert any("train split" in problem for problem in verify(directory))
    shard.unlink()
    assert any("train split" in problem for problem in verify(directory))


def test_bytes_that_change_between_reading_and_writing_are_noticed(drawn, tmp_path, monkeypatch):
    read = sources.Source.read
    seen = set()

    def read_otherwise_the_second_time(self, path):
        data = read(self, path)
        is_first = path not in seen
        seen.add(path)
        return data if is_first else data + b"x"

    monkeypatch.setattr(sources.Source, "read", read_otherwise_the_second_time)
    with pytest.raises(SourceError, match=r"differ from what was read.* images of the train split have other bytes"):
        prepare("kermany", tmp_path / "data", source=drawn)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda metadata: metadata.update(fingerprint="0"), "fingerprint of the data set"),
        (lambda metadata: metadata["fingerprints"].update(test="0"), "fingerprint of the test split"),
        (lambda metadata: metadata["counts"]["validation"].update(VIRUS=99), "validation split holds"),
        (lambda metadata: metadata.clear(), "are damaged"),
    ],
)
def test_verify_compares_with_the_metadata(prepared, tmp_path, change, sentence):
    directory = shutil.copytree(prepared, tmp_path / "set")
    metadata = read_metadata(directory)
    change(metadata)
    (directory / "metadata.json").write_text(json.dumps(metadata))
    assert any(sentence in problem for problem in verify(directory))


def test_verify_finds_patients_and_bytes_in_two_splits(prepared, tmp_path):
    """Replaces the validation shard by the train shard, with consistent metadata."""
    directory = shutil.copytree(prepared, tmp_path / "set")
    train, validation = (next(directory.glob(f"*-{split}.*")) for split in ("train", "validation"))
    shutil.copyfile(train, validation)
    info = json.loads((directory / "dataset_info.json").read_text())
    by_name = {split["name"]: split for split in info["splits"]}
    by_name["validation"]["shardLengths"] = by_name["train"]["shardLengths"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    problems = "\n".join(verify(directory))
    assert "The patient train/" in problems
    assert "The image with sha256" in problems


def test_verify_of_nothing_is_a_sentence(tmp_path):
    assert "There is no prepared data set in" in verify(tmp_path)[0]
