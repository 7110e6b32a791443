"""Tests of the images with defects: each has its defect, and they are reproducible."""

import numpy as np
import pytest
from encoded_images import smooth_pixels

from pneumojax.evaluation.defects import DEFECTS, make_unsuitable, vary

IMAGES = np.maximum(np.stack([smooth_pixels(40, 40, seed) for seed in range(6)]), 1)


@pytest.mark.parametrize("name", DEFECTS)
def test_images_keep_their_shape_and_depend_on_the_seed_only(name):
    made = make_unsuitable(name, IMAGES, 0)
    assert made.shape == IMAGES.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(made, make_unsuitable(name, IMAGES, 0))
    assert all((one != image).mean() > 0.2 for one, image in zip(made, IMAGES, strict=True))


def test_rotations_flips_and_inversion_can_be_undone():
    undo = {
        "rotated_90": lambda images: np.rot90(images, -1, (1, 2)),
        "rotated_180": lambda images: images[:, ::-1, ::-1],
        "rotated_270": lambda images: np.rot90(images, 1, (1, 2)),
        "inverted": lambda images: 255 - images,
        "mirrored": lambda images: images[:, :, ::-1],
    }
    for name, function in undo.items():
        np.testing.assert_array_equal(function(make_unsuitable(name, IMAGES, 0)), IMAGES)


def test_a_large_part_of_a_clipped_image_is_black_or_white():
    made = make_unsuitable("clipped", IMAGES, 0)
    black, white = (made == 0).mean((1, 2)), (made == 255).mean((1, 2))
    assert np.maximum(black, white).min() > 0.2
    assert black.max() > 0.2 and white.max() > 0.2


def test_a_collimated_image_is_black_outside_of_one_corner():
    for made, image in zip(make_unsuitable("collimated", IMAGES, 0), IMAGES, strict=True):
        assert 0.15 < (made > 0).mean() < 0.5
        assert sum(made[i, j] > 0 for i in (0, -1) for j in (0, -1)) == 1
        np.testing.assert_array_equal(made[made > 0], image[made > 0])


def test_a_wide_field_holds_the_whole_image_in_a_part():
    for made in make_unsuitable("wide_field", IMAGES, 0):
        background = made[0, 0]
        rows, columns = (np.flatnonzero((made != background).any(axis)) for axis in (1, 0))
        assert {len(made) * 0.4 <= np.ptp(part) + 1 <= len(made) * 0.7 for part in (rows, columns)} == {True}


def test_varied_images_are_reproducible_and_still_alike():
    varied = vary(IMAGES, 0)
    assert varied.shape == IMAGES.shape and varied.dtype == np.uint8
    np.testing.assert_array_equal(varied, vary(IMAGES, 0))
    assert all((one != image).mean() > 0.5 for one, image in zip(varied, IMAGES, strict=True))
    correlations = [np.corrcoef(one[8:-8, 8:-8].ravel(), image[8:-8, 8:-8].ravel())[0, 1]
                    for one, image in zip(varied, IMAGES, strict=True)]  # fmt: skip
    assert min(correlations) > 0.2 and np.mean(correlations) > 0.5
