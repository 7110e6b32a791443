"""Compares pneumojax.evaluation.metrics with scikit-learn, closed forms and brute force."""

import json
import math

import numpy as np
import pytest
from generated_splits import (
    approx,
    check_summary,
    compute_areas,
    compute_rates,
    compute_specificity_at,
    examples,
    mean_of,
    resample,
    splits,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scored import make_split
from sklearn import metrics as oracle

from pneumojax.evaluation import (
    curves,
    metrics,
    point_metrics,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap


def test_macro_averages_of_two_classes_equal_scikit_learn():
    labels, probabilities, patients = make_split(200, 2, step=0.25)
    decisions = point_metrics.compute_binary_scores(probabilities) >= 0.6
    result = metrics.compute_metrics(labels, probabilities, 0.6, PatientBootstrap(patients, 50))
    for name, compute in (("precision_macro", oracle.precision_score), ("f1_macro", oracle.f1_score)):
        assert result[name]["value"] == pytest.approx(compute(labels, decisions, average="macro"))
        low, high = result[name]["ci95"]
        assert low < result[name]["value"] < high


def roc_specificity(positive, scores, target, weight=None):
    """Returns the best specificity of scikit-learn's ROC points that reach the sensitivity."""
    x, y, _ = oracle.roc_curve(positive, scores, sample_weight=weight, drop_intermediate=False)
    return 1 - x[y >= target - 1e-12].min()


@pytest.mark.parametrize("step", [None, 1.0])
def test_weighted_values_equal_scikit_learn_with_sample_weight(step):
    labels, probabilities, _ = make_split(150, 3, step=step)
    weights = np.random.default_rng(1).integers(4, size=(5, 150)).astype(np.float64)
    values = metrics.compute_metric_values(labels, probabilities, 0.6, weights)
    positive, scores = labels > 0, point_metrics.compute_binary_scores(probabilities)
    names = ("NORMAL", "BACTERIA", "VIRUS")
    one_hot, argmax = np.eye(3)[labels], probabilities.argmax(axis=1)
    for row, weight in enumerate(weights):
        w = {"sample_weight": weight}
        per_class = {
            "auroc": [oracle.roc_auc_score(one_hot[:, c], probabilities[:, c], **w) for c in range(3)],
            "auprc": [oracle.average_precision_score(one_hot[:, c], probabilities[:, c], **w) for c in range(3)],
            "sensitivity": oracle.recall_score(labels, argmax, average=None, **w),
            "specificity": [oracle.recall_score(labels == c, argmax == c, pos_label=False, **w) for c in range(3)],
            "precision": oracle.precision_score(labels, argmax, average=None, **w),
            "f1": oracle.f1_score(labels, argmax, average=None, **w),
        }
        expected = {
            "auroc": oracle.roc_auc_score(positive, scores, **w),
            "auprc": oracle.average_precision_score(positive, scores, **w),
            "accuracy": oracle.accuracy_score(positive, scores >= 0.6, **w),
            "sensitivity": oracle.recall_score(positive, scores >= 0.6, **w),
            "specificity": oracle.recall_score(~positive, scores < 0.6, **w),
            "precision": oracle.precision_score(positive, scores >= 0.6, **w),
            "f1": oracle.f1_score(positive, scores >= 0.6, **w),
            "npv": oracle.precision_score(~positive, scores < 0.6, **w),
            "balanced_accuracy": oracle.balanced_accuracy_score(positive, scores >= 0.6, **w),
            **{
                f"specificity_at_sensitivity_{t:g}": roc_specificity(positive, scores, t, weight)
                for t in (0.95, 0.975, 0.99)
            },
            "accuracy_three_class": oracle.accuracy_score(labels, argmax, **w),
            "auroc_macro": oracle.roc_auc_score(labels, probabilities, multi_class="ovr", **w),
            "auprc_macro": oracle.average_precision_score(one_hot, probabilities, **w),
            "sensitivity_macro": oracle.balanced_accuracy_score(labels, argmax, **w),
            "specificity_macro": np.mean(per_class["specificity"]),
            "precision_macro": oracle.precision_score(labels, argmax, average="macro", **w),
            "f1_macro": oracle.f1_score(labels, argmax, average="macro", **w),
        } | {f"{metric}_{names[c]}": per_class[metric][c] for metric in per_class for c in range(3)}
        assert {name: value[row] for name, value in values.items()} == pytest.approx(expected, abs=1e-12)


def test_weights_are_repetitions():
    labels, probabilities, _ = make_split(60, 3, step=0.5)
    counts = np.random.default_rng(2).integers(4, size=60)
    repeated = np.repeat(np.arange(60), counts)
    by_weight = metrics.compute_metric_values(labels, probabilities, 0.5, counts[None].astype(np.float64))
    by_copy = metrics.compute_metric_values(labels[repeated], probabilities[repeated], 0.5, np.ones((1, counts.sum())))
    assert {k: v[0] for k, v in by_weight.items()} == pytest.approx({k: v[0] for k, v in by_copy.items()}, abs=1e-12)


def test_interval_of_accuracy_is_the_binomial_one():
    images, right = 624, 560
    labels = np.arange(images) % 2
    decided = np.where(np.arange(images) < right, labels, 1 - labels)
    probabilities = np.eye(2)[decided]
    patient_ids = np.arange(images)
    accuracy = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patient_ids, 4000))["accuracy"]
    half = 1.96 * math.sqrt(right / images * (1 - right / images) / images)
    assert accuracy["value"] == right / images
    assert accuracy["ci95"] == pytest.approx([right / images - half, right / images + half], abs=0.1 * half)


def test_patients_of_many_images_widen_the_interval():
    labels, probabilities, _ = make_split(100, 2)
    labels, probabilities = np.repeat(labels, 4), np.repeat(probabilities, 4, axis=0)
    by_patient = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(np.repeat(np.arange(100), 4)))
    by_image = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(np.arange(400)))
    for name in ("auroc", "accuracy", "specificity"):
        ratio = np.ptp(by_patient[name]["ci95"]) / np.ptp(by_image[name]["ci95"])
        # Four copies of an image add no information. As four patients, they would halve the interval.
        assert 1.7 < ratio < 2.3


def test_same_seed_same_result_in_any_order():
    labels, probabilities, patient_ids = make_split(80, 3, step=0.5)
    first = metrics.compute_metrics(labels, probabilities, 0.4, PatientBootstrap(patient_ids, 100, seed=5))
    order = np.random.default_rng(0).permutation(80)
    again = metrics.compute_metrics(
        labels[order], probabilities[order], 0.4, PatientBootstrap(patient_ids[order], 100, seed=5)
    )
    assert first == again
    assert first != metrics.compute_metrics(labels, probabilities, 0.4, PatientBootstrap(patient_ids, 100, seed=6))


@pytest.mark.parametrize("classes", [2, 3])
def test_result_survives_strict_json(classes):
    labels, probabilities, patient_ids = make_split(60, classes)
    result = metrics.compute_metrics(labels, probabilities.astype(np.float32), 0.5, PatientBootstrap(patient_ids, 100))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for metric in result.values():
        assert type(metric["value"]) is float
        assert 0 <= metric["ci95"][0] <= metric["value"] <= metric["ci95"][1] <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1, 2])
def test_split_of_one_class(label):
    _, probabilities, patient_ids = make_split(20, 3)
    result = metrics.compute_metrics([label] * 20, probabilities, 0.5, PatientBootstrap(patient_ids, 100))
    json.dumps(result, allow_nan=False)
    assert result["auroc"]["value"] is None
    assert "only one of the two" in result["auroc"]["reason"]
    assert result["auroc_macro"]["value"] is None
    assert result["accuracy"]["value"] is not None
    assert (result["sensitivity"]["value"] is None) == (label == 0)
    assert (result["specificity"]["value"] is None) == (label > 0)
    assert (result["sensitivity_VIRUS"]["value"] is None) == (label != 2)
    assert all("reason" in metric for metric in result.values() if metric["value"] is None)
    assert point_metrics.compute_auroc([label] * 20, probabilities[:, 1]) is None
    assert curves.compute_roc_curve([label] * 20, probabilities[:, 1], PatientBootstrap(patient_ids)) is None


@pytest.mark.filterwarnings("error")
def test_no_positive_decision_has_no_precision():
    result = metrics.compute_metrics([0, 1, 0, 1], [[0.9, 0.1]] * 4, 0.5, PatientBootstrap([1, 2, 3, 4], 200))
    assert result["precision"] == {
        "value": None,
        "ci95": None,
        "reason": "Needs images predicted as pneumonia; there is none.",
    }
    assert result["f1"]["value"] == 0.0


def test_interval_is_of_the_resamples_that_have_the_metric():
    # The one VIRUS patient is missing from about a third of the resamples.
    labels = np.array([0] * 10 + [1] * 10 + [2])
    _, probabilities, patient_ids = make_split(21, 3)
    probabilities[-1] = [0.4, 0.35, 0.25]
    result = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patient_ids, 300))
    weights = PatientBootstrap(patient_ids, 300).weights[1:]
    values = metrics.compute_metric_values(labels, probabilities, 0.5, weights)["auroc_VIRUS"]
    assert 60 < np.isnan(values).sum() < 160
    assert result["auroc_VIRUS"]["ci95"] == pytest.approx(np.nanpercentile(values, [2.5, 97.5]))

    few = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patient_ids, 45))["auroc_VIRUS"]
    assert few["value"] == result["auroc_VIRUS"]["value"]
    assert few["ci95"] is None
    assert "of 45 resamples; an interval needs 40" in few["reason"]


def test_no_interval_where_resamples_cannot_differ():
    labels, probabilities, _ = make_split(20, 2)
    result = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(["one patient"] * 20, 100))
    between = [metric for metric in result.values() if 0 < metric["value"] < 1]
    assert between
    assert all(metric["ci95"] is None and "give the same value" in metric["reason"] for metric in between)


def test_a_perfect_auroc_has_the_exact_interval_of_disjoint_pairs_of_patients():
    labels = np.array([0] * 12 + [1] * 30)
    patients = [f"normal {i // 2}" for i in range(12)] + [f"pneumonia {i}" for i in range(30)]
    probabilities = np.stack([1 - labels, labels], 1) * 0.8 + 0.1
    exact = stats.binomtest(6, 6).proportion_ci(0.95, "exact")
    auroc = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patients))["auroc"]
    assert (auroc["value"], auroc["ci95"]) == (1, pytest.approx(exact))
    reversed_auroc = metrics.compute_metrics(1 - labels, probabilities, 0.5, PatientBootstrap(patients))["auroc"]
    assert (reversed_auroc["value"], reversed_auroc["ci95"]) == (0, pytest.approx([0, 1 - exact.low]))
    # Two patients with images of both classes are one pair of different patients. A single patient is none.
    two = metrics.compute_metrics([0, 1, 0, 1], np.eye(2)[[0, 1, 0, 1]], 0.5, PatientBootstrap(list("aabb")))["auroc"]
    assert two["ci95"] == pytest.approx([0.025, 1])
    one = metrics.compute_metrics([0, 1, 0, 1], np.eye(2)[[0, 1, 0, 1]], 0.5, PatientBootstrap(list("aaaa")))["auroc"]
    assert one["ci95"] is None


def test_exact_interval_of_a_perfect_auroc_covers_it():
    # The scores are normal with means 1 and 0. With 3 images of each class, the AUROC is often exactly 1.
    rng = np.random.default_rng(1)
    truth, labels = stats.norm.cdf(1.5 / math.sqrt(2)), np.repeat([0, 1], 3)
    covered, perfect = 0, 0
    for trial in range(300):
        scores = 1.5 * labels + rng.normal(size=6)
        auroc = metrics.compute_binary_metrics(labels, scores, 0.5, PatientBootstrap(np.arange(6), 200, trial))["auroc"]
        covered += auroc["ci95"] is None or auroc["ci95"][0] <= truth <= auroc["ci95"][1]
        perfect += auroc["value"] == 1
    assert perfect > 100 and covered > 0.9 * 300


def test_specificity_at_sensitivity_by_hand():
    # Scores 0.9, 0.5 and 0.1: one of two positive and no negative image, then all positive and one of two negative.
    true_positives, false_positives = np.array([[1.0, 2, 2], [0, 2, 2]]), np.array([[0.0, 1, 2], [0, 1, 2]])
    np.testing.assert_allclose(metrics.specificity_at_sensitivity(true_positives, false_positives, 0.5), [1, 0.5])


@pytest.mark.parametrize("step", [None, 1.0])
def test_specificity_at_sensitivity_equals_scikit_learn(step):
    labels, probabilities, patient_ids = make_split(300, 2, step=step)
    scores = point_metrics.compute_binary_scores(probabilities)
    result = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patient_ids))
    for target in (0.95, 0.975, 0.99):
        metric = result[f"specificity_at_sensitivity_{target:g}"]
        assert metric["value"] == pytest.approx(roc_specificity(labels, scores, target), abs=1e-12)
        assert metric["ci95"][0] <= metric["value"] <= metric["ci95"][1]


@pytest.mark.parametrize(
    ("labels", "probabilities", "patient_ids", "message"),
    [
        ([0, 1], [[0.5, 0.5]], ["a", "b"], "Lengths differ"),
        ([], np.zeros((0, 2)), [], "no image"),
        ([0, 2], [[0.5, 0.5]] * 2, ["a", "b"], "class index, 0 to 1; found 0 to 2"),
        ([0, 1], [[3.0, -1.0]] * 2, ["a", "b"], "logits"),
        ([0, 1], [[np.nan, 0.5]] * 2, ["a", "b"], "NaN"),
        ([0, 1], [0.5, 0.5], ["a", "b"], r"\[N, 2\] or \[N, 3\], not \[2\]"),
    ],
)
def test_metrics_of_bad_input(labels, probabilities, patient_ids, message):
    with pytest.raises(ValueError, match=message):
        metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patient_ids))


def make_decisions(true_positives, false_negatives, false_positives, true_negatives):
    """Labels and probabilities that give this confusion matrix at threshold 0.5."""
    counts = [true_positives, false_negatives, false_positives, true_negatives]
    labels, decisions = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    return labels, np.stack([1 - decisions, decisions], axis=1) * 0.8 + 0.1


def test_exact_interval_of_predictive_values_counts_the_predictions():
    # 3 of 200 images are predicted negative, all correctly. Each class has 100 patients.
    labels, probabilities = make_decisions(100, 0, 97, 3)
    npv = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(np.arange(200)))["npv"]
    assert npv["value"] == 1
    assert npv["ci95"] == pytest.approx(stats.binomtest(3, 3).proportion_ci(0.95, "exact"))
    assert npv["ci95"] == pytest.approx([0.292, 1], abs=5e-4)
    labels, probabilities = make_decisions(1, 99, 0, 100)
    precision = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(np.arange(200)))["precision"]
    assert precision["ci95"] == pytest.approx([0.025, 1])
    labels, probabilities = make_decisions(0, 100, 2, 98)
    precision = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(np.arange(200)))["precision"]
    assert (precision["value"], precision["ci95"]) == (0, pytest.approx([0, 1 - 0.025 ** (1 / 2)]))


def test_exact_interval_counts_the_patients_of_each_denominator():
    # 4 positive patients have 2 images each, all found. 2 of 7 negative patients are predicted positive.
    labels, probabilities = make_decisions(8, 0, 2, 5)
    patients = [f"ill {i // 2}" for i in range(8)] + [f"well {i}" for i in range(7)]
    result = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(patients))
    for name, number in (("sensitivity", 4), ("npv", 5)):
        assert result[name]["ci95"] == pytest.approx([0.025 ** (1 / number), 1]), name
    labels, probabilities = make_decisions(4, 2, 0, 3)
    result = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(np.arange(9)))
    for name, number in (("specificity", 3), ("precision", 4)):
        assert result[name]["ci95"] == pytest.approx([0.025 ** (1 / number), 1]), name
    labels, probabilities = make_decisions(2, 0, 0, 3)
    result = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(list("abcde")))
    assert result["accuracy"]["ci95"] == pytest.approx([0.025 ** (1 / 5), 1])


def test_exact_interval_of_a_class_counts_the_images_predicted_as_that_class():
    labels = np.array([0] * 20 + [1] * 20 + [2] * 20)
    predicted = np.where(np.arange(60) < 59, np.minimum(labels, 1), 2)  # One image is predicted VIRUS, correctly.
    probabilities = np.eye(3)[predicted] * 0.7 + 0.1
    result = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(np.arange(60)))
    assert result["precision_VIRUS"]["ci95"] == pytest.approx([0.025, 1])
    assert result["sensitivity_BACTERIA"]["ci95"] == pytest.approx([0.025 ** (1 / 20), 1])
    assert result["specificity_VIRUS"]["ci95"] == pytest.approx([0.025 ** (1 / 40), 1])
    assert result["precision_NORMAL"]["ci95"] == pytest.approx([0.025 ** (1 / 20), 1])


def test_exact_interval_of_the_auroc_of_a_class_counts_its_pairs_of_patients():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    patients = metrics.count_denominators(labels, np.eye(3)[labels], 0.5, PatientBootstrap(np.arange(9)))
    assert [patients[f"auroc_{name}"] for name in ("NORMAL", "BACTERIA", "VIRUS")] == [3, 2, 4]


def test_a_perfect_metric_that_is_no_proportion_has_no_interval():
    labels, probabilities = make_decisions(30, 0, 0, 12)
    result = metrics.compute_metrics(labels, probabilities, 0.5, PatientBootstrap(np.arange(42)))
    names = {"auprc", "f1", "balanced_accuracy", "precision_macro", "f1_macro", "specificity_at_sensitivity_0.95"}
    for name in names:
        assert result[name]["value"] == 1
        assert result[name]["ci95"] is None
        assert "no exact interval" in result[name]["reason"]


def test_interval_of_the_npv_covers_it_with_four_predictions():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        # The classifier predicts 4 of 40 images negative. Each of these is NORMAL with probability 0.8.
        wrong = rng.binomial(4, 0.2)
        labels, probabilities = make_decisions(20, wrong, 16, 4 - wrong)
        bootstrap = PatientBootstrap(np.arange(40), 200, seed=trial)
        low, high = metrics.compute_metrics(labels, probabilities, 0.5, bootstrap)["npv"]["ci95"]
        covered += low <= 0.8 <= high
    assert covered >= 0.93 * 300


@examples
@given(splits())
def test_all_metrics(split):
    labels, probabilities, patients, threshold = split
    result = metrics.compute_metrics(labels, probabilities, threshold, resample(patients))
    for one in result.values():
        check_summary(one)
    positive, scores = labels > 0, 1 - probabilities[:, 0]
    expected = compute_areas(positive, scores) | compute_rates(positive, scores >= threshold)
    for target in (0.95, 0.975, 0.99):
        expected[f"specificity_at_sensitivity_{target:g}"] = compute_specificity_at(positive, scores, target)
    if probabilities.shape[1] == 2:
        by_class = [compute_rates(labels == c, (scores >= threshold) == c) for c in range(2)]
        names = ()
        macros = ("precision", "f1")
    else:
        decisions, names = probabilities.argmax(axis=1), ("NORMAL", "BACTERIA", "VIRUS")
        expected["accuracy_three_class"] = np.mean(labels == decisions)
        by_class = [
            compute_areas(labels == c, probabilities[:, c]) | compute_rates(labels == c, decisions == c)
            for c in range(3)
        ]
        macros = ("auroc", "auprc", "sensitivity", "specificity", "precision", "f1")
    expected |= {f"{metric}_macro": mean_of([one[metric] for one in by_class]) for metric in macros}
    expected |= {f"{m}_{name}": one[m] for name, one in zip(names, by_class, strict=False) for m in macros}
    assert {name: one["value"] for name, one in result.items()} == approx(expected)


@examples
@given(splits(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(split, random):
    labels, probabilities, patients, threshold = split
    order = random.sample(range(len(labels)), len(labels))
    first = metrics.compute_metrics(labels, probabilities, threshold, resample(patients))
    again = metrics.compute_metrics(labels[order], probabilities[order], threshold, resample(patients[order]))
    for name, one in first.items():
        assert one["value"] == approx(again[name]["value"])
        assert one["ci95"] == approx(again[name]["ci95"])


@examples
@given(splits())
def test_exact_intervals_are_of_the_patients_in_the_denominator(split):
    labels, probabilities, patients, threshold = split
    result = metrics.compute_metrics(labels, probabilities, threshold, resample(patients))
    predicted = 1 - probabilities[:, 0] >= threshold
    masks = {"sensitivity": labels > 0, "specificity": labels == 0, "precision": predicted, "npv": ~predicted}
    masks["accuracy"] = np.ones(len(labels), bool)
    if probabilities.shape[1] == 3:
        masks["accuracy_three_class"] = masks["accuracy"]
        for c, name in enumerate(("NORMAL", "BACTERIA", "VIRUS")):
            masks |= {f"sensitivity_{name}": labels == c, f"specificity_{name}": labels != c}
            masks[f"precision_{name}"] = probabilities.argmax(axis=1) == c
    for name, one in result.items():
        if one["value"] not in (0, 1):
            continue
        if name in masks:
            n = len(set(patients[masks[name]].tolist()))
        elif name == "auroc":
            ill, well = set(patients[labels > 0].tolist()), set(patients[labels == 0].tolist())
            n = min(len(ill), len(well), len(ill | well) // 2)
        elif not name.startswith("auroc_"):
            # Other statistics have a percentile interval that is not a single point, or no interval.
            assert one["ci95"] is None or one["ci95"][0] < one["ci95"][1]
            continue
        if name in masks or (name == "auroc" and n):
            exact = stats.binomtest(n if one["value"] else 0, n).proportion_ci(0.95, "exact")
            assert one["ci95"] == approx([exact.low, exact.high])


@examples
@given(splits(), st.data())
def test_weights_are_repetitions_on_generated_splits(split, data):
    labels, probabilities, _, threshold = split
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    assume(counts.sum() > 0)
    at = np.repeat(np.arange(len(labels)), counts)
    weighted = metrics.compute_metric_values(labels, probabilities, threshold, counts[None].astype(float))
    copied = metrics.compute_metric_values(labels[at], probabilities[at], threshold, np.ones((1, len(at))))
    for name, value in weighted.items():
        np.testing.assert_allclose(value, copied[name], atol=1e-9)
