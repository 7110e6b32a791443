"""Tests of the builder's check of an image: its size after rotation, and the limits."""

import io
import types

import numpy as np
import pytest
from PIL import ExifTags, Image

from tfds_builder.kermany_pneumonia import SourceError, sources


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read_facts(data):
    return sources.read_facts(types.SimpleNamespace(name="source", read=lambda path: data), "image")


GREY = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_height_and_width_are_those_that_a_viewer_shows(format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    facts = read_facts(encode(GREY, format, exif=exif))
    assert (facts.height, facts.width, facts.channels) == ((20, 30, 1) if orientation < 5 else (30, 20, 1))


def test_images_above_the_pixel_limit_are_refused():
    with pytest.raises(SourceError, match="it has 7100 x 7100 pixels, more than the limit of 50,000,000"):
        read_facts(encode(Image.new("1", (7100, 7100)), "PNG"))
