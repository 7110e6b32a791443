"""Each swap moves its own number towards the other class, and is exact where that can be computed by hand."""

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from pneumojax.data.dataset import load_split
from pneumojax.evaluation import nuisances
from pneumojax.evaluation.nuisances import NUISANCES


@pytest.fixture(scope="module")
def separated():
    """Images whose classes differ in every nuisance: [200, 48, 48] uint8, and the labels."""
    rng = np.random.default_rng(0)
    positive = np.arange(200) % 2 == 1
    images = []
    for is_positive in positive:
        # Of each number, the classes' means differ by about the spread within a class.
        sign = 1 if is_positive else -1
        aspect, detail, contrast, exposure = np.exp(0.1 * (sign + rng.normal(size=4)))
        size = round(24 / aspect / detail), round(24 * aspect / detail)
        noise = Image.fromarray(rng.normal(0, 1, size).astype(np.float32)).resize((48, 48), Image.BILINEAR)
        images.append(120 * exposure + 50 / contrast * np.asarray(noise))
        width = rng.integers(0, 3 if is_positive else 4)
        images[-1][:width] = 0
        images[-1][:6, -6:] += rng.integers(0, 120 if is_positive else 80)
    return np.rint(np.clip(images, 0, 255)).astype(np.uint8), positive


@pytest.mark.parametrize("name", NUISANCES)
def test_a_swap_moves_its_number_towards_the_other_class(name, separated):
    images, positive = separated
    before = images.copy()
    swapped = NUISANCES[name].swap(images, positive)
    assert swapped.shape == images.shape and swapped.dtype == np.uint8
    assert np.array_equal(images, before), "the split itself must not change"
    measure = NUISANCES[name].measure
    assert measure(images).shape == (200,) and measure(images).dtype == np.float64
    auroc = roc_auc_score(positive, measure(images))
    moved = roc_auc_score(positive, measure(swapped))
    assert abs(auroc - 0.5) > 0.1, "the images must differ in this number"
    assert (moved - auroc) * (0.5 - auroc) > 0.05, f"{auroc} became {moved}"


def test_ranks_are_matched_to_the_other_class():
    values = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 30.0])
    positive = np.array([False, False, False, True, True, True])
    matched = nuisances.match_other_class(values, positive)
    assert matched[1] == 20 and matched[4] == 2, "medians are exchanged"
    assert np.all(np.diff(matched[:3]) > 0) and np.all(np.diff(matched[3:]) > 0), "the order in a class is kept"


def test_nothing_divides_by_zero_on_constant_images():
    images = np.full((4, 32, 32), 128, np.uint8)
    for nuisance in NUISANCES.values():
        assert np.isfinite(nuisance.measure(images)).all()
        swapped = nuisance.swap(images, np.array([True, False, True, False]))
        assert swapped.dtype == np.uint8


def test_real_nuisances_separate_the_synthetic_classes_no_better_than_they_should(make_config):
    # Synthetic radiographs have one aspect: this number is near chance there, so a swap has something to break.
    split = load_split(make_config(image_px=64).data, "train")
    auroc = roc_auc_score(split.labels("binary"), nuisances.measure_aspect(split.images))
    assert 0.2 < auroc < 0.8
