"""Tests that mutated files of each format are read as a whole image or refused, in bounded time and memory.

scripts/run pytest -m slow -n 1 -s tests/faults/test_mutated_files.py      # 20,000 files
"""

import resource
import sys

import numpy as np
import pytest
from encoded_images import encode, smooth_pixels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumojax.data.image_files import read_image

SECONDS = 10  # For one file. The slowest ones declare nearly 50 million pixels.
MEMORY_BYTES = 1 << 30

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and pydicom warn about damage that they tolerate.


def make_files():
    """Makes {format: bytes} of small images, with the compressions of DICOM that the installed packages can write."""
    pixels = smooth_pixels(24, 20)
    wide = pixels.astype(np.uint16) * 16
    files = {format: encode(pixels, format) for format in ("JPEG", "PNG", "TIFF", "GIF", "BMP")}
    files["WEBP"] = encode(pixels, "WEBP", "RGB")
    files |= {f"wide {format}": encode(wide, format) for format in ("PNG", "TIFF")}
    files |= {f"{name} TIFF": encode(pixels, "TIFF", compression=name) for name in ("tiff_lzw", "packbits", "jpeg")}
    try:
        import pydicom
    except ImportError:
        return files
    for name in ("CT_small", "MR_small_RLE", "MR_small_jpeg_ls_lossless", "MR_small_jp2klossless", "JPGExtended"):
        path = pydicom.data.get_testdata_file(f"{name}.dcm", download=False)
        if path:
            with open(path, "rb") as file:
                files[name] = file.read()
    return files


FILES = make_files()

# A change: the place as a share of the file or of its first 600 bytes, the kind, and new bytes.
MUTATION = st.tuples(
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from(("replace", "insert", "delete", "cut", "repeat")),
    st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\0\0")),
    ),
)


def mutate(data, mutations):
    """Applies mutations one after another."""
    for share, in_header, kind, new in mutations:
        place = int(share * (min(len(data), 600) if in_header else len(data)))
        if kind == "replace":
            data = data[:place] + new + data[place + len(new) :]
        elif kind == "insert":
            data = data[:place] + new + data[place:]
        elif kind == "delete":
            data = data[:place] + data[place + len(new) :]
        elif kind == "cut":
            data = data[: max(place, 140)]
        else:
            data = data[:place] + data[max(0, place - 16 * len(new)) :]
    return data


def check(format, mutations):
    data = mutate(FILES[format], mutations)
    try:
        image = read_image(data, 16)
    except OSError:
        return
    assert (image.pixels.shape, image.pixels.dtype) == ((16, 16), np.uint8)


given_mutations = given(st.sampled_from(sorted(FILES)), st.lists(MUTATION, min_size=1, max_size=4))
options = settings(deadline=SECONDS * 1000, suppress_health_check=list(HealthCheck), database=None, max_examples=400)


@options
@given_mutations
def test_mutated_files_are_read_or_refused(format, mutations):
    check(format, mutations)


@pytest.mark.slow
def test_many_mutated_files_are_read_or_refused_in_bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings(options, max_examples=20_000)(given_mutations(check))()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < MEMORY_BYTES


def test_an_image_must_start_at_the_first_byte():
    for data in (b"\0" * 200 + FILES["PNG"], FILES["JPEG"][1:]):
        with pytest.raises(OSError, match="it is neither"):
            read_image(data, 16)
