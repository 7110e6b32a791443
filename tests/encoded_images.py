"""Makes encoded images, and the pixels that the decoder should give for them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from pneumojax.data.image_files import read_image


def encode(pixels, format="PNG", mode=None, **options):
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    image.convert(mode or image.mode).save(file, format, **options)
    return file.getvalue()


def smooth_pixels(height, width, seed=0):
    """Makes images with structure at the scale of ribs, as in a radiograph, and a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


def squeeze(pixels, px):
    return np.asarray(Image.fromarray(pixels).resize((px, px), Image.Resampling.BILINEAR))


def write_png(*chunks):
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


def damage(data, rng, first, cuts, changes):
    """Yields copies of a file that end early, after the byte `first`, or have one byte changed at or after it."""
    for share in np.linspace(first / len(data), 0.98, cuts):
        yield data[: round(share * len(data))]
    for place in rng.integers(first, len(data), changes):
        yield data[:place] + bytes([rng.integers(256)]) + data[place + 1 :]


def count_refused(files):
    """Reads files as squares of 16 x 16 pixels. Returns how many are refused by an OSError; others must be whole."""
    refused = 0
    for data in files:
        try:
            assert read_image(data, 16).pixels.shape == (16, 16)
        except OSError:
            refused += 1
    return refused
