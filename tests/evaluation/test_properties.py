"""Properties of every public statistic on generated splits, against scikit-learn, SciPy and brute force.

Splits have 1 to 24 images with frequent ties, and often one class, one patient, or perfect scores.
"""

import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn import metrics as oracle

from pneumojax.data.dataset import Split
from pneumojax.evaluation import (
    bootstrap,
    calibration,
    comparison,
    curves,
    decision_curve,
    metrics,
    point_metrics,
    subgroups,
    summary,
    thresholds,
)
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.prediction_files import Predictions

RESAMPLES = 50

pytestmark = pytest.mark.filterwarnings("error", "ignore::sklearn.exceptions.UndefinedMetricWarning")
examples = settings(deadline=None, max_examples=80, derandomize=True, database=None)


@st.composite
def splits(draw, classes=None, images=24):
    """Generates labels, probabilities, patients and a threshold. Log-odds are whole numbers, so that scores tie."""
    classes = classes or draw(st.sampled_from((2, 3)))
    n = draw(st.integers(1, images))
    labels = draw(st.lists(st.integers(0, draw(st.integers(0, classes - 1))), min_size=n, max_size=n))
    logits = draw(st.lists(st.tuples(*[st.integers(-3, 3)] * classes), min_size=n, max_size=n))
    scale, advantage = draw(st.sampled_from((0.0, 0.5, 2.0, 8.0, 30.0))), draw(st.sampled_from((0, 0, 2, 7)))
    # If 7 is added to the logit of the true class, every image is classified correctly.
    probabilities = special.softmax(scale * (np.array(logits) + advantage * np.eye(classes)[labels]), axis=1)
    patients = draw(st.lists(st.integers(0, draw(st.sampled_from((0, 3, 100)))), min_size=n, max_size=n))
    threshold = draw(st.one_of(st.sampled_from([*(1 - probabilities[:, 0])]), st.floats(0, 1)))
    return np.array(labels), probabilities, np.array(patients), float(threshold)


@st.composite
def scored(draw, images=24):
    """Generates labels of two classes, scores, patients and a threshold."""
    labels, probabilities, patients, threshold = draw(splits(2, images))
    return labels, 1 - probabilities[:, 0], patients, threshold


def resample(patients):
    return PatientBootstrap(patients, RESAMPLES)


def check_summary(one, low=0.0, high=1.0):
    """Checks that a metric has a value and an interval in its range, or a reason."""
    assert json.loads(json.dumps(one, allow_nan=False)) == one
    assert ("reason" in one) == (one["value"] is None or one["ci95"] is None)
    assert one["value"] is None or low <= one["value"] <= high
    assert one["ci95"] is None or low <= one["ci95"][0] <= one["ci95"][1] <= high


def divide(numerator, denominator):
    return numerator / denominator if denominator else None


def count(labels, decisions):
    """Counts true positives, false negatives, false positives and true negatives in a loop over the images."""
    pairs = [(bool(label), bool(decision)) for label, decision in zip(labels, decisions, strict=True)]
    return [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]


def compute_rates(labels, decisions):
    """Computes {metric: value or None} for a binary decision."""
    tp, fn, fp, tn = count(labels, decisions)
    sensitivity, specificity = divide(tp, tp + fn), divide(tn, tn + fp)
    both = None not in (sensitivity, specificity)
    return {
        "accuracy": (tp + tn) / len(labels),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "precision": divide(tp, tp + fp),
        "f1": divide(2 * tp, 2 * tp + fp + fn),
        "npv": divide(tn, tn + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2 if both else None,
    }


def compute_areas(positive, scores):
    """Computes AUROC and average precision with scikit-learn, None if they do not exist."""
    both = positive.any() and not positive.all()
    auroc = oracle.roc_auc_score(positive, scores) if both else None
    return {"auroc": auroc, "auprc": oracle.average_precision_score(positive, scores) if positive.any() else None}


def compute_specificity_at(positive, scores, target):
    """Returns the best specificity of all thresholds that reach the sensitivity."""
    if positive.all() or not positive.any():
        return None
    points = [(np.mean(scores[positive] >= t), np.mean(scores[~positive] < t)) for t in np.unique(scores)]
    return max(specificity for sensitivity, specificity in points if sensitivity >= target)


def mean_of(values):
    return None if None in values else np.mean(values)


def approx(expected):
    return pytest.approx(expected, abs=1e-9)


# Metrics


@examples
@given(scored())
def test_areas_and_rates(split):
    labels, scores, _, threshold = split
    areas = {"auroc": point_metrics.compute_auroc(labels, scores), "auprc": point_metrics.compute_auprc(labels, scores)}
    assert areas == approx(compute_areas(labels > 0, scores))
    expected = compute_rates(labels, scores >= threshold)
    assert point_metrics.compute_threshold_metrics(labels, scores, threshold) == approx(expected)
    assert point_metrics.compute_auroc(1 - labels, -scores) == approx(areas["auroc"])


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
def test_weights_are_repetitions(split, data):
    labels, probabilities, _, threshold = split
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    assume(counts.sum() > 0)
    at = np.repeat(np.arange(len(labels)), counts)
    weighted = metrics.compute_metric_values(labels, probabilities, threshold, counts[None].astype(float))
    copied = metrics.compute_metric_values(labels[at], probabilities[at], threshold, np.ones((1, len(at))))
    for name, value in weighted.items():
        np.testing.assert_allclose(value, copied[name], atol=1e-9)


@examples
@given(splits())
def test_confusions(split):
    labels, probabilities, _, _ = split
    classes = probabilities.shape[1]
    confusion = point_metrics.compute_confusion(labels, probabilities.argmax(axis=1), classes)
    expected = oracle.confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(classes))
    np.testing.assert_array_equal(confusion, expected)


# Bootstrap


@examples
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(0, 60), st.integers(0, 9))
def test_resamples_draw_whole_patients(patients, resamples, seed):
    drawn = PatientBootstrap(patients, resamples, seed)
    assert drawn.weights.shape == (resamples + 1, len(patients)) and len(drawn) == len(patients)
    np.testing.assert_array_equal(drawn.weights[0], 1)
    first = [patients.index(patient) for patient in sorted(set(patients))]
    of_patient = {patient: drawn.weights[:, patients.index(patient)] for patient in patients}
    for i, patient in enumerate(patients):
        np.testing.assert_array_equal(drawn.weights[:, i], of_patient[patient])
    np.testing.assert_array_equal(drawn.weights[1:, first].sum(axis=1), len(first))
    mask = np.arange(len(patients)) % 2 == 0
    assert drawn.count_patients(mask) == len(set(patients[::2]))
    part = drawn.select(mask)
    np.testing.assert_array_equal(part.weights, drawn.weights[:, mask])
    np.testing.assert_array_equal(part.patient_ids, patients[::2])


@examples
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=9))
def test_pairs_of_patients_are_as_many_as_a_search_finds(images):
    patients, positive = np.array([one[0] for one in images]), np.array([one[1] for one in images])
    edges = {
        frozenset((p, q)) for p in set(patients[positive].tolist()) for q in set(patients[~positive].tolist()) if p != q
    }

    def match(edges):
        if not edges:
            return 0
        first = next(iter(edges))
        rest = edges - {first}
        return max(match(rest), 1 + match({edge for edge in rest if not edge & first}))

    assert PatientBootstrap(patients, 0).count_pairs(positive) == match(edges)


@examples
@given(
    st.sampled_from((math.nan, 0.0, 0.25, 1.0)),
    st.integers(0, 90),
    st.sampled_from((0.0, 0.3)),
    st.sampled_from((0, 1, 9)),
    st.integers(0, 99),
    st.one_of(st.none(), st.integers(0, 9)),
)
def test_summaries(value, resamples, missing, decimals, seed, patients):
    random = np.random.default_rng(seed)
    resampled = random.random(resamples).round(decimals)
    resampled[random.random(resamples) < missing] = np.nan
    values = [value, *resampled.tolist()]
    one = bootstrap.summarise(np.array(values), "why", patients)
    check_summary(one)
    existing = [value for value in values[1:] if not math.isnan(value)]
    if math.isnan(values[0]):
        assert one == {"value": None, "ci95": None, "reason": "why"}
    elif values[0] in (0, 1) and patients:
        exact = stats.binomtest(int(values[0]) * patients, patients).proportion_ci(0.95, "exact")
        assert one["ci95"] == approx([exact.low, exact.high])
    elif len(existing) < 40:
        assert one["ci95"] is None
    elif one["ci95"]:
        assert one["ci95"] == approx(np.percentile(existing, [2.5, 97.5]))
    else:
        assert np.ptp(np.percentile(existing, [2.5, 97.5])) < 1e-11


# Thresholds


@examples
@given(scored(), st.floats(0.01, 1), st.floats(0.05, 20), st.one_of(st.none(), st.floats(0.01, 0.99)))
def test_threshold_rules(split, target, cost_ratio, prevalence):
    labels, scores, _, _ = split
    positive = labels > 0
    assume(positive.any())
    rates = {t: compute_rates(positive, scores >= t) for t in np.unique(scores)}
    chosen = thresholds.choose_threshold(labels, scores, "target_sensitivity", target_sensitivity=target)
    assert chosen == max(t for t, rate in rates.items() if rate["sensitivity"] >= target)
    assume(not positive.all())
    youden = {t: rate["sensitivity"] + rate["specificity"] for t, rate in rates.items()}
    best = min(t for t, value in youden.items() if value > max(youden.values()) - 1e-9)
    assert thresholds.choose_threshold(labels, scores, "youden") == best

    share = positive.mean() if prevalence is None else prevalence
    rates[np.nextafter(scores.max(), 2)] = {"sensitivity": 0.0, "specificity": 1.0}
    chosen = thresholds.choose_threshold(labels, scores, "cost_ratio", cost_ratio=cost_ratio, prevalence=prevalence)
    costs = {
        t: cost_ratio * share * (1 - one["sensitivity"]) + (1 - share) * (1 - one["specificity"])
        for t, one in rates.items()
    }
    assert costs[chosen] == pytest.approx(min(costs.values()), abs=1e-9)


@examples
@given(scored(), scored())
def test_operating_points(validation, split):
    points = thresholds.choose_operating_points(*validation[:2])
    labels, scores, patients, _ = split
    results = thresholds.compute_operating_points(labels, scores, points, resample(patients))
    assert list(results) == list(points)
    for name, result in results.items():
        if points[name] is None:
            assert result["threshold"] is None and result["reason"]
            continue
        decisions = scores >= points[name]
        assert {name: one["value"] for name, one in result["metrics"].items()} == approx(
            compute_rates(labels, decisions)
        )
        tp, fn, fp, tn = count(labels, decisions)
        assert result["confusion_matrix"] == [[tn, fp], [fn, tp]]
        for one in result["metrics"].values():
            check_summary(one)


# Curves


@examples
@given(scored())
def test_roc_curves(split):
    labels, scores, patients, _ = split
    curve = curves.compute_roc_curve(labels, scores, resample(patients))
    if len(set(labels.tolist())) < 2:
        assert curve is None
        return
    x, y, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    assert curve["false_positive_rate"] == approx(x) and curve["sensitivity"] == approx(y)
    if curve["band"]:
        low, high = np.array(curve["band"]["low"]), np.array(curve["band"]["high"])
        assert np.all((low >= 0) & (low <= high) & (high <= 1)) and np.all(np.diff(low) >= -1e-12)


@examples
@given(scored())
def test_precision_recall_curves(split):
    labels, scores, patients, _ = split
    curve = curves.compute_pr_curve(labels, scores, resample(patients))
    if not labels.any():
        assert curve is None
        return
    positive = labels > 0
    points = [(np.mean(scores[positive] >= t), np.mean(positive[scores >= t])) for t in np.unique(scores)[::-1]]
    expected = [point for i, point in enumerate(points) if point[0] > (points[i - 1][0] if i else 0)]
    assert [*zip(curve["sensitivity"], curve["precision"], strict=True)] == [approx(point) for point in expected]
    assert curve["prevalence"] == approx(positive.mean())
    if curve["band"]:
        low, high = np.array(curve["band"]["low"]), np.array(curve["band"]["high"])
        assert np.all((low >= 0) & (low <= high) & (high <= 1))


@examples
@given(scored())
def test_decision_curves(split):
    labels, scores, patients, _ = split
    curve = decision_curve.compute_decision_curve(labels, scores, resample(patients))
    for i in range(0, 99, 7):
        t = curve["threshold"][i]
        for name, decisions in (("net_benefit", scores >= t), ("treat_all", np.ones(len(labels)))):
            tp, _, fp, _ = count(labels, decisions)
            assert curve[name][i] == approx((tp - fp * t / (1 - t)) / len(labels))
        assert curve["band"]["low"][i] <= curve["band"]["high"][i]


# Calibration


@examples
@given(splits())
def test_temperature_maximises_the_likelihood(split):
    labels, probabilities, _, _ = split
    temperature = calibration.fit_temperature(labels, probabilities)

    def compute_loss(log_temperature):
        scaled = special.log_softmax(np.log(probabilities) / np.exp(log_temperature), axis=1)
        return -np.mean(scaled[np.arange(len(labels)), labels])

    grid = [compute_loss(t) for t in np.linspace(-8, 8, 33)]
    if temperature is None:  # The likelihood is largest at the smallest or the largest temperature.
        assert min(grid[0], grid[-1]) <= min(grid) + 1e-9
        return
    assert temperature > 0
    at = compute_loss(np.log(temperature))
    assert at <= min(grid) + 1e-9
    assert at <= optimize.minimize_scalar(compute_loss, bounds=(-8, 8), method="bounded").fun + 1e-7
    expected = special.softmax(np.log(probabilities) / temperature, axis=1)
    np.testing.assert_allclose(calibration.apply_temperature(probabilities, temperature), expected, atol=1e-9)


@examples
@given(splits(), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_prevalence_shift_is_bayes_rule_and_its_own_inverse(split, old, new):
    scores = np.clip(1 - split[1][:, 0], 1e-9, 1 - 1e-9)
    shifted = calibration.shift_prevalence(scores, old, new)
    likelihood_ratio = (scores / (1 - scores)) / (old / (1 - old))
    odds = likelihood_ratio * new / (1 - new)
    np.testing.assert_allclose(shifted, odds / (1 + odds), rtol=1e-6)
    np.testing.assert_allclose(calibration.shift_prevalence(shifted, new, old), scores, rtol=1e-6)


@examples
@given(splits())
def test_calibration_measures(split):
    labels, probabilities, patients, _ = split
    result = calibration.compute_calibration(labels, probabilities, resample(patients))
    for name, one in result.items():
        check_summary(one, *((0, 1) if name in ("brier", "ece") else (-math.inf, math.inf)))
    positive, scores = labels > 0, 1 - probabilities[:, 0]
    log_odds = calibration.compute_log_odds(probabilities)
    expected = special.logsumexp(np.log(probabilities[:, 1:]), axis=1) - np.log(probabilities[:, 0])
    np.testing.assert_allclose(log_odds, expected, atol=1e-12)
    assert result["brier"]["value"] == approx(np.mean((scores - positive) ** 2))
    shift = result["calibration_in_the_large"]["value"]
    if shift is not None:
        assert positive.any() and not positive.all()
        assert special.expit(shift + log_odds).sum() == pytest.approx(positive.sum(), abs=1e-6)
    a, b = (result[f"calibration_{name}"]["value"] for name in ("intercept", "slope"))
    if b is not None:  # The score equations of the maximum likelihood.
        residuals = special.expit(a + b * log_odds) - positive
        assert [residuals.sum(), residuals @ log_odds] == pytest.approx([0, 0], abs=1e-5)


@examples
@given(scored(), st.integers(1, 12))
def test_reliability_bins(split, bins):
    labels, scores, _, _ = split
    result = calibration.compute_reliability(labels, scores, bins)
    number = np.array(result["images"])
    assert number.sum() == len(labels) and len(number) <= bins and np.all(number > 0)
    assert np.dot(number, result["share"]) == approx(labels.sum())
    assert np.dot(number, result["mean_score"]) == approx(scores.sum())
    assert np.all(np.diff(result["mean_score"]) > 0)
    bin_of_image = [sum(other < score for other in scores) * bins // len(scores) for score in scores]
    assert result["images"] == [bin_of_image.count(i) for i in sorted(set(bin_of_image))]
    for share, low, high, n in zip(*(result[key] for key in ("share", "low", "high", "images")), strict=True):
        # Wilson's bounds are the proportions that are 1.96 standard errors away from the share.
        assert low <= share <= high
        for bound in {low, high} - {0.0, 1.0}:
            assert abs(share - bound) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(bound * (1 - bound) / n))


@examples
@given(scored(), st.floats(0.01, 0.99))
def test_predictive_values_are_bayes_rule(split, prevalence):
    labels, scores, patients, threshold = split
    values = calibration.compute_predictive_values(labels, scores, threshold, [prevalence], resample(patients))
    rates = compute_rates(labels, scores >= threshold)
    sensitivity, specificity = rates["sensitivity"], rates["specificity"]
    for one in (values["ppv"][0], values["npv"][0]):
        check_summary(one)
    if None in (sensitivity, specificity):
        assert values["ppv"][0]["value"] is values["npv"][0]["value"] is None
        return
    found, alarms = prevalence * sensitivity, (1 - prevalence) * (1 - specificity)
    missed, passed = prevalence * (1 - sensitivity), (1 - prevalence) * specificity
    assert values["ppv"][0]["value"] == approx(divide(found, found + alarms))
    assert values["npv"][0]["value"] == approx(divide(passed, passed + missed))


# Comparison


@examples
@given(scored(), st.data())
def test_delong_equals_the_definition_and_is_antisymmetric(split, data):
    labels, scores, _, _ = split
    n = len(labels)
    others = np.array(data.draw(st.lists(st.integers(0, 3).map(float), min_size=n, max_size=n)))
    result = comparison.compute_delong(labels, scores, others)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    ill, well = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    if min(len(ill), len(well)) < 2:
        assert result["auroc_a"] is None and result["reason"]
        return
    wins = [[[np.heaviside(one[i] - one[j], 0.5) for j in well] for i in ill] for one in (scores, others)]
    difference = np.subtract(*wins)
    variance = np.var(difference.mean(axis=1), ddof=1) / len(ill) + np.var(difference.mean(axis=0), ddof=1) / len(well)
    assert [result["auroc_a"], result["auroc_b"]] == approx(np.mean(wins, axis=(1, 2)))
    assert result["standard_error"] == approx(math.sqrt(variance))
    swapped = comparison.compute_delong(labels, others, scores)
    assert swapped["difference"] == approx(-result["difference"])
    assert swapped["p"] == approx(result["p"])
    if result["p"] is None:
        assert variance < 1e-18 and result["reason"]
    else:
        assert 0 <= result["p"] <= 1
        assert result["p"] == approx(2 * stats.norm.sf(abs(difference.mean()) / math.sqrt(variance)))


@examples
@given(st.tuples(*[st.integers(0, 40)] * 4))
def test_mcnemar(counts):
    cells = ((True, True), (True, False), (False, True), (False, False))
    pairs = [cell for cell, number in zip(cells, counts, strict=True) for _ in range(number)]
    a, b = [one[0] for one in pairs], [one[1] for one in pairs]
    result = comparison.compute_mcnemar(a, b)
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    number = only_a + only_b
    assert (result["only_a_right"], result["only_b_right"]) == (only_a, only_b)
    if number < 25:
        tail = sum(math.comb(number, k) for k in range(min(only_a, only_b) + 1)) / 2**number
        assert result["p"] == approx(min(1, 2 * tail))
    else:
        assert result["p"] == approx(math.erfc(abs(only_a - only_b) / math.sqrt(2 * number)))
    assert comparison.compute_mcnemar(b, a)["p"] == approx(result["p"])


@examples
@given(splits(), st.data())
def test_differences(split, data):
    labels, probabilities, patients, threshold = split
    others = probabilities[data.draw(st.permutations(range(len(labels))))]
    drawn = resample(patients)
    result = comparison.compute_differences(labels, probabilities, others, threshold, 0.5, drawn)
    a = metrics.compute_metrics(labels, probabilities, threshold, drawn)
    b = metrics.compute_metrics(labels, others, 0.5, drawn)
    for name, one in result.items():
        assert (one["a"], one["b"]) == (approx(a[name]["value"]), approx(b[name]["value"]))
        check_summary(one["difference"], -1, 1)
        exists = None not in (one["a"], one["b"])
        assert one["difference"]["value"] == (approx(one["a"] - one["b"]) if exists else None)


# Subgroups and means


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


@examples
@given(splits(), st.integers(1, 3))
def test_means_over_trainings(split, trainings):
    labels, probabilities, patients, threshold = split
    repeats = [
        Predictions(
            workdir=pathlib.Path(f"runs/{i}"),
            class_names=["NORMAL", "BACTERIA", "VIRUS"],
            filenames=np.arange(len(labels)).astype(str),
            patient_ids=patients,
            labels=labels,
            probabilities=np.roll(probabilities, i, axis=0),
            threshold=threshold,
            fingerprint="f",
        )
        for i in range(trainings)
    ]
    result = summary.compute_mean_metrics(repeats)
    alone = [
        metrics.compute_metrics(one.labels, one.probabilities, threshold, PatientBootstrap(patients, 0))
        for one in repeats
    ]
    for name, one in result.items():
        spread = one.pop("standard_deviation")
        check_summary(one)
        values = [metric[name]["value"] for metric in alone]
        assert one["value"] == approx(mean_of(values))
        exists = trainings > 1 and None not in values
        assert spread == (approx(np.std(values, ddof=1)) if exists else None)
