"""Tests that damaged and hostile images, zip files and file names raise only the documented errors.

    scripts/run pytest -m slow -n 1 -s tests/faults/test_fuzz.py      # 100,000 inputs, with a summary

Input i of a kind depends only on the random seed [KIND, i], so `make_image(17)` always returns the same bytes. The
message of a failure contains i.
"""

import collections
import contextlib
import io
import os
import pathlib
import resource
import signal
import struct
import sys
import types
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pneumojax.data.decode import decode_image
from tfds_builder.kermany_pneumonia import SourceError, images, sources, splits

SECONDS = 10.0  # Time limit for one input. The slowest ones declare 50 million pixels and take about one second.
MEMORY_BYTES = 1 << 30  # Limit for the growth of this process's peak memory over all inputs.
IMAGES, ARCHIVES, NAMES = 60_000, 30_000, 10_000

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and zipfile warn about damage that they tolerate.


# Checks of what an input must not do


def note_write(event: str, arguments: tuple) -> None:
    """An audit hook, which Python calls before each operation on files. It cannot be removed."""
    if watch.writes is None:
        return
    opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if opened or event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod"):
        watch.writes.append((event, *arguments))


watch = types.SimpleNamespace(writes=None)
sys.addaudithook(note_write)


@contextlib.contextmanager
def watched(number):
    """Fails if the block takes too long or writes a file."""

    def stop(signum, frame):
        raise TimeoutError(f"input {number} takes more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.writes = []
    try:
        yield
        assert watch.writes == [], f"input {number} writes"
    finally:
        watch.writes = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_inputs(kind, inputs, try_input):
    """Runs the inputs, counts their outcomes, and checks the memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = collections.Counter()
    for number in inputs:
        try:
            outcomes[try_input(number)] += 1
        except Exception as error:
            raise AssertionError(f"{kind} {number}: {error!r}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * (1 if sys.platform == "darwin" else 1024)
    print(f"\n{len(inputs):,} {kind}, peak memory grew by {grown >> 20} MiB")
    for outcome, count in outcomes.most_common():
        print(f"{count:8,} {outcome}")
    assert grown < MEMORY_BYTES
    assert len(outcomes) > 1


# Damage to arbitrary bytes


def damage(rng, data, others):
    """Applies one to three mutations: flipped or extreme bytes, truncation, a copied, removed or inserted part."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        start = int(rng.integers(len(data)))
        end = min(len(data), start + int(rng.integers(1, 65)))
        match rng.integers(7):
            case 0:
                for place in rng.integers(len(data), size=rng.integers(1, 9)):
                    data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[start:end] = rng.bytes(end - start)
            case 2:
                extreme = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff"])
                data[start : start + int(rng.integers(1, 5))] = extreme
            case 3:
                del data[start:]
            case 4:
                del data[start:end]
            case 5:
                data[start:start] = data[start:end]
            case 6:
                other = others[rng.integers(len(others))]
                place = int(rng.integers(len(other)))
                data[start:end] = other[place : place + int(rng.integers(1, 257))]
    return bytes(data)


# Images


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def make_seed_images():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28), np.uint8)
    grey = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    jpegs = [
        encode(grey, "JPEG"),
        encode(grey.resize((150, 130)), "JPEG", quality=30),
        encode(grey.convert("RGB"), "JPEG", exif=exif),
        encode(grey.convert("CMYK"), "JPEG"),
        encode(grey, "JPEG", progressive=True),
    ]
    pngs = [
        encode(grey, "PNG", exif=exif),
        encode(Image.fromarray(pixels.astype(np.uint16) * 16), "PNG"),
        *(encode(grey.convert(mode), "PNG") for mode in ("RGB", "RGBA", "P", "1", "LA")),
    ]
    return jpegs, pngs


JPEGS, PNGS = make_seed_images()


def damage_chunk(rng, png):
    """Damages one chunk of a PNG file and corrects its checksum, so that the chunk is read and not just rejected."""
    chunks, place = [], 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        chunks.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += 12 + length
    chosen = rng.integers(len(chunks))
    kind, content = chunks[chosen]
    if kind == b"IHDR":
        content = bytearray(content)
        field = rng.integers(7)
        if field < 2:  # Width or height, from 0 to above the limit.
            struct.pack_into(">I", content, 4 * int(field), int(rng.integers(2 ** int(rng.integers(1, 32)))))
        else:  # Bit depth, colour type, compression, filter, interlacing.
            content[6 + field] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, int(rng.integers(256))])
    elif kind == b"IDAT" and rng.random() < 0.5:
        content = zlib.compress(damage(rng, zlib.decompress(content), [content]))
    else:
        content = damage(rng, content, [other for _, other in chunks if other])
    chunks[chosen] = (kind, bytes(content))
    if rng.random() < 0.2:
        chunks.insert(int(rng.integers(len(chunks))), chunks[rng.integers(len(chunks))])
    parts = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return png[:8] + b"".join(parts)


def make_image(number):
    rng = np.random.default_rng([0, number])
    seeds = JPEGS if rng.random() < 0.5 else PNGS
    seed = seeds[rng.integers(len(seeds))]
    return damage_chunk(rng, seed) if seeds is PNGS and rng.random() < 0.6 else damage(rng, seed, JPEGS + PNGS)


def try_image(number):
    data = make_image(number)
    source = types.SimpleNamespace(name="source", read=lambda path: data)
    with watched(number):
        try:
            facts = sources.read_facts(source, "image")
        except SourceError:
            facts = None
        try:
            image = decode_image(data, 16)
        except OSError:
            image = None
    assert (facts is None) == (image is None), "the builder and the decoder disagree"
    if image is None:
        return "refused"
    assert (image.shape, image.dtype) == ((16, 16), np.uint8)
    assert facts.height * facts.width <= images.MAX_PIXELS
    return "decoded"


@pytest.mark.parametrize("inputs", [range(300), pytest.param(range(IMAGES), marks=pytest.mark.slow)], ids=len)
def test_images(inputs):
    run_inputs("images", inputs, try_image)


# Zip files

NORMALS = ("IM-0001-0001.jpeg", "NORMAL2-IM-0002-0001.jpeg", "IM-0003-0001.png", "IM-0003-0001-0002.jpeg")
PNEUMONIAS = ("person1_bacteria_1.jpeg", "person1_virus_2.jpeg", "person2_virus_3.png", "person3_virus_4.jpeg")


def make_tree():
    """Returns the paths and bytes of a small valid data set: eight different images in train and in test."""
    rng, tree = np.random.default_rng(0), {}
    for folder in ("train", "test"):
        for name in NORMALS + PNEUMONIAS:
            image = Image.fromarray(rng.integers(0, 256, (12, 16), np.uint8))
            label = "NORMAL" if name in NORMALS else "PNEUMONIA"
            tree[f"chest_xray/{folder}/{label}/{name}"] = encode(image, "PNG" if name.endswith("png") else "JPEG")
    return tree


TREE = make_tree()
HOSTILE_PATHS = (
    "../../train/NORMAL/IM-0009-0001.jpeg",
    "/etc/train/NORMAL/IM-0009-0001.jpeg",
    "C:\\train\\NORMAL\\IM-0009-0001.jpeg",
    "chest_xray\\train\\NORMAL\\IM-0009-0001.jpeg",
    "chest_xray/train/NORMAL/../../../../IM-0009-0001.jpeg",
    "chest_xray/train/NORMAL/",
    "chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg",
    "other/train/NORMAL/IM-0001-0001.jpeg",
    "chest_xray/train/NORMAL/IM-0001-0001.jpeg",
    "chest_xray/train/NORMAL/IM-0001-0001.jpeg/train/NORMAL/IM-0001-0001.jpeg",
    "chest_xray/train/NORMAL/IM-0001-0001\0.jpeg",
    "chest_xray/train/NORMAL/IM-\u0661\u0662-0001.jpeg",
    "",
    "train",
    "/",
    "..",
    "x" * 5000 + ".jpeg",
)

# Offsets of the fields of the central directory and of the local headers: APPNOTE.TXT, 4.3.12 and 4.3.7.
HEADER_FIELDS = {b"PK\1\2": (4, 8, 10, 16, 20, 24, 28, 30, 32, 42, 46), b"PK\3\4": (6, 8, 14, 18, 22, 26)}


def make_archive(number):
    """Makes a small zip file with unusual members, damaged bytes or wrong headers."""
    rng = np.random.default_rng([1, number])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path, data in TREE.items():
            if rng.random() > 0.02:
                methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
                archive.writestr(path, data, int(rng.choice(methods, p=[0.6, 0.38, 0.01, 0.01])))
        for _ in range(rng.choice([0, 1, 3])):
            member = zipfile.ZipInfo(str(rng.choice(HOSTILE_PATHS)))
            if rng.random() < 0.3:  # A symbolic link to a file outside.
                member.external_attr = 0o120777 << 16
                archive.writestr(member, "/etc/passwd")
            else:
                archive.writestr(member, JPEGS[rng.integers(len(JPEGS))])
    data = bytearray(file.getvalue())
    if rng.random() < 0.5:
        return damage(rng, data, [bytes(data), *JPEGS])
    for _ in range(rng.integers(4)):
        signature = [b"PK\1\2", b"PK\3\4"][rng.integers(2)]
        places = [place for place in range(len(data)) if data.startswith(signature, place)]
        place = places[rng.integers(len(places))] + int(rng.choice(HEADER_FIELDS[signature]))
        data[place : place + int(rng.integers(1, 5))] = struct.pack("<I", int(rng.integers(2 ** int(rng.integers(33)))))
    return bytes(data)


def read_source(path):
    """Does with a source what the builder does before it writes."""
    with sources.Source(path) as source:
        xrays = []
        for image in source.images:
            xrays.append(splits.make_xray(image, sources.read_facts(source, image.path)))
        splits.assign_splits(xrays)


@pytest.mark.parametrize("inputs", [range(100), pytest.param(range(ARCHIVES), marks=pytest.mark.slow)], ids=len)
def test_archives(tmp_path, inputs):
    path = tmp_path / "source.zip"

    def try_archive(number):
        path.write_bytes(make_archive(number))
        with watched(number):
            try:
                read_source(path)
            except SourceError as error:
                return "refused: " + shorten(str(error))
        return "read"

    run_inputs("archives", inputs, try_archive)
    assert os.listdir(tmp_path) == ["source.zip"]


def shorten(message):
    """Returns the kind of an error."""
    kinds = (
        "can't be read",
        "does not decode",
        "cut short or damaged",
        "neither a folder nor a zip",
        "missing",
        "layout",
    )
    kinds += ("empty", "holds no chest X-rays", "two image sets", "second copy", "is in a", "are named", "Too few")
    return next((kind for kind in kinds if kind in message), message)


# File names in a folder

LETTERS = [
    *"personbacteriavirusIMNORMAL2-_0123456789./\\ \t\n\r",
    "\0",
    "\udcff",
    "\u0663",
    "\u00e9",
    "..",
    ".jpeg",
    ".png",
]


def make_name(number):
    rng = np.random.default_rng([2, number])
    name = list(rng.choice([path.split("/")[-1] for path in TREE]))
    for _ in range(rng.integers(5)):
        start = int(rng.integers(len(name) + 1))
        name[start : start + int(rng.integers(3))] = [str(rng.choice(LETTERS)) for _ in range(rng.integers(4))]
    return "".join(name), str(rng.choice(["train", "val", "test"], p=[0.5, 0.1, 0.4])), str(rng.choice(sources.LABELS))


@pytest.mark.parametrize("inputs", [range(200), pytest.param(range(NAMES), marks=pytest.mark.slow)], ids=len)
def test_names(tmp_path, inputs):
    for path, data in TREE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)

    def try_name(number):
        name, folder, label = make_name(number)
        with contextlib.suppress(SourceError):
            sources.parse_name(name, label)
        path = tmp_path / "chest_xray" / folder / label / pathlib.Path(name.replace("\0", "") or "empty").name
        made = not path.exists()
        if made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(JPEGS[0])
        try:
            with watched(number):
                read_source(tmp_path)
        except SourceError as error:
            return "refused: " + shorten(str(error))
        finally:
            if made:
                path.unlink()
        return "read"

    run_inputs("names", inputs, try_name)
