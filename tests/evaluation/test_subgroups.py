"""Compares pneumojax.evaluation.subgroups with scikit-learn, on subgroups that are selected in a loop."""

import json

import numpy as np
import pytest
from generated_splits import approx, check_summary, examples, resample, splits
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from pneumojax.data.dataset import Split
from pneumojax.evaluation import (
    metrics,
    subgroups,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap


def make_split(images=240, seed=0, **changes):
    """Makes a split with every kind of file, without images, and three-class probabilities for it."""
    rng = np.random.default_rng(seed)
    columns = {
        "subtypes": rng.integers(3, size=images).astype(np.int32),
        "patient_ids": np.array([f"person{i // 2}" for i in range(images)]),
        "filenames": np.array([f"image{i}" for i in range(images)]),
        "heights": rng.integers(400, 2000, size=images).astype(np.int32),
        "widths": rng.integers(600, 2900, size=images).astype(np.int32),
        "channels": np.where(np.arange(images) % 20 < 3, 3, 1).astype(np.int32),
        "duplicate_of": np.where(np.arange(images) % 40 == 7, "image0", ""),
    } | changes
    split = Split(name="test", images=np.zeros((images, 1, 1), np.uint8), fingerprint="", **columns)
    logits = rng.normal(size=(images, 3)) + 1.3 * np.eye(3)[split.subtypes]
    return split, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def pick(split, name):
    """Selects the images of a subgroup in a loop."""
    megapixels = [int(h) * int(w) for h, w in zip(split.heights, split.widths, strict=True)]
    aspects = [w / h for h, w in zip(split.heights, split.widths, strict=True)]
    tests = {
        "bacterial": lambda i: split.subtypes[i] in (0, 1),
        "viral": lambda i: split.subtypes[i] in (0, 2),
        "grey": lambda i: split.channels[i] == 1,
        "rgb": lambda i: split.channels[i] == 3,
        "small": lambda i: megapixels[i] <= np.median(megapixels),
        "large": lambda i: megapixels[i] > np.median(megapixels),
        "narrow": lambda i: aspects[i] <= np.median(aspects),
        "wide": lambda i: aspects[i] > np.median(aspects),
        "without_duplicates": lambda i: not split.duplicate_of[i],
    }
    return np.array([i for i in range(len(split)) if tests[name](i)])


def test_subgroups_equal_scikit_learn():
    split, probabilities = make_split(241)  # The number is odd, so one image is the median.
    scores = 1 - probabilities[:, 0]
    results = subgroups.compute_subgroups(split, probabilities, 0.6, PatientBootstrap(split.patient_ids))
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    kinds = results.pop("bacterial_against_viral")
    for name, group in results.items():
        of_group = pick(split, name)
        labels, decisions = split.subtypes[of_group] > 0, scores[of_group] >= 0.6
        assert group["images"] == len(of_group)
        assert group["patients"] == len(set(split.patient_ids[of_group]))
        values = {metric: one["value"] for metric, one in group["metrics"].items()}
        assert values.pop("specificity_at_sensitivity_0.95") is not None
        assert values == pytest.approx(
            {
                "auroc": oracle.roc_auc_score(labels, scores[of_group]),
                "accuracy": oracle.accuracy_score(labels, decisions),
                "sensitivity": oracle.recall_score(labels, decisions),
                "specificity": oracle.recall_score(~labels, ~decisions),
            }
        )
        for one in group["metrics"].values():
            assert one["ci95"][0] <= one["value"] <= one["ci95"][1]
    assert results["without_duplicates"]["images"] == 235

    pneumonia = split.subtypes > 0
    ratio = probabilities[pneumonia, 1] / (probabilities[pneumonia, 1] + probabilities[pneumonia, 2])
    expected = oracle.roc_auc_score(split.subtypes[pneumonia] == 1, ratio)
    assert kinds["metrics"]["auroc"]["value"] == pytest.approx(expected)
    assert kinds["images"] == pneumonia.sum()


def test_a_subgroup_of_all_images_is_left_out_with_its_counterpart():
    split, probabilities = make_split(
        channels=np.full(240, 3, np.int32), duplicate_of=np.full(240, ""), heights=np.full(240, 500, np.int32)
    )
    results = subgroups.compute_subgroups(split, probabilities, 0.6, PatientBootstrap(split.patient_ids))
    assert list(results) == ["bacterial", "viral", "small", "large", "narrow", "wide", "bacterial_against_viral"]
    split, probabilities = make_split(widths=np.full(240, 700, np.int32), heights=np.full(240, 500, np.int32))
    results = subgroups.compute_subgroups(split, probabilities, 0.6, PatientBootstrap(split.patient_ids))
    assert list(results) == ["bacterial", "viral", "grey", "rgb", "without_duplicates", "bacterial_against_viral"]


@pytest.mark.parametrize("kind", [1, 2])
def test_kinds_of_pneumonia_are_left_out_where_there_is_one_kind_only(kind):
    subtypes = np.where(np.arange(240) % 2, kind, 0).astype(np.int32)
    split, probabilities = make_split(subtypes=subtypes)
    results = subgroups.compute_subgroups(split, probabilities, 0.6, PatientBootstrap(split.patient_ids))
    assert not {"bacterial", "viral"} & set(results)
    assert "lacks one of them" in results["bacterial_against_viral"]["metrics"]["auroc"]["reason"]


def test_shared_specificity_of_both_kinds_of_pneumonia():
    split, probabilities = make_split()
    results = subgroups.compute_subgroups(split, probabilities, 0.5, PatientBootstrap(split.patient_ids))
    assert results["bacterial"]["metrics"]["specificity"] == results["viral"]["metrics"]["specificity"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("subtype", [0, 1, 2])
def test_split_of_one_class(subtype):
    split, probabilities = make_split(30, subtypes=np.full(30, subtype, np.int32))
    results = subgroups.compute_subgroups(split, probabilities, 0.5, PatientBootstrap(split.patient_ids, 50))
    json.dumps(results, allow_nan=False)
    kinds = results.pop("bacterial_against_viral")["metrics"]["auroc"]
    assert "lacks one of them" in kinds["reason"]
    for group in results.values():
        assert group["metrics"]["auroc"]["value"] is None
        assert group["metrics"]["auroc"]["reason"]


def test_a_network_of_two_classes_does_not_tell_the_kinds_apart():
    split, probabilities = make_split()
    binary = np.stack([probabilities[:, 0], 1 - probabilities[:, 0]], axis=1)
    results = subgroups.compute_subgroups(split, binary, 0.6, PatientBootstrap(split.patient_ids))
    assert "two classes" in results["bacterial_against_viral"]["metrics"]["auroc"]["reason"]
    of_three = subgroups.compute_subgroups(split, probabilities, 0.6, PatientBootstrap(split.patient_ids))
    assert results["viral"]["metrics"]["auroc"]["value"] == pytest.approx(
        of_three["viral"]["metrics"]["auroc"]["value"]
    )


@examples
@given(splits(3), st.data())
def test_subgroups(columns, data):
    labels, probabilities, patients, threshold = columns
    n = len(labels)

    def draw(*values):
        return np.array(data.draw(st.lists(st.sampled_from(values), min_size=n, max_size=n)))

    split = Split(
        name="test",
        images=np.zeros((n, 1, 1), np.uint8),
        fingerprint="",
        subtypes=labels.astype(np.int32),
        patient_ids=patients,
        filenames=np.array([f"image{i}" for i in range(n)]),
        heights=draw(500, 600).astype(np.int32),
        widths=draw(700, 900).astype(np.int32),
        channels=draw(1, 3).astype(np.int32),
        duplicate_of=draw("", "image0"),
    )
    drawn = resample(patients)
    results = subgroups.compute_subgroups(split, probabilities, threshold, drawn)
    json.dumps(results, allow_nan=False)
    for name, (_, mask) in subgroups.find_subgroups(split).items():
        assert 0 < mask.sum() < n
        result = results.pop(name)
        assert (result["images"], result["patients"]) == (mask.sum(), len(set(patients[mask].tolist())))
        alone = metrics.compute_binary_metrics(
            labels[mask], 1 - probabilities[mask, 0], threshold, PatientBootstrap(patients[mask], 0)
        )
        for metric, one in result["metrics"].items():
            check_summary(one)
            assert one["value"] == approx(alone[metric]["value"])
    assert list(results) == ["bacterial_against_viral"]
