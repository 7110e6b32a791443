"""Tests of the search for image files in folders, patterns and archives."""

import io
import os
import pathlib
import struct
import zipfile

import pytest

from pneumojax.data import image_sources
from pneumojax.data.image_sources import find_images


def list_names(*paths):
    return [source.name for source in find_images([str(path) for path in paths])]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.png", "sub/c.txt", "sub/.hidden", ".git/config", "sub/deep/d"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "images"


def test_folders_are_searched_in_order_without_hidden_files(folder):
    names = [str(folder / name) for name in ("a.png", "b.png", "sub/c.txt", "sub/deep/d")]
    assert list_names(folder) == names
    assert [source.read() for source in find_images([str(folder)])] == [b"a.png", b"b.png", b"sub/c.txt", b"sub/deep/d"]
    assert list_names(folder / "b.png", folder / "sub") == [names[1], *names[2:]]


def test_patterns_name_files_and_folders(folder):
    assert list_names(folder / "*.png") == [str(folder / "a.png"), str(folder / "b.png")]
    assert str(folder / "sub" / "deep" / "d") in list_names(folder / "**" / "d")
    (missing,) = find_images([str(folder / "*.dcm")])
    with pytest.raises(OSError, match="no file matches this pattern"):
        missing.read()
    (folder / "[x].png").write_text("a file whose name is a pattern")
    assert list_names(folder / "[x].png") == [str(folder / "[x].png")]


def test_members_of_archives_are_read_without_unpacking(folder, tmp_path):
    content = {"b/2.png": b"two", "a.png": b"one", "../../up.png": b"up", "__MACOSX/a.png": b"no", "b/.DS_Store": b"no"}
    with zipfile.ZipFile(folder / "archive.of.no.suffix", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("b")
        for name, data in content.items():
            archive.writestr(name, data)
    before = set(tmp_path.rglob("*"))
    found = {source.name: source.read() for source in find_images([str(folder / "archive.of.no.suffix")])}
    prefix = f"{folder / 'archive.of.no.suffix'}/"
    assert found == {f"{prefix}../../up.png": b"up", f"{prefix}a.png": b"one", f"{prefix}b/2.png": b"two"}
    assert set(tmp_path.rglob("*")) == before
    assert f"{prefix}a.png" in list_names(folder)


def read_error(path):
    (source,) = find_images([str(path)])
    with pytest.raises(OSError, match=".") as raised:
        source.read()
    return raised.value.strerror or str(raised.value)


def test_what_cannot_be_read_is_a_file_with_a_reason(folder, monkeypatch):
    assert read_error(folder / "missing.png") == "No such file or directory"
    os.mkfifo(folder / "pipe")
    assert read_error(folder / "pipe") == "it is not a regular file"
    os.symlink(folder / "gone", folder / "link")
    assert read_error(folder / "link") == "No such file or directory"
    (folder / "broken.zip").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    assert "it is a zip archive that cannot be opened" in read_error(folder / "broken.zip")
    monkeypatch.setattr(image_sources, "MAX_BYTES", 4)
    assert read_error(folder / "a.png") == "it has more than the limit of 4 bytes"


def test_damaged_encrypted_and_exploding_members_are_refused(folder, monkeypatch):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.png", b"\0" * 10_000_000)
    data = file.getvalue()
    path = folder / "one.zip"
    path.write_bytes(data)
    monkeypatch.setattr(image_sources, "MAX_BYTES", 1_000_000)
    assert read_error(path) == "it has more than the limit of 1,000,000 bytes"
    monkeypatch.undo()
    header, directory = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    encrypted = bytearray(data)
    encrypted[header + 6] |= 1
    encrypted[directory + 8] |= 1
    unknown = bytearray(data)
    unknown[header + 8 : header + 10] = unknown[directory + 10 : directory + 12] = struct.pack("<H", 77)
    wrong = bytearray(data)
    wrong[directory + 16] ^= 1  # The checksum.
    for one in (encrypted, unknown, wrong):
        path.write_bytes(one)
        assert read_error(path).startswith("it cannot be unpacked (")


def test_an_empty_archive_and_an_empty_folder_have_no_files(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    (tmp_path / "empty").mkdir()
    assert list_names(tmp_path / "empty.zip", tmp_path / "empty") == []


def test_files_are_found_while_they_are_read(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(image_sources, "_open", lambda path: opened.append(path) or iter([path]))
    found = find_images([str(folder)])
    next(found)
    assert opened == [str(folder / "a.png")]


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    pathlib.Path(os.fsdecode(bytes(tmp_path) + b"/\xff.png")).write_text("data")
    (source,) = find_images([str(tmp_path)])
    assert source.name == f"{tmp_path}/\\xff.png"
    assert source.read() == b"data"
