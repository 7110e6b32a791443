"""Makes encoded images, and the pixels that the decoder should give for them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


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
