"""Tests of file names, and of hostile and damaged sources that tests/faults/test_fuzz.py found."""

import io
import os
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from source_files import write_zip

from tfds_builder.kermany_pneumonia import SourceError, sources


def encode_jpeg():
    file = io.BytesIO()
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(file, "JPEG")
    return file.getvalue()


TREE = dict.fromkeys(("train/NORMAL/IM-0001-0001.jpeg", "train/PNEUMONIA/person1_virus_1.jpeg"), encode_jpeg())
NORMAL = next(iter(TREE))


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def replace_bytes(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("filename", "label", "expected"),
    [
        ("person135_bacteria_642.jpeg", "PNEUMONIA", ("BACTERIA", "person", "135")),
        ("person63_virus_123_2.jpg", "PNEUMONIA", ("VIRUS", "person", "63")),
        ("IM-0115-0001.jpeg", "NORMAL", ("NORMAL", "IM", "0115")),
        ("IM-0429-0001-0002.JPG", "NORMAL", ("NORMAL", "IM", "0429")),
        ("NORMAL2-IM-1427-0001.png", "NORMAL", ("NORMAL", "NORMAL2-IM", "1427")),
        ("BACTERIA-7422-0001.jpeg", "PNEUMONIA", ("BACTERIA", "patient", "7422")),
        ("NORMAL-1049278-0001.jpeg", "NORMAL", ("NORMAL", "patient", "1049278")),
    ],
)
def test_file_names(filename, label, expected):
    assert sources.parse_name(filename, label) == sources.Name(*expected)


def test_a_member_without_a_name_is_passed_over(tmp_path):
    path = write_zip(tmp_path / "source.zip", TREE | {"x": b"data"})
    replace_bytes(path, b"x", b"\0")  # zipfile truncates a name at the first zero byte.
    with sources.Source(path) as source:
        assert [image.path for image in source.images] == list(TREE)


def test_a_zip_with_damaged_names_is_a_sentence(tmp_path):
    path = write_zip(tmp_path / "source.zip", TREE | {"t\u00e9\u00e9.jpeg": b"data"})
    replace_bytes(path, "t\u00e9\u00e9".encode(), b"t\xff\xff\xff\xff")
    with pytest.raises(SourceError, match="The zip file .*source.zip is cut short or damaged"):
        sources.Source(path)


def test_a_zip_of_a_future_version_is_a_sentence(tmp_path):
    path = write_zip(tmp_path / "source.zip", TREE)
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.index(b"PK\1\2") + 6, 255)  # the version that is needed to extract the member
    path.write_bytes(data)
    with pytest.raises(SourceError, match="is cut short or damaged: zip file version 25.5"):
        sources.Source(path)


def test_file_names_that_are_not_unicode_are_a_sentence(tmp_path):
    write_folder(tmp_path, TREE)
    (tmp_path / "train" / "NORMAL" / os.fsdecode(b"IM-\xff.jpeg")).write_bytes(encode_jpeg())
    with sources.Source(tmp_path) as source:
        (image,) = (image for image in source.images if "IM-0" not in image.filename and image.label == "NORMAL")
        with pytest.raises(SourceError, match="The file name .* has no known pattern"):
            sources.parse_name(image.filename, image.label)


@pytest.mark.parametrize("filename", ["IM-\u0661\u0662-0001.jpeg", "person\u0661_virus_1.jpeg"])
def test_numbers_are_of_ascii_digits(filename):
    """Otherwise one patient could have two names."""
    with pytest.raises(SourceError, match="The file name .* has no known pattern"):
        sources.parse_name(filename, "PNEUMONIA" if "person" in filename else "NORMAL")


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    write_folder(tmp_path / "source", TREE)
    os.mkfifo(tmp_path / "source" / "train" / "NORMAL" / "IM-0002-0001.jpeg")
    os.mkfifo(tmp_path / "pipe.zip")
    code = """
import sys
from tfds_builder.kermany_pneumonia import SourceError, sources
for path, image in ((sys.argv[1], "train/NORMAL/IM-0002-0001.jpeg"), (sys.argv[2], None)):
    try:
        sources.Source(path).read(image)
    except SourceError as error:
        print(error)
"""
    arguments = [sys.executable, "-c", code, tmp_path / "source", tmp_path / "pipe.zip"]
    first, second = subprocess.check_output(arguments, text=True, timeout=30).splitlines()
    assert first.endswith("IM-0002-0001.jpeg in source can't be read: it is not a regular file.")
    assert second.endswith("pipe.zip is neither a folder nor a zip file.")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_compression_whose_memory_cannot_be_limited_is_refused(tmp_path, compression):
    path = write_zip(tmp_path / "source.zip", TREE, compression)
    with sources.Source(path) as source, pytest.raises(SourceError, match="compression is not supported; use deflate"):
        source.read(NORMAL)


def test_files_above_the_limit_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 1 << 20)
    large = TREE | {NORMAL: bytes(2 << 20)}
    for path in (write_folder(tmp_path / "source", large), write_zip(tmp_path / "source.zip", large)):
        with sources.Source(path) as source, pytest.raises(SourceError, match="2,097,152 bytes, more than .* 1 MiB"):
            source.read(NORMAL)


def test_a_member_that_is_longer_than_it_says_takes_no_more_memory_than_it_says(tmp_path):
    path = tmp_path / "source.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(NORMAL, "w") as file:
            for _ in range(200):
                file.write(bytes(1 << 20))
        archive.writestr("train/PNEUMONIA/person1_virus_1.jpeg", b"data")
    replace_bytes(path, struct.pack("<I", 200 << 20), struct.pack("<I", 1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with sources.Source(path) as source, pytest.raises(SourceError, match="can't be read: Bad CRC-32"):
        source.read(NORMAL)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10  # KiB on Linux, bytes on macOS.
