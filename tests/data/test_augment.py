import dataclasses
import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.ndimage
from generated_examples import generate

from pneumojax.config import AugmentConfig
from pneumojax.data.augment import (
    add_noise,
    change_intensity,
    change_sharpness,
    change_tone,
    draw_transform,
    erase,
    make_augment,
    mixup,
    resample,
    shrink,
)

DRAWS = 512
KEYS = jax.random.split(jax.random.key(0), DRAWS)
IDENTITY = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
OFF = AugmentConfig(rotate_degrees=0, shift=0, zoom=0, brightness=0, contrast=0, gamma=0)
ALL_ON = AugmentConfig(crop_min_area=0.5, flip=True, erase_probability=0.5, sharpness=0.5, noise=0.1)


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width), np.float32)


def draw_transforms(**changes):
    config = dataclasses.replace(OFF, **changes)
    return np.asarray(jax.vmap(lambda key: draw_transform(key, config))(KEYS))


def rotation(degrees, scale=1.0, shift=(0.0, 0.0)):
    cos, sin = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]], np.float32)


resample = jax.jit(resample)


@pytest.mark.parametrize("px", [1, 2, 15, 16, 33, 64])
def test_the_identity_gives_the_image_back(px):
    image = random_image(px, px)
    np.testing.assert_allclose(resample(image, IDENTITY), image, atol=1e-5)
    if px in (1, 2, 16, 64):  # With powers of 2, nothing is rounded.
        np.testing.assert_array_equal(resample(image, IDENTITY), image)


@pytest.mark.parametrize("px", [15, 16])
def test_a_flip_is_the_mirror_image(px):
    image = random_image(px, px)
    np.testing.assert_allclose(resample(image, IDENTITY * [[-1], [1]]), image[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("px", [15, 16])
def test_a_quarter_turn_and_a_shift_by_a_pixel_go_the_stated_way(px):
    # Output position -> input position, with y down: the pixel right of the centre moves below it, then above it, ...
    image = random_image(px, px)
    np.testing.assert_allclose(resample(image, rotation(90)), np.rot90(image), atol=1e-4)
    right = resample(image, IDENTITY + np.array([[0, 0, 2 / px], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(right, np.pad(image[:, 1:], ((0, 0), (0, 1))), atol=1e-5)
    below = resample(image, IDENTITY + np.array([[0, 0, 0], [0, 0, 2 / px]], np.float32))
    np.testing.assert_allclose(below, np.pad(image[1:], ((0, 1), (0, 0))), atol=1e-5)


@pytest.mark.parametrize(
    "transform",
    [
        rotation(10, 0.9, (0.05, -0.1)),
        rotation(-37, 1.4),
        rotation(0, 1, (0.9, 0.9)),
        rotation(180, 0.3),
        rotation(5) * np.array([[0.5, -0.8, 1], [0.5, -0.8, 1]], np.float32),
        rotation(0, 1, (5, 0)),  # outside of the image: black
    ],
    ids=["usual", "smaller", "shifted", "upside down", "sheared and mirrored", "outside"],
)
@pytest.mark.parametrize("shape", [(16, 16), (15, 21)])
def test_resampling_is_scipys_affine_transform(transform, shape):
    image = random_image(*shape)
    half = np.array(shape) / 2
    # From -1..1 and (x, y) to pixel indices and (row, column).
    matrix = transform[::-1, 1::-1] * half[:, None] / half
    offset = half * (transform[::-1, 2] + 1) - 0.5 - matrix @ (half - 0.5)
    expected = scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant", cval=0)
    np.testing.assert_allclose(resample(image, transform), expected, atol=1e-4)


def test_drawn_rotations_fill_their_range_and_nothing_else_changes():
    transforms = draw_transforms(rotate_degrees=20)
    linear = transforms[:, :, :2]
    np.testing.assert_allclose(linear @ linear.transpose(0, 2, 1), np.broadcast_to(np.eye(2), linear.shape), atol=1e-6)
    assert (np.linalg.det(linear) > 0).all()
    assert not transforms[:, :, 2].any()
    degrees = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert -20 <= degrees.min() < -18
    assert 18 < degrees.max() <= 20


def test_drawn_zooms_fill_their_range_and_nothing_else_changes():
    transforms = draw_transforms(zoom=0.25)
    zoom = 1 / transforms[:, 0, 0]
    np.testing.assert_allclose(transforms, IDENTITY / zoom[:, None, None], atol=1e-6)
    assert 0.75 <= zoom.min() < 0.77
    assert 1.23 < zoom.max() <= 1.25 + 1e-6


def test_drawn_shifts_fill_their_range_in_both_directions_and_nothing_else_changes():
    transforms = draw_transforms(shift=0.1)
    np.testing.assert_array_equal(transforms[:, :, :2], np.broadcast_to(np.eye(2), (DRAWS, 2, 2)))
    sides = transforms[:, :, 2] / 2  # In these coordinates, the image is 2 wide and 2 high.
    assert np.abs(sides).max() <= 0.1
    assert (sides.min(0) < -0.095).all()
    assert (sides.max(0) > 0.095).all()
    assert abs(np.corrcoef(sides.T)[0, 1]) < 0.15


@pytest.mark.parametrize("smallest", [0.08, 0.5, 0.9])
def test_drawn_crops_lie_in_the_image_and_keep_to_area_and_aspect(smallest):
    transforms = draw_transforms(crop_min_area=smallest)
    box = transforms[:, [0, 1], [0, 1]]  # half width and half height
    assert not transforms[:, 0, 1].any()
    assert not transforms[:, 1, 0].any()
    assert (np.abs(transforms[:, :, 2]) + box <= 1 + 1e-6).all()
    area, aspect = box.prod(1), box[:, 0] / box[:, 1]
    assert smallest - 1e-6 <= area.min() < smallest + 0.02
    assert 0.98 < area.max() <= 1
    assert aspect.min() >= 3 / 4 - 1e-6
    assert aspect.max() <= 4 / 3 + 1e-6
    # Wide and tall boxes are sampled, if they fit: a box of area a has an aspect ratio between a and 1 / a.
    assert aspect.min() < max(3 / 4, smallest) + 0.02
    assert aspect.max() > min(4 / 3, 1 / smallest) - 0.02
    # In some sample, the box is at or near each edge of the image.
    room = 1 - box
    assert (transforms[:, :, 2] > 0.9 * room).any(0).all()
    assert (transforms[:, :, 2] < -0.9 * room).any(0).all()


def test_half_of_the_images_are_mirrored():
    transforms = draw_transforms(flip=True)
    mirrored = transforms[:, 0, 0] < 0
    np.testing.assert_array_equal(transforms[mirrored], np.broadcast_to(IDENTITY * [[-1], [1]], (mirrored.sum(), 2, 3)))
    np.testing.assert_array_equal(transforms[~mirrored], np.broadcast_to(IDENTITY, ((~mirrored).sum(), 2, 3)))
    assert abs(mirrored.mean() - 0.5) < 4 * math.sqrt(0.25 / DRAWS)


def test_ranges_of_zero_leave_the_images_alone_and_draw_nothing():
    images = np.stack([random_image(16, 16, seed) for seed in range(4)])
    augment = make_augment(OFF)
    np.testing.assert_array_equal(augment(KEYS[:4], images), images)
    assert not jax.make_jaxpr(augment)(KEYS[:4], images).eqns


@pytest.mark.parametrize(
    "change",
    [
        {"rotate_degrees": 5},
        {"shift": 0.1},
        {"zoom": 0.1},
        {"crop_min_area": 0.5},
        {"flip": True},
        {"brightness": 0.1},
        {"contrast": 0.2},
        {"gamma": 0.2},
        {"erase_probability": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_range_alone_changes_the_images(change):
    images = np.stack([random_image(16, 16)] * 8)
    augmented = np.asarray(jax.jit(make_augment(dataclasses.replace(OFF, **change)))(KEYS[:8], images))
    assert np.abs(augmented - images).max() > 0.01
    assert np.abs(augmented - augmented[0]).max() > 0.01  # each has its own random numbers


@pytest.mark.parametrize("config", [AugmentConfig(), dataclasses.replace(ALL_ON, brightness=1, gamma=3)])
def test_pixels_stay_between_0_and_1(config):
    images = np.stack([random_image(16, 16, seed) for seed in range(64)])
    images[:8], images[8:16] = 0, 1
    augmented = np.asarray(jax.jit(make_augment(config))(KEYS[:64], images))
    assert augmented.dtype == np.float32
    assert np.isfinite(augmented).all()
    assert augmented.min() >= 0
    assert augmented.max() <= 1


def test_an_image_is_augmented_alike_in_any_batch():
    images = np.stack([random_image(16, 16, seed) for seed in range(8)])
    augment = jax.jit(make_augment(ALL_ON))
    together = np.asarray(augment(KEYS[:8], images))
    order = np.array([5, 2, 7, 7, 0, 1, 6, 6])  # The same number as above: another one would be compiled again.
    np.testing.assert_allclose(augment(KEYS[order], images[order]), together[order], atol=1e-6)


def change_many(image, **ranges):
    ranges = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0} | ranges
    return np.asarray(jax.jit(jax.vmap(lambda key: change_intensity(key, image, **ranges)))(KEYS))


def test_brightness_adds_a_constant_within_its_range():
    image = 0.4 + 0.2 * random_image(8, 8)
    added = change_many(image, brightness=0.3) - image
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-6)
    assert -0.3 - 1e-6 <= added.min() < -0.29
    assert 0.29 < added.max() <= 0.3 + 1e-6


def test_contrast_stretches_about_the_mean():
    image = 0.4 + 0.2 * random_image(8, 8)
    changed = change_many(image, contrast=0.5)
    np.testing.assert_allclose(changed.mean((1, 2)), image.mean(), atol=1e-6)
    factor = (changed - image.mean()).std((1, 2)) / image.std()
    expected = (image - image.mean()) * factor[:, None, None] + image.mean()
    np.testing.assert_allclose(changed, expected, atol=1e-5)
    assert 0.5 - 1e-4 <= factor.min() < 0.51
    assert 1.49 < factor.max() <= 1.5 + 1e-4


def test_gamma_is_a_power_even_in_its_logarithm():
    image = 0.1 + 0.8 * random_image(8, 8)
    powers = np.log(change_many(image, gamma=1.0)) / np.log(image)
    np.testing.assert_allclose(powers, np.broadcast_to(powers[:, :1, :1], powers.shape), rtol=1e-3)
    power = np.median(powers, axis=(1, 2))
    assert 1 / 2 - 1e-4 <= power.min() < 0.51
    assert 1.96 < power.max() <= 2 + 1e-4
    assert abs(np.log2(power).mean()) < 4 * math.sqrt(1 / 3 / DRAWS)


def test_gamma_keeps_black_and_white():
    image = np.array([[0, 1]], np.float32)
    np.testing.assert_allclose(change_many(image, gamma=0.2), np.broadcast_to(image, (DRAWS, 1, 2)), atol=1e-4)


def test_erase_paints_one_grey_rectangle_of_2_to_20_percent():
    px = 100
    image = np.full((px, px), -1, np.float32)
    erased = np.asarray(jax.jit(jax.vmap(lambda key: erase(key, image, 1.0)))(KEYS))
    changed = erased != -1
    areas = []
    for one, where in zip(erased, changed, strict=True):
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        assert where[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(np.unique(one[where])) == 1
        assert 0 <= one[where][0] <= 1
        areas.append(where.mean())
    # Height and width are rounded by up to a pixel.
    assert 0.015 <= min(areas) < 0.03
    assert 0.19 < max(areas) <= 0.215
    # The rectangle reaches every edge in some sample.
    assert [changed[:, 0].any(), changed[:, -1].any(), changed[:, :, 0].any(), changed[:, :, -1].any()] == [True] * 4


def test_erase_leaves_the_other_images_alone():
    image = random_image(16, 16)
    erased = np.asarray(jax.jit(jax.vmap(lambda key: erase(key, image, 0.25)))(KEYS))
    share = (erased != image).any((1, 2)).mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / DRAWS)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_keeps_the_larger_share_of_each_image_and_blends_its_target_alike(alpha):
    first = (np.ones((DRAWS, 4, 4), np.float32), np.tile(np.float32([1, 0, 0]), (DRAWS, 1)))
    second = (np.zeros((DRAWS, 4, 4), np.float32), np.tile(np.float32([0, 0.5, 0.5]), (DRAWS, 1)))
    images, targets = jax.tree.map(np.asarray, jax.jit(mixup)(KEYS, alpha, first, second))
    shares = images[:, 0, 0]
    np.testing.assert_array_equal(images, np.broadcast_to(shares[:, None, None], images.shape))
    np.testing.assert_allclose(targets, shares[:, None] * [1, 0, 0] + (1 - shares[:, None]) * [0, 0.5, 0.5], atol=1e-6)
    assert 0.5 <= shares.min() < 0.55
    assert shares.max() <= 1
    # Mean and standard deviation of max(x, 1 - x) for many samples x of the beta distribution.
    draws = np.random.default_rng(0).beta(alpha, alpha, 1_000_000)
    folded = np.maximum(draws, 1 - draws)
    assert abs(shares.mean() - folded.mean()) < 4 * folded.std() / math.sqrt(DRAWS)


def test_mixup_of_an_image_depends_on_its_own_key_only():
    images, targets = random_image(6, 16).reshape(6, 4, 4), np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    blend = jax.jit(mixup)
    together = blend(KEYS[:6], 0.4, (images, targets), (images[::-1], targets[::-1]))
    order = np.array([4, 1, 5, 5, 0, 0])
    some = blend(KEYS[order], 0.4, (images[order], targets[order]), (images[5 - order], targets[5 - order]))
    for one, whole in zip(some, together, strict=True):
        np.testing.assert_allclose(one, whole[order], atol=1e-6)


def test_strength_multiplies_the_ranges():
    ranges = {"rotate_degrees": 20.0, "shift": 0.1, "zoom": 0.2, "brightness": 0.2, "contrast": 0.4}
    strong = AugmentConfig(**ranges, crop_min_area=0.6, gamma=0.21, erase_probability=0.8, augment_strength=0.5)
    # For gamma, strength 0.5 halves the range of the logarithm: the square root of 1.21 is 1.1.
    halves = {name: value / 2 for name, value in ranges.items()}
    half = AugmentConfig(**halves, crop_min_area=0.8, gamma=0.1, erase_probability=0.4)
    images = np.stack([random_image(16, 16, seed) for seed in range(32)])
    ours, theirs = (np.asarray(jax.jit(make_augment(config))(KEYS[:32], images)) for config in (strong, half))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    none = dataclasses.replace(strong, augment_strength=0.0)
    np.testing.assert_allclose(jax.jit(make_augment(none))(KEYS[:32], images), images, atol=1e-5)


@pytest.mark.parametrize(("side", "px"), [(64, 32), (64, 16), (48, 32), (31, 16), (16, 16)])
def test_shrinking_averages_over_areas(side, px):
    images = np.random.default_rng(side).random((2, side, side), np.float32)
    fine = images.repeat(px, 1).repeat(px, 2)  # On this grid, averaged areas start and end at pixel edges.
    expected = fine.reshape(2, px, side, px, side).mean((2, 4))
    np.testing.assert_allclose(shrink(images, px), expected, atol=1e-6)


RANGES = {
    "rotate_degrees": st.floats(0, 180),
    "shift": st.floats(0, 0.99),
    "zoom": st.floats(0, 0.99),
    "crop_min_area": st.floats(0.05, 1),
    "brightness": st.floats(0, 1),
    "contrast": st.floats(0, 0.99),
    "gamma": st.floats(0, 5),
    "erase_probability": st.floats(0, 1),
    "tone": st.floats(0, 3),
    "sharpness": st.floats(0, 1),
    "noise": st.floats(0, 1),
}
# Every range is 0, at its maximum, or between. At most four are not 0, because each choice is compiled.
CONFIGS = st.lists(st.sampled_from(sorted(RANGES)), max_size=4, unique=True).flatmap(
    lambda names: st.builds(
        lambda values, flip: dataclasses.replace(OFF, flip=flip, **values),
        st.fixed_dictionaries({name: RANGES[name] for name in names}),
        st.booleans(),
    )
)


@generate(
    5,  # Each example is compiled.
    40,
    config=CONFIGS,
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_ranges_keep_shape_dtype_and_pixel_range_and_depend_on_the_key_alone(config, height, width, seed):
    rng = np.random.default_rng(seed)
    images = rng.random((4, height, width), np.float32)
    images = np.stack([images[0], images[1].round(), np.zeros_like(images[0]), np.ones_like(images[0])])
    keys = jax.random.split(jax.random.key(seed), 4)
    augment = jax.jit(make_augment(config))
    augmented = np.asarray(augment(keys, images))
    assert (augmented.shape, augmented.dtype) == (images.shape, np.float32)
    assert np.isfinite(augmented).all()
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    np.testing.assert_array_equal(augment(keys, images), augmented)
    order = rng.permutation(4)
    np.testing.assert_array_equal(augment(keys[order], images[order]), augmented[order])


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)), seed=st.integers(0, 999))
def test_ranges_of_zero_are_the_identity(shape, seed):
    images = np.random.default_rng(seed).random(shape, np.float32)
    keys = jax.random.split(jax.random.key(seed), shape[0])
    np.testing.assert_array_equal(make_augment(OFF)(keys, images), images)


augment_with_no_strength = jax.jit(make_augment(dataclasses.replace(ALL_ON, augment_strength=0.0)))


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_a_strength_of_zero_changes_nothing_but_the_flip(seed):
    image = random_image(16, 16, seed)[None]
    key = jax.random.key(seed)[None]
    augmented = np.asarray(augment_with_no_strength(key, image))
    assert any(np.allclose(augmented, one, atol=1e-5) for one in (image, image[..., ::-1]))


def test_stretch_scales_both_axes_independently_within_its_range():
    transforms = draw_transforms(stretch=0.5)
    logs = np.log([transforms[:, 0, 0], transforms[:, 1, 1]])
    assert np.all(np.abs(logs) <= math.log(1.5) + 1e-6)
    np.testing.assert_allclose(logs.std(1), math.log(1.5) / math.sqrt(3), rtol=0.1)  # uniform in the logarithm
    assert abs(np.corrcoef(logs)[0, 1]) < 0.15
    assert not transforms[:, [0, 1], [1, 0]].any() and not transforms[:, :, 2].any()


@pytest.mark.parametrize("largest", [4 / 3, 2.0])
def test_crops_reach_the_largest_aspect_and_stay_in_the_image(largest):
    transforms = draw_transforms(crop_min_area=0.2, crop_max_aspect=largest)
    width, height = transforms[:, 0, 0], transforms[:, 1, 1]
    aspects = np.maximum(width / height, height / width)
    assert 0.9 * largest < aspects.max() <= largest + 1e-5
    corners = np.abs(transforms[:, :, 2]) + transforms[:, [0, 1], [0, 1]]
    assert corners.max() <= 1 + 1e-5


def test_a_tone_curve_of_no_strength_is_the_identity():
    image = random_image(16, 16)
    np.testing.assert_allclose(change_tone(KEYS[0], image, 0.0), image, atol=1e-6)


def test_tone_curves_are_increasing_and_keep_black_and_white():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    curves = np.asarray(jax.vmap(lambda key: change_tone(key, ramp, 1.0))(KEYS[:64])).reshape(64, 256)
    assert np.all(np.diff(curves) >= -1e-6)
    np.testing.assert_allclose(curves[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(curves[:, -1], 1, atol=1e-6)
    assert curves[:, 128].std() > 0.1, "curves must differ"


def test_sharpness_of_no_range_is_the_identity():
    image = random_image(16, 16)
    np.testing.assert_array_equal(change_sharpness(KEYS[0], image, 0.0), image)


def test_sharpness_moves_an_image_along_the_difference_to_its_blur_in_both_directions():
    image = 0.25 + 0.5 * random_image(16, 16)  # No result is clipped.
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    detail = image - scipy.ndimage.convolve(image, kernel, mode="nearest")
    changed = np.asarray(jax.vmap(lambda key: change_sharpness(key, image, 0.5))(KEYS))
    amounts = np.einsum("bhw,hw->b", changed - image, detail) / (detail**2).sum()
    np.testing.assert_allclose(changed, image + amounts[:, None, None] * detail, atol=1e-6)
    assert -0.5 <= amounts.min() < -0.45 and 0.45 < amounts.max() <= 0.5 and abs(amounts.mean()) < 0.05


def test_noise_of_no_deviation_is_the_identity():
    image = random_image(16, 16)
    np.testing.assert_array_equal(add_noise(KEYS[0], image, 0.0), image)


def test_noise_is_unbiased_and_its_deviation_is_uniform_up_to_the_largest():
    grey = np.full((32, 32), 0.5, np.float32)
    noisy = np.asarray(jax.vmap(lambda key: add_noise(key, grey, 0.1))(KEYS))
    deviations = noisy.std(axis=(1, 2))
    assert abs(noisy.mean() - 0.5) < 1e-3
    assert deviations.max() < 0.11 and abs(deviations.mean() - 0.05) < 0.005 and deviations.min() < 0.005
    assert abs(np.quantile(deviations, 0.25) - 0.025) < 0.008


def test_noise_stays_within_the_range_of_pixels():
    edges = np.array([[0.0, 1.0]] * 16, np.float32)
    noisy = np.asarray(jax.vmap(lambda key: add_noise(key, edges, 1.0))(KEYS))
    assert noisy.min() == 0 and noisy.max() == 1
