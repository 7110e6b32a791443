"""Tests that mutated files of each format are read as a whole image or refused, in bounded time and memory.

    scripts/run pip install -e '.[dicom]'
    scripts/run pytest -m slow -n 0 -s tests/faults/test_mutated_files.py      # 120,000 files, with a table

File i depends only on the random seed [3, i], so `make_file(17)` always returns the same bytes. The message of a
failure contains i. The files are decoded in the process of the tests, so a decoder that crashes ends them; the last
line of the output then has the number of a file that came shortly before.
"""

import collections
import faulthandler
import logging
import resource
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from encoded_images import encode, smooth_pixels, write_png

from pneumojax.data.dicom import is_dicom
from pneumojax.data.image_files import read_image

FILES = 120_000
SECONDS = 30  # Of CPU time, for one file. JPEG-LS needs 13 s for the 50 million pixels that a file may declare.
MEMORY_BYTES = 1 << 30  # Limit for the growth of this process's peak memory over all files.

# Example files of pydicom, one for each compression and kind of pixels.
DICOM_FILES = (
    "CT_small",
    "examples_palette",
    "JPEGLSNearLossless_08",
    "JPEGLSNearLossless_16",
    "JPGExtended",
    "MR_small_RLE",
    "MR_small_bigendian",
    "MR_small_jp2klossless",
    "MR_small_jpeg_ls_lossless",
    "SC_rgb_gdcm_KY",
    "SC_rgb_jls_lossy_sample",
    "SC_rgb_jpeg_dcmtk",
    "SC_rgb_jpeg_gdcm",
    "SC_rgb_rle_2frame",
)

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and pydicom warn about damage that they tolerate.


def make_seeds():
    """Makes [(format, bytes)] of small images: many kinds of each format, with the DICOM files that are installed."""
    pixels = smooth_pixels(24, 20)
    wide = pixels.astype(np.uint16) * 16
    jpegs = [("L", {}), ("L", {"progressive": True}), ("RGB", {}), ("CMYK", {})]
    seeds = [("JPEG", encode(pixels, "JPEG", mode, **options)) for mode, options in jpegs]
    seeds += [("PNG", encode(pixels, "PNG", mode)) for mode in ("L", "1", "P", "RGBA")]
    compressions = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    seeds += [("TIFF", encode(pixels, "TIFF", compression=name)) for name in compressions]
    seeds += [(format, encode(wide, format)) for format in ("PNG", "TIFF")]
    seeds += [(format, encode(pixels, format, "RGB")) for format in ("GIF", "BMP", "WEBP")]
    try:
        from pydicom.data import get_testdata_file
    except ImportError:
        return seeds
    paths = [get_testdata_file(f"{name}.dcm", download=False) for name in DICOM_FILES]
    for path in filter(None, paths):
        with open(path, "rb") as file:
            seeds.append(("DICOM", file.read()))
    return seeds


SEEDS = make_seeds()
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\0\0")


def choose_place(rng, data):
    """Chooses a byte: of the whole file, of its first 600, or, in a DICOM file, of the first 300 of its pixel data."""
    pixel_data = data.find(b"\xe0\x7f\x10\x00") if is_dicom(data) else 0
    start, length = ((0, len(data)), (0, 600), (max(pixel_data, 0), 300))[rng.choice(3, p=(0.4, 0.2, 0.4))]
    return start + int(rng.integers(max(1, min(length, len(data) - start))))


def mutate(rng, data):
    """Applies one to three mutations."""
    for _ in range(rng.integers(1, 4)):
        place = choose_place(rng, data)
        new = rng.bytes(rng.integers(1, 9)) if rng.random() < 0.5 else EXTREMES[rng.integers(4)][: rng.integers(1, 5)]
        match rng.integers(6):
            case 0 | 1:
                data = data[:place] + new + data[place + len(new) :]
            case 2:
                data = data[:place] + new + data[place:]
            case 3:
                data = data[:place] + data[place + len(new) :]
            case 4:
                data = data[: max(place, 140)]
            case 5:
                data = data[:place] + data[max(0, place - 16 * len(new)) :]
    return data


def mutate_png(rng, data):
    """Mutates the content of a chunk of a PNG file, for pixels before compression, with the checksum that fits."""
    chunks, place = [], 8
    while place < len(data):
        end = place + 8 + struct.unpack_from(">I", data, place)[0]
        chunks.append((data[place + 4 : place + 8], data[place + 8 : end]))
        place = end + 4
    kind, content = chunks.pop(chosen := rng.integers(len(chunks) - 1))  # The last one is empty.
    content = zlib.compress(mutate(rng, zlib.decompress(content))) if kind == b"IDAT" else mutate(rng, content)
    return write_png(*chunks[:chosen], (kind, content), *chunks[chosen:])


def make_file(number):
    """Returns (format, bytes) of a mutated file."""
    rng = np.random.default_rng([3, number])
    format, data = SEEDS[number % len(SEEDS)]
    return format, mutate_png(rng, data) if format == "PNG" and rng.random() < 0.8 else mutate(rng, data)


def read_file(number):
    """Reads a file. Returns (format, outcome)."""
    format, data = make_file(number)
    try:
        image = read_image(data, 16)
    except OSError:
        return format, "refused"
    assert (image.pixels.shape, image.pixels.dtype) == ((16, 16), np.uint8)
    return format, "decoded"


@pytest.mark.parametrize("numbers", [range(600), pytest.param(range(FILES), marks=pytest.mark.slow)], ids=len)
def test_mutated_files_are_read_or_refused_in_bounded_time_and_memory(numbers):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    logging.disable()  # pydicom logs what it tolerates.
    outcomes, seconds, slowest, start = collections.Counter(), collections.Counter(), (0.0, 0), time.monotonic()
    for number in numbers:
        faulthandler.dump_traceback_later(20 * SECONDS, exit=True)  # Native code cannot be interrupted otherwise.
        before = time.process_time()
        try:
            outcome = read_file(number)
        except Exception as error:
            raise AssertionError(f"file {number}: {error!r}") from error
        took = time.process_time() - before
        outcomes[outcome] += 1
        seconds[outcome[0]] += took
        slowest = max(slowest, (took, number))
        if number % 1000 == 999:
            print(f"{number + 1:,} files, {time.monotonic() - start:.0f} s", flush=True)
    faulthandler.cancel_dump_traceback_later()
    logging.disable(logging.NOTSET)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * (1 if sys.platform == "darwin" else 1024)
    print(f"\nslowest: file {slowest[1]}, {slowest[0]:.2f} s of CPU time; peak memory grew by {grown >> 20} MiB")
    for format, total in seconds.items():
        counts = ", ".join(f"{outcomes[format, outcome]:,} {outcome}" for outcome in ("refused", "decoded"))
        print(f"{format}: {sum(n for (f, _), n in outcomes.items() if f == format):,} files, {counts}, {total:.1f} s")
    assert slowest[0] < SECONDS and grown < MEMORY_BYTES
    assert len(outcomes) == 2 * len(seconds)


def test_an_image_must_start_at_the_first_byte():
    files = dict(reversed(SEEDS))
    for data in (b"\0" * 200 + files["PNG"], files["JPEG"][1:]):
        with pytest.raises(OSError, match="it is neither"):
            read_image(data, 16)
