"""Tests of perturbations: the result keeps exactly the described part of the image."""

import numpy as np
import pytest
from skimage.measure import block_reduce

from pneumojax.evaluation.perturbations import (
    BLOCKS,
    LUNGS_AREA,
    NEARLY_ALL_AREA,
    PERTURBATIONS,
    blacken_centre,
    compute_blocks,
    keep_centre,
    shuffle_pixels,
    to_blocks,
)

SIDES = pytest.mark.parametrize("side", [16, 31, 64, 100])


def make_images(side, number=3):
    return np.random.default_rng(side).integers(1, 256, (number, side, side)).astype(np.uint8)


@SIDES
@pytest.mark.parametrize("area", [LUNGS_AREA, NEARLY_ALL_AREA])
def test_centre_and_frame_part_the_image(side, area):
    images = make_images(side)
    frame, centre = blacken_centre(images, area), keep_centre(images, area)
    np.testing.assert_array_equal(frame + centre, images)
    assert not np.any((frame > 0) & (centre > 0))
    black = frame[0] == 0  # No pixel of the images themselves has this value.
    # Height and width differ by at most a pixel, and a frame of at least one pixel is left.
    assert abs(black.sum() ** 0.5 - min(side * area**0.5, side - 2)) <= 1
    np.testing.assert_array_equal(black, black[::-1, ::-1])
    np.testing.assert_array_equal(black, black.T)
    assert not black[0].any() and black[side // 2, side // 2]


def test_without_lungs_means_black_where_the_average_lung_is():
    altered = {name: one.perturb(make_images(64)) for name, one in PERTURBATIONS.items() if one.without_lungs}
    assert set(altered) == {"centre_black", "edge_only"}
    for images in altered.values():
        assert not images[:, int(0.17 * 64) : int(0.82 * 64), int(0.14 * 64) : int(0.88 * 64)].any()


@SIDES
def test_blocks_are_the_means_of_an_even_grid(side):
    images = make_images(side)
    blocks, blown_up = compute_blocks(images), to_blocks(images)
    if side % BLOCKS == 0:
        cell = side // BLOCKS
        np.testing.assert_allclose(blocks, block_reduce(images, (1, cell, cell), np.mean), rtol=1e-12)
    place = np.arange(side) * BLOCKS // side
    sizes = np.bincount(place)
    assert len(sizes) == BLOCKS and np.ptp(sizes) <= 1
    for row in range(BLOCKS):
        for column in range(BLOCKS):
            cell = np.ix_(range(len(images)), place == row, place == column)
            np.testing.assert_allclose(blocks[:, row, column], images[cell].mean(axis=(1, 2)))
            assert np.all(blown_up[cell] == np.rint(blocks[:, row, column])[:, None, None])


def test_shuffled_pixels_keep_the_histogram_and_no_place():
    images = make_images(64)
    shuffled = shuffle_pixels(images)
    np.testing.assert_array_equal(np.sort(shuffled.reshape(3, -1)), np.sort(images.reshape(3, -1)))
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8), (3, 64, 64))
    assert abs(np.corrcoef(shuffle_pixels(ramp).ravel(), ramp.ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(shuffled, shuffle_pixels(images))
    assert np.any(shuffled != shuffle_pixels(images, seed=1))
    same = shuffle_pixels(np.repeat(images[:1], 2, axis=0))
    assert np.any(same[0] != same[1])


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbations_keep_shape_and_type_and_leave_their_input_alone(name):
    images = make_images(31)
    images.setflags(write=False)  # The memory-mapped images of a split are read-only too.
    before = images.copy()
    altered = PERTURBATIONS[name].perturb(images)
    assert altered.shape == images.shape and altered.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    assert np.any(altered != images) == (name != "unaltered")
