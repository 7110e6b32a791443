"""Tests of baselines: they use the described features, are fitted on train only, and report uninformative features."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pneumojax.data.dataset import Split
from pneumojax.evaluation.baselines import (
    BASELINES,
    UninformativeError,
    compute_brightness,
    compute_edge_pixels,
    compute_histogram,
    compute_hog,
    compute_pixels,
    compute_scores,
    compute_size,
)
from pneumojax.evaluation.perturbations import keep_centre, shuffle_pixels


def make_split(name="train", images=60, seed=0, **changes):
    """Noise images. Those of pneumonia have bright stripes in the middle and come from wider files."""
    rng = np.random.default_rng(seed)
    subtypes = (np.arange(images) % 3).astype(np.int32)
    pixels = rng.integers(0, 150, (images, 64, 64))
    pixels[subtypes > 0, 16:48, 16:48] += np.tile([0, 0, 0, 0, 100, 100, 100, 100], 4)
    columns = {
        "images": pixels.astype(np.uint8),
        "subtypes": subtypes,
        "patient_ids": np.array([f"person{i}" for i in range(images)]),
        "filenames": np.array([f"image{i}" for i in range(images)]),
        "heights": rng.integers(400, 2000, size=images).astype(np.int32),
        "widths": (rng.integers(600, 2900, size=images) + 3000 * (subtypes > 0)).astype(np.int32),
        "channels": np.ones(images, np.int32),
        "duplicate_of": np.full(images, ""),
    } | changes
    return Split(name=name, fingerprint="", **columns)


def test_features_are_what_their_names_say():
    split = make_split()
    image = split.images[5].astype(np.float64)
    np.testing.assert_array_equal(
        compute_size(split)[5], [split.widths[5], split.heights[5], compute_size(split)[5, 2]]
    )
    np.testing.assert_allclose(compute_size(split)[:, 2], split.widths / split.heights)
    np.testing.assert_allclose(compute_brightness(split)[5], image.mean())
    np.testing.assert_allclose(compute_histogram(split)[5], np.histogram(image, 32, (0, 256))[0] / image.size)
    coarse = image.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(compute_pixels(split)[5], coarse.ravel())
    edge = [coarse[0], *(coarse[row, [0, 7]] for row in range(1, 7)), coarse[7]]
    np.testing.assert_allclose(compute_edge_pixels(split)[5], np.concatenate(edge))
    assert compute_hog(split).shape == (60, 1764)


def test_gradients_see_directions_and_no_brightness():
    stripes = np.tile(np.repeat([20, 60], 4), 8).astype(np.uint8)
    images = np.stack([np.broadcast_to(stripes, (64, 64)), np.broadcast_to(stripes[:, None], (64, 64))])
    split = make_split(images=2)
    upright, lying = compute_hog(dataclasses.replace(split, images=images)).reshape(2, -1, 9)
    brighter = compute_hog(dataclasses.replace(split, images=images + np.uint8(100))).reshape(2, -1, 9)
    np.testing.assert_allclose(brighter[0], upright)
    assert upright.sum(axis=0).argmax() != lying.sum(axis=0).argmax()


@pytest.mark.parametrize("name", BASELINES)
def test_scores_order_a_new_split_as_the_oracle_says_and_learn_nothing_from_it(name):
    train, split = make_split(images=240), make_split("validation", images=90, seed=1)
    scores = compute_scores(BASELINES[name], train, split)
    assert scores.shape == (90,) and np.all((scores >= 0) & (scores <= 1))
    auroc = roc_auc_score(split.subtypes > 0, scores)
    if name == "edge_pixels":  # The middle is informative, the edge is not.
        assert 0.3 < auroc < 0.7
    else:
        assert auroc > 0.9
    relabelled = dataclasses.replace(split, subtypes=split.subtypes[::-1].copy())
    np.testing.assert_array_equal(compute_scores(BASELINES[name], train, relabelled), scores)
    wrong = dataclasses.replace(train, subtypes=(train.subtypes == 0).astype(np.int32))
    np.testing.assert_allclose(compute_scores(BASELINES[name], wrong, split), 1 - scores, atol=1e-3)


def test_what_a_baseline_does_not_see_does_not_change_it():
    split = make_split()
    shuffled = dataclasses.replace(split, images=shuffle_pixels(split.images))
    for compute in (compute_histogram, compute_brightness):
        np.testing.assert_allclose(compute(shuffled), compute(split))
    edges = dataclasses.replace(split, images=split.images - keep_centre(split.images, 0.5))
    np.testing.assert_array_equal(compute_edge_pixels(edges), compute_edge_pixels(split))


def test_files_of_one_size_are_said_to_be_and_not_scored():
    one_size = {"heights": np.full(60, 224, np.int32), "widths": np.full(60, 224, np.int32)}
    with pytest.raises(UninformativeError, match="All 60 train files have 224 x 224 pixels"):
        compute_scores(BASELINES["size"], make_split(**one_size), make_split("test"))
    with pytest.raises(UninformativeError, match="All 60 test files"):
        compute_scores(BASELINES["size"], make_split(), make_split("test", **one_size))
    compute_size(make_split(heights=one_size["heights"]))  # The widths still differ.
