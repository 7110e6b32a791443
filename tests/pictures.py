"""Checks figures that were written as PNG files, and replaces figures by a white pixel in all other tests."""

import numpy as np
from PIL import Image

WHITE = Image.new("L", (1, 1), 255)


def save_white_pixel(figure, path, **options):
    """Replaces `Figure.savefig`, because drawing takes most of the time of many tests."""
    WHITE.save(path, "png")


def is_picture(path, colour="#FFFFFF", top=1.0):
    """Returns whether a PNG can be decoded and has a colour in its upper part."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    return np.all(pixels[: int(top * len(pixels))] == tuple(bytes.fromhex(colour[1:])), axis=-1).any()
