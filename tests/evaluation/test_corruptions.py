"""Corruptions: what each does to pixels, checked by hand or against a library."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from pneumojax.evaluation import corruptions
from pneumojax.evaluation.corruptions import CORRUPTIONS


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(30, 200, (3, 40, 40), dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_changes_images_and_is_repeatable(name, images):
    before = images.copy()
    changed = CORRUPTIONS[name].change(images)
    assert changed.shape == images.shape and changed.dtype == np.uint8
    assert (changed != images).mean() > 0.3
    assert np.array_equal(changed, CORRUPTIONS[name].change(images))
    assert np.array_equal(images, before)


def test_by_hand(images):
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(corruptions.add_exposure(ramp, 0.2), np.minimum(ramp.astype(int) + 51, 255))
    assert np.array_equal(corruptions.change_gamma(ramp, 1.0), ramp)
    assert corruptions.change_gamma(ramp, 2.0)[0, 8, 0] == round(255 * (128 / 255) ** 2)
    halved = corruptions.scale_contrast(images, 0.5)
    assert np.allclose(halved.mean((1, 2)), images.mean((1, 2)), atol=0.5)
    assert np.allclose(halved.std((1, 2)), images.std((1, 2)) / 2, rtol=0.01)


def test_blur_keeps_the_mean_and_noise_has_the_deviation_it_says():
    images = np.full((2, 200, 200), 128, np.uint8)
    noisy = corruptions.add_noise(images, 0.04)
    assert abs(noisy.std() - 0.04 * 255) < 0.2
    assert not np.array_equal(noisy[0], noisy[1])
    blurred = corruptions.blur(noisy, 0.01)
    # A Gaussian of 2 pixels averages independent noise down to 1 / (2 * sqrt(pi) * sigma) of its deviation.
    assert abs(blurred[:, 20:-20, 20:-20].std() / noisy.std() - 1 / (2 * np.pi**0.5 * 2)) < 0.02


def test_zoom_out_is_a_framed_image(images):
    framed = corruptions.zoom_out(images, 0.5)
    assert not framed[:, :10].any() and not framed[:, -10:].any() and not framed[:, :, :10].any()
    inner = Image.fromarray(framed[0, 10:30, 10:30])
    assert ImageOps.expand(inner, 10).size == (40, 40)
    assert framed[:, 10:30, 10:30].min() > 0
