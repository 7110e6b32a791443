"""pneumojax.evaluation.metrics against scikit-learn, closed forms and brute force."""

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as oracle

from pneumojax.evaluation import metrics


def make_split(images, classes, seed=0, step=None):
    """Labels, probabilities and one patient for each image; step rounds the probabilities, so that scores tie."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    logits = rng.normal(size=(images, classes)) + 1.2 * np.eye(classes)[labels]
    if step:
        logits = np.round(logits / step) * step
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities, np.array([f"person{i}" for i in range(images)])


@pytest.mark.parametrize("step", [None, 1.0])
def test_areas_equal_scikit_learn(step):
    labels, probabilities, _ = make_split(200, 2, step=step)
    scores = metrics.compute_binary_scores(probabilities)
    assert (len(np.unique(scores)) < 50) == (step is not None)
    assert metrics.compute_auroc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
    expected = oracle.average_precision_score(labels, scores)
    assert metrics.compute_auprc(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_hand_counted_pairs():
    # Positives 0.4 and 0.8 against negatives 0.1, 0.4, 0.6: 1 + 1/2 + 0 and 3 of 6 pairs.
    assert metrics.compute_auroc([0, 1, 0, 0, 1], [0.1, 0.4, 0.4, 0.6, 0.8]) == pytest.approx(4.5 / 6)
    assert metrics.compute_auroc([0, 0, 1, 1], [0.3, 0.3, 0.3, 0.3]) == 0.5
    assert metrics.compute_auprc([0, 0, 1, 0], [0.3, 0.3, 0.3, 0.3]) == 0.25


def test_threshold_metrics_equal_scikit_learn():
    labels, probabilities, _ = make_split(200, 2, step=0.25)
    scores = metrics.compute_binary_scores(probabilities)
    threshold = scores[7]
    decisions = scores >= threshold
    assert metrics.compute_threshold_metrics(labels, scores, threshold) == pytest.approx({
        "accuracy": oracle.accuracy_score(labels, decisions),
        "sensitivity": oracle.recall_score(labels, decisions),
        "specificity": oracle.recall_score(labels, decisions, pos_label=0),
        "precision": oracle.precision_score(labels, decisions),
        "npv": oracle.precision_score(labels, decisions, pos_label=0),
        "f1": oracle.f1_score(labels, decisions),
        "balanced_accuracy": oracle.balanced_accuracy_score(labels, decisions),
    })  # fmt: skip


def test_macro_averages_of_two_classes_equal_scikit_learn():
    labels, probabilities, patients = make_split(200, 2, step=0.25)
    decisions = metrics.compute_binary_scores(probabilities) >= 0.6
    result = metrics.compute_metrics(labels, probabilities, 0.6, patients, resamples=50)
    for name, compute in (("precision_macro", oracle.precision_score), ("f1_macro", oracle.f1_score)):
        assert result[name]["value"] == pytest.approx(compute(labels, decisions, average="macro"))
        low, high = result[name]["ci95"]
        assert low < result[name]["value"] < high


def roc_specificity(positive, scores, target, weight=None):
    """The best specificity among scikit-learn's points of the ROC curve that reach the sensitivity."""
    x, y, _ = oracle.roc_curve(positive, scores, sample_weight=weight, drop_intermediate=False)
    return 1 - x[y >= target - 1e-12].min()


@pytest.mark.parametrize("step", [None, 1.0])
def test_weighted_values_equal_scikit_learn_with_sample_weight(step):
    labels, probabilities, _ = make_split(150, 3, step=step)
    weights = np.random.default_rng(1).integers(4, size=(5, 150)).astype(np.float64)
    values = metrics.compute_metric_values(labels, probabilities, 0.6, weights)
    positive, scores = labels > 0, metrics.compute_binary_scores(probabilities)
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


def test_confusion_equals_scikit_learn():
    labels, probabilities, _ = make_split(100, 3)
    decisions = probabilities.argmax(axis=1)
    confusion = metrics.compute_confusion(labels, decisions, 3)
    assert confusion.dtype == np.int64
    np.testing.assert_array_equal(confusion, oracle.confusion_matrix(labels, decisions))
    np.testing.assert_array_equal(metrics.compute_confusion([1], [0], 2), [[0, 0], [1, 0]])


def test_binary_score_keeps_confident_images_apart():
    probabilities = np.array([[1e-9, 1 - 1e-9], [1e-8, 1 - 1e-8]], np.float32)
    high, low = metrics.compute_binary_scores(probabilities)
    assert high > low


def test_bootstrap_draws_whole_patients():
    patient_ids = np.array(["b", "a", "b", "c", "a", "b"])
    weights = metrics.compute_bootstrap_weights(patient_ids, 400, seed=3)
    assert weights.shape == (400, 6)
    np.testing.assert_array_equal(weights[:, [0, 0, 1]], weights[:, [2, 5, 4]])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), 3)
    # Each patient is drawn binomially: 3 draws of chance 1/3.
    np.testing.assert_allclose(weights[:, [0, 1, 3]].mean(axis=0), 1, atol=4 * math.sqrt(2 / 3 / 400))
    assert weights[:, 3].var() == pytest.approx(2 / 3, rel=0.25)


def test_interval_of_accuracy_is_the_binomial_one():
    images, right = 624, 560
    labels = np.arange(images) % 2
    decided = np.where(np.arange(images) < right, labels, 1 - labels)
    probabilities = np.eye(2)[decided]
    patient_ids = np.arange(images)
    accuracy = metrics.compute_metrics(labels, probabilities, 0.5, patient_ids, resamples=4000)["accuracy"]
    half = 1.96 * math.sqrt(right / images * (1 - right / images) / images)
    assert accuracy["value"] == right / images
    assert accuracy["ci95"] == pytest.approx([right / images - half, right / images + half], abs=0.1 * half)


def test_patients_of_many_images_widen_the_interval():
    labels, probabilities, _ = make_split(100, 2)
    labels, probabilities = np.repeat(labels, 4), np.repeat(probabilities, 4, axis=0)
    by_patient = metrics.compute_metrics(labels, probabilities, 0.5, np.repeat(np.arange(100), 4))
    by_image = metrics.compute_metrics(labels, probabilities, 0.5, np.arange(400))
    for name in ("auroc", "accuracy", "specificity"):
        ratio = np.ptp(by_patient[name]["ci95"]) / np.ptp(by_image[name]["ci95"])
        # Four copies of an image say no more than one: half as wide when they pass for four.
        assert 1.7 < ratio < 2.3


def test_same_seed_same_result_in_any_order():
    labels, probabilities, patient_ids = make_split(80, 3, step=0.5)
    first = metrics.compute_metrics(labels, probabilities, 0.4, patient_ids, resamples=100, seed=5)
    order = np.random.default_rng(0).permutation(80)
    again = metrics.compute_metrics(labels[order], probabilities[order], 0.4, patient_ids[order], resamples=100, seed=5)
    assert first == again
    assert first != metrics.compute_metrics(labels, probabilities, 0.4, patient_ids, resamples=100, seed=6)


@pytest.mark.parametrize("classes", [2, 3])
def test_result_survives_strict_json(classes):
    labels, probabilities, patient_ids = make_split(60, classes)
    result = metrics.compute_metrics(labels, probabilities.astype(np.float32), 0.5, patient_ids, resamples=100)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    for metric in result.values():
        assert type(metric["value"]) is float
        assert 0 <= metric["ci95"][0] <= metric["value"] <= metric["ci95"][1] <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("label", [0, 1, 2])
def test_split_of_one_class(label):
    _, probabilities, patient_ids = make_split(20, 3)
    result = metrics.compute_metrics([label] * 20, probabilities, 0.5, patient_ids, resamples=100)
    json.dumps(result, allow_nan=False)
    assert result["auroc"]["value"] is None
    assert "only one of the two" in result["auroc"]["reason"]
    assert result["auroc_macro"]["value"] is None
    assert result["accuracy"]["value"] is not None
    assert (result["sensitivity"]["value"] is None) == (label == 0)
    assert (result["specificity"]["value"] is None) == (label > 0)
    assert (result["sensitivity_VIRUS"]["value"] is None) == (label != 2)
    assert all("reason" in metric for metric in result.values() if metric["value"] is None)
    assert metrics.compute_auroc([label] * 20, probabilities[:, 1]) is None
    assert metrics.compute_roc_curve([label] * 20, probabilities[:, 1], patient_ids) is None


@pytest.mark.filterwarnings("error")
def test_no_positive_decision_has_no_precision():
    result = metrics.compute_metrics([0, 1, 0, 1], [[0.9, 0.1]] * 4, 0.5, [1, 2, 3, 4], resamples=200)
    assert result["precision"] == {
        "value": None,
        "ci95": None,
        "reason": "Needs decisions for pneumonia; there is none.",
    }
    assert result["f1"]["value"] == 0.0


def test_interval_is_of_the_resamples_that_have_the_metric():
    # The one VIRUS patient is missing from about a third of the resamples.
    labels = np.array([0] * 10 + [1] * 10 + [2])
    _, probabilities, patient_ids = make_split(21, 3)
    probabilities[-1] = [0.4, 0.35, 0.25]
    result = metrics.compute_metrics(labels, probabilities, 0.5, patient_ids, resamples=300)
    weights = metrics.compute_bootstrap_weights(patient_ids, 300, seed=0)
    values = metrics.compute_metric_values(labels, probabilities, 0.5, weights)["auroc_VIRUS"]
    assert 60 < np.isnan(values).sum() < 160
    assert result["auroc_VIRUS"]["ci95"] == pytest.approx(np.nanpercentile(values, [2.5, 97.5]))

    few = metrics.compute_metrics(labels, probabilities, 0.5, patient_ids, resamples=45)["auroc_VIRUS"]
    assert few["value"] == result["auroc_VIRUS"]["value"]
    assert few["ci95"] is None
    assert "of 45 resamples; an interval needs 40" in few["reason"]


def test_no_interval_where_resamples_cannot_differ():
    labels, probabilities, _ = make_split(20, 2)
    result = metrics.compute_metrics(labels, probabilities, 0.5, ["one patient"] * 20, resamples=100)
    between = [metric for metric in result.values() if 0 < metric["value"] < 1]
    assert between
    assert all(metric["ci95"] is None and "do not differ" in metric["reason"] for metric in between)


def test_a_perfect_metric_has_the_exact_binomial_bound_of_the_rarest_class():
    labels = np.array([0] * 12 + [1] * 30)
    patients = [f"normal {i // 2}" for i in range(12)] + [f"pneumonia {i}" for i in range(30)]
    probabilities = np.stack([1 - labels, labels], 1) * 0.8 + 0.1
    exact = stats.binomtest(6, 6).proportion_ci(0.95, "exact")
    for metric in metrics.compute_metrics(labels, probabilities, 0.5, patients).values():
        assert metric["value"] == 1
        np.testing.assert_allclose(metric["ci95"], exact)
    reversed_metrics = metrics.compute_metrics(1 - labels, probabilities, 0.5, patients)
    np.testing.assert_allclose(reversed_metrics["auroc"]["ci95"], [0, 1 - exact.low])


def brute_force_rates(labels, scores):
    """{threshold: (sensitivity, specificity)} at each score."""
    positive = np.asarray(labels) > 0
    return {t: (np.mean(scores[positive] >= t), np.mean(scores[~positive] < t)) for t in np.unique(scores)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [0.05, 0.5, 0.95, 1.0])
def test_target_sensitivity_by_brute_force(seed, target):
    labels, probabilities, _ = make_split(40, 3, seed=seed, step=0.5)
    scores = metrics.compute_binary_scores(probabilities)
    chosen = metrics.choose_threshold(labels, scores, "target_sensitivity", target_sensitivity=target)
    rates = brute_force_rates(labels, scores)
    assert chosen == max(t for t, (sensitivity, _) in rates.items() if sensitivity >= target)


@pytest.mark.parametrize("seed", range(5))
def test_youden_by_brute_force(seed):
    labels, probabilities, _ = make_split(12, 2, seed=seed, step=1.0)
    scores = metrics.compute_binary_scores(probabilities)
    chosen = metrics.choose_threshold(labels, scores, "youden")
    youden = {t: sum(rates) - 1 for t, rates in brute_force_rates(labels, scores).items()}
    assert chosen == min(t for t, value in youden.items() if value > max(youden.values()) - 1e-9)


def test_youden_takes_the_smallest_of_equals():
    # Thresholds 0.9, 0.5 and 0.3 have sensitivity + specificity of 1/3 + 1, 2/3 + 2/3 and 1 + 1/3.
    labels, scores = [1, 0, 1, 0, 1, 0], [0.9, 0.6, 0.5, 0.4, 0.3, 0.1]
    assert metrics.choose_threshold(labels, scores, "youden") == 0.3


@pytest.mark.parametrize("prevalence", [None, 0.05, 0.9])
@pytest.mark.parametrize("cost_ratio", [0.1, 1.0, 7.0])
def test_cost_ratio_by_brute_force(cost_ratio, prevalence):
    labels, probabilities, _ = make_split(40, 2, step=0.5)
    scores = metrics.compute_binary_scores(probabilities)
    chosen = metrics.choose_threshold(labels, scores, "cost_ratio", cost_ratio=cost_ratio, prevalence=prevalence)
    share = labels.mean() if prevalence is None else prevalence
    rates = {**brute_force_rates(labels, scores), np.nextafter(scores.max(), 2): (0.0, 1.0)}
    costs = {
        t: cost_ratio * share * (1 - sensitivity) + (1 - share) * (1 - specificity)
        for t, (sensitivity, specificity) in rates.items()
    }
    assert chosen == min(t for t, cost in costs.items() if cost < min(costs.values()) + 1e-9)


@pytest.mark.parametrize(("cost_ratio", "threshold"), [(8.9, 0.2), (3.0, 0.3), (1.0, 0.5), (0.3, 0.8)])
def test_cost_ratio_of_true_probabilities_is_the_odds_of_the_threshold(cost_ratio, threshold):
    # Of ten images of score 0.3 three are positive. Deciding for them pays where score / (1 - score) >= 1 / cost_ratio
    # (Elkan, The foundations of cost-sensitive learning, 2001); at equality the smaller threshold is taken.
    tenths = np.repeat(np.arange(1, 10), 10)
    labels = (np.tile(np.arange(10), 9) < tenths).astype(int)
    assert metrics.choose_threshold(labels, tenths / 10, "cost_ratio", cost_ratio=cost_ratio) == threshold


def test_where_alarms_cost_most_nobody_is_decided_for():
    threshold = metrics.choose_threshold([0, 1, 0, 1], [0.1, 0.2, 1.0, 1.0], "cost_ratio", cost_ratio=0.01)
    assert threshold > 1.0 and not metrics.compute_decisions([0.1, 0.2, 1.0, 1.0], threshold).any()


@pytest.mark.parametrize("step", [None, 1.0])
def test_specificity_at_sensitivity_equals_scikit_learn(step):
    labels, probabilities, patient_ids = make_split(300, 2, step=step)
    scores = metrics.compute_binary_scores(probabilities)
    result = metrics.compute_metrics(labels, probabilities, 0.5, patient_ids)
    for target in (0.95, 0.975, 0.99):
        metric = result[f"specificity_at_sensitivity_{target:g}"]
        assert metric["value"] == pytest.approx(roc_specificity(labels, scores, target), abs=1e-12)
        assert metric["ci95"][0] <= metric["value"] <= metric["ci95"][1]


def test_operating_points_equal_scikit_learn_on_the_other_split():
    labels, probabilities, patient_ids = make_split(200, 3, seed=1)
    scores = metrics.compute_binary_scores(probabilities)
    thresholds = metrics.choose_operating_points(*(make_split(200, 2)[0], make_split(200, 2)[1][:, 1]))
    assert list(thresholds) == [*(f"target_sensitivity_{t}" for t in ("0.95", "0.975", "0.99")), "youden"]
    points = metrics.compute_operating_points(labels, scores, thresholds, patient_ids)
    assert json.loads(json.dumps(points, allow_nan=False)) == points
    for name, point in points.items():
        decisions = scores >= thresholds[name]
        assert point["threshold"] == thresholds[name]
        assert point["metrics"]["sensitivity"]["value"] == pytest.approx(oracle.recall_score(labels > 0, decisions))
        specificity = oracle.recall_score(labels == 0, ~decisions)
        assert point["metrics"]["specificity"]["value"] == pytest.approx(specificity)
        np.testing.assert_array_equal(point["confusion_matrix"], oracle.confusion_matrix(labels > 0, decisions))
        whole = metrics.compute_metrics(labels, probabilities, thresholds[name], patient_ids)
        assert point["metrics"]["specificity"] == whole["specificity"]


@pytest.mark.parametrize("label", [0, 1])
def test_operating_points_of_a_validation_split_of_one_class(label):
    thresholds = metrics.choose_operating_points([label] * 3, [0.1, 0.2, 0.3])
    assert thresholds["youden"] is None and (thresholds["target_sensitivity_0.95"] is None) == (label == 0)
    points = metrics.compute_operating_points([0, 1], [0.1, 0.9], thresholds, ["a", "b"])
    assert points["youden"] == {
        "threshold": None,
        "reason": "The split that it is chosen on lacks the images for the rule.",
    }


def test_target_is_met_exactly_in_spite_of_rounding():
    # 0.07 * 100 is 7.000000000000001, so a product would ask for an eighth image.
    scores = np.linspace(0.0, 1.0, 100)
    chosen = metrics.choose_threshold(np.ones(100), scores, "target_sensitivity", target_sensitivity=0.07)
    assert np.sum(scores >= chosen) == 7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threshold_makes_the_same_decisions_after_json(dtype):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=500)
    # Scores so close that any rounding would move some over the threshold.
    scores = (0.7 + 4e-8 * rng.integers(-20, 20, size=500)).astype(dtype)
    for rule in ("target_sensitivity", "youden"):
        threshold = metrics.choose_threshold(labels, scores, rule, target_sensitivity=0.8)
        assert type(threshold) is float
        assert threshold in scores.astype(np.float64)
        read_again = json.loads(json.dumps({"value": threshold}))["value"]
        before, after = (metrics.compute_decisions(scores, t) for t in (threshold, read_again))
        np.testing.assert_array_equal(before, after)


def test_decisions_do_not_round_the_threshold_to_float32():
    score = np.float32(0.7)
    above = float(np.nextafter(np.float64(score), 1.0))
    assert metrics.compute_decisions(np.array([score]), float(score))[0] == 1
    assert metrics.compute_decisions(np.array([score]), above)[0] == 0


@pytest.mark.parametrize(
    ("labels", "rule", "numbers", "message"),
    [
        ([0, 0], "target_sensitivity", {"target_sensitivity": 0.9}, "needs positive images"),
        ([0, 0], "youden", {}, "needs positive images"),
        ([1, 2], "youden", {}, "needs negative images"),
        ([0, 1], "target_sensitivity", {}, "above 0 and at most 1, not None"),
        ([0, 1], "target_sensitivity", {"target_sensitivity": 1.1}, "above 0 and at most 1, not 1.1"),
        ([0, 1], "cost_ratio", {}, "above 0, not None"),
        ([0, 1], "cost_ratio", {"cost_ratio": 0.0}, "above 0, not 0.0"),
        ([0, 1], "cost_ratio", {"cost_ratio": 2.0, "prevalence": 1.0}, "between 0 and 1, not 1.0"),
        ([1, 1], "cost_ratio", {"cost_ratio": 2.0}, "cost_ratio needs negative images"),
        ([0, 1], "fixed", {}, "between 0 and 1, not None"),
        ([0, 1], "best", {}, "Unknown threshold rule 'best'"),
        ([], "youden", {}, "Lengths differ"),
    ],
)
def test_threshold_that_cannot_be_chosen(labels, rule, numbers, message):
    with pytest.raises(ValueError, match=message):
        metrics.choose_threshold(labels, [0.2, 0.8], rule, **numbers)


def test_fixed_threshold_is_the_number_given():
    assert metrics.choose_threshold([0, 0], [0.2, 0.8], "fixed", fixed=0.5) == 0.5


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
        metrics.compute_metrics(labels, probabilities, 0.5, patient_ids)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "no image"),
        ([0, 1, 1], [0.1, 0.2], "labels 3, scores 2"),
        ([-1, 1], [0.1, 0.2], "Labels must be 0 or more, not -1"),
        ([0, 1], [0.1, np.inf], "1 of 2 scores are not finite"),
        ([[0, 1]], [[0.1, 0.2]], "must be lists"),
    ],
)
def test_areas_of_bad_input(labels, scores, message):
    for compute in (metrics.compute_auroc, metrics.compute_auprc):
        with pytest.raises(ValueError, match=message):
            compute(labels, scores)


def test_roc_curve_equals_scikit_learn_and_lies_in_its_band():
    labels, probabilities, patient_ids = make_split(200, 2, step=0.5)
    scores = metrics.compute_binary_scores(probabilities)
    curve = metrics.compute_roc_curve(labels, scores, patient_ids)
    x, y, _ = oracle.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve["false_positive_rate"], x, atol=1e-12)
    np.testing.assert_allclose(curve["sensitivity"], y, atol=1e-12)
    grid, low, high = (np.array(curve["band"][key]) for key in ("false_positive_rate", "low", "high"))
    at_grid = np.interp(grid, x, y)
    assert np.all((low <= at_grid + 1e-12) & (at_grid <= high + 1e-12))
    assert np.all(np.diff(low) >= 0) and high[-1] == low[-1] == 1
    # The area under a pointwise band holds the interval of the area.
    low_area, high_area = metrics.compute_metrics(labels, probabilities, 0.5, patient_ids)["auroc"]["ci95"]
    assert np.trapezoid(low, grid) < low_area < high_area < np.trapezoid(high, grid)


def test_band_width_is_that_of_a_proportion():
    # At a false positive rate between the two negatives' scores, sensitivity is a share of the 300 positives.
    labels = np.array([1] * 300 + [0] * 300)
    scores = np.array([3.0] * 240 + [1.0] * 60 + [2.0] * 300)
    band = metrics.compute_roc_curve(labels, scores, np.arange(600), resamples=2000)["band"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 300)
    assert [band["low"][0], band["high"][0]] == pytest.approx([0.8 - half, 0.8 + half], abs=0.15 * half)


def test_precision_recall_curve_is_the_average_precision_and_lies_in_its_band():
    labels, probabilities, patient_ids = make_split(200, 2, step=0.5)
    scores = metrics.compute_binary_scores(probabilities)
    curve = metrics.compute_pr_curve(labels, scores, patient_ids)
    area = np.sum(np.diff(curve["sensitivity"], prepend=0) * curve["precision"])
    assert area == pytest.approx(oracle.average_precision_score(labels, scores), abs=1e-12)
    precision, recall, _ = oracle.precision_recall_curve(labels, scores)
    points = set(zip(recall.round(9), precision.round(9), strict=True))
    assert set(zip(np.round(curve["sensitivity"], 9), np.round(curve["precision"], 9), strict=True)) <= points
    assert np.all(np.diff(curve["sensitivity"]) > 0)
    assert curve["prevalence"] == labels.mean()
    grid, low, high = (np.array(curve["band"][key]) for key in ("sensitivity", "low", "high"))
    at_grid = np.array(curve["precision"])[np.searchsorted(curve["sensitivity"], grid - 1e-12)]
    assert np.mean((low <= at_grid) & (at_grid <= high)) > 0.97
    low_area, high_area = metrics.compute_metrics(labels, probabilities, 0.5, patient_ids)["auprc"]["ci95"]
    assert low.mean() < low_area < high_area < high.mean()


def test_curves_survive_strict_json_and_small_splits():
    for curve in (metrics.compute_roc_curve, metrics.compute_pr_curve):
        result = curve([0, 1], [0.2, 0.8], ["a", "b"], resamples=200)
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert curve([0, 1], [0.2, 0.8], ["a", "b"], resamples=20)["band"] is None
