"""The swap of the aspects: what is cropped, and how it is resized."""

import numpy as np
from PIL import Image

from pneumojax.evaluation import aspect


def test_the_aspect_keeps_86_percent_of_one_axis():
    rows, columns = np.mgrid[:100, :100]
    images = np.stack([rows + 50, rows + 50, columns + 50, columns + 50]).astype(np.uint8)
    swapped = aspect.swap_aspect(images, np.array([False, True, False, True])).astype(float)
    # A ramp along a cropped axis becomes flatter; along the other one it stays.
    slopes = [
        np.polyfit(range(20, 80), image[20:80, 50] if i < 2 else image[50, 20:80], 1)[0]
        for i, image in enumerate(swapped)
    ]
    assert np.allclose(slopes, [0.86, 1.0, 1.0, 0.86], atol=0.01)


def test_resize_agrees_with_pillow_where_it_enlarges():
    image = np.random.default_rng(1).integers(0, 256, (1, 20, 30), dtype=np.uint8)
    ours = aspect.resize(image, 40, 45)[0].astype(int)
    theirs = np.asarray(Image.fromarray(image[0]).resize((45, 40), Image.BILINEAR)).astype(int)
    assert np.abs(ours - theirs).max() <= 1
