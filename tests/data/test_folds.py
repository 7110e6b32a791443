"""Tests of folds and shares of the training images: patients are never split, for any names and classes."""

import collections

import hypothesis.strategies as st
import numpy as np
import pytest
from generated_examples import generate

from pneumojax.data.folds import choose_patients, find_series, split_fold
from pneumojax.errors import UserError

PATIENTS = st.one_of(st.integers(0, 40).map("train/person/{}".format), st.integers(0, 40).map("train/IM/{}".format))
IMAGES = st.lists(st.tuples(PATIENTS | st.text(max_size=4), st.integers(0, 2)), min_size=1, max_size=150)


def unzip(images):
    return np.array([patient for patient, _ in images]), np.array([subtype for _, subtype in images], np.int32)


def assert_whole_patients(patients, masks):
    sides = [set(patients[mask].tolist()) for mask in masks]
    assert sum(map(len, sides)) == len(set.union(*sides))


@generate(60, 400, images=IMAGES, folds=st.integers(2, 6), data=st.data())
def test_each_image_is_in_one_split_of_a_fold_and_each_patient_is_whole(images, folds, data):
    patients, subtypes = unzip(images)
    parts = split_fold(patients, subtypes, folds, data.draw(st.integers(0, folds - 1)))
    assert list(parts) == ["train", "validation", "test"]
    np.testing.assert_array_equal(np.sum([*parts.values()], axis=0), 1)
    assert_whole_patients(patients, parts.values())


@generate(60, 400, images=IMAGES, folds=st.integers(2, 6))
def test_each_image_is_held_out_in_one_fold(images, folds):
    patients, subtypes = unzip(images)
    held_out = [split_fold(patients, subtypes, folds, fold)["test"] for fold in range(folds)]
    np.testing.assert_array_equal(np.sum(held_out, axis=0), 1)
    assert_whole_patients(patients, held_out)


@generate(60, 400, images=IMAGES, share=st.floats(0.05, 0.95))
def test_a_share_is_of_whole_patients_and_near_the_wish_for_each_kind_of_patient(images, share):
    patients, subtypes = unzip(images)
    try:
        chosen = choose_patients(patients, subtypes, share)
    except UserError:  # A class would have no image, which the test below checks.
        return
    assert_whole_patients(patients, [chosen, ~chosen])
    assert set(subtypes[chosen]) == set(subtypes)
    sizes, held = collections.Counter(patients.tolist()), collections.defaultdict(set)
    for patient, subtype in images:
        held[patient].add(subtype)
    for kind in {frozenset(of) for of in held.values()}:
        of_kind = np.array([held[patient] == kind for patient in patients.tolist()])
        largest = max(sizes[patient] for patient in patients[of_kind].tolist())
        assert abs(np.sum(chosen & of_kind) - share * of_kind.sum()) <= largest


def test_a_share_without_an_image_of_each_class_is_refused():
    patients, subtypes = np.array([f"train/person/{i}" for i in range(9)]), np.array([0] * 4 + [1] * 4 + [2])
    with pytest.raises(UserError, match="train_share=0.5 is too small: a class would have no training image"):
        choose_patients(patients, subtypes, 0.5)


def test_each_class_is_shared_out_as_its_share_is():
    """Has as many patients as the real data set. Half of those with pneumonia have images of bacteria and of virus."""
    rng = np.random.default_rng(0)
    subtypes = rng.choice(3, 5000, p=[0.26, 0.48, 0.26])
    numbers = rng.integers(0, 1500, 5000)
    patients = np.array([f"train/{s}/{'person' if s else 'IM'}/{n}" for s, n in zip(subtypes, numbers, strict=True)])
    shares = np.bincount(subtypes) / 5000
    for fold in range(5):
        parts = split_fold(patients, subtypes, 5, fold)
        np.testing.assert_array_equal(np.sum([*parts.values()], axis=0), 1)
        for name, share in (("test", 0.2), ("validation", 0.15 * 0.8), ("train", 0.85 * 0.8)):
            assert abs(parts[name].mean() - share) < 0.003
            np.testing.assert_allclose(np.bincount(subtypes[parts[name]]) / parts[name].sum(), shares, atol=0.025)


def make_series(normal_series=("IM", "NORMAL2")):
    """File names, patients and subtypes of 60 patients with two images each; each NORMAL patient is of one series."""
    rng = np.random.default_rng(0)
    subtypes = np.repeat(rng.integers(0, 3, 60), 2)
    series = np.repeat(rng.choice(normal_series, 60), 2)
    names = [
        f"{a}-{i // 2}-{i % 2}.jpeg" if t == 0 else f"person{i // 2}_{i % 2}.jpeg"
        for i, (a, t) in enumerate(zip(series, subtypes, strict=True))
    ]
    return np.array(names), np.array([f"train/{i // 2}" for i in range(120)]), subtypes


def test_a_fold_by_series_trains_on_no_normal_image_of_the_series_that_it_tests():
    names, patients, subtypes = make_series()
    series = find_series(names)
    folds = [split_fold(patients, subtypes, 2, fold, series) for fold in range(2)]
    for name, parts in zip(("IM", "NORMAL2"), folds, strict=True):
        np.testing.assert_array_equal(np.sum([*parts.values()], axis=0), 1)
        assert_whole_patients(patients, parts.values())
        normal = subtypes == 0
        np.testing.assert_array_equal(parts["test"][normal], series[normal] == name)
        for part in parts.values():
            assert set(subtypes[part]) == {0, 1, 2}
        # Pneumonia is split as without series.
        expected = split_fold(patients, subtypes, 2, ("IM", "NORMAL2").index(name))["test"]
        np.testing.assert_array_equal(parts["test"][~normal], expected[~normal])
    np.testing.assert_array_equal(folds[0]["test"] ^ folds[1]["test"], True)


def test_folds_by_series_that_do_not_fit_the_data_are_refused():
    names, patients, subtypes = make_series()
    with pytest.raises(UserError, match="needs folds=2, because the NORMAL images have the series IM, NORMAL2"):
        split_fold(patients, subtypes, 3, 0, find_series(names))
    patients[:] = "train/one"
    with pytest.raises(UserError, match="a patient has images of two series"):
        split_fold(patients, subtypes, 2, 0, find_series(names))
