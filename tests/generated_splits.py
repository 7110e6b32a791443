"""Generated splits for the tests of the statistics, and those statistics by brute force.

Splits have 1 to 24 images with frequent ties, and often one class, one patient, or perfect scores.
"""

import json

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from scipy import special
from sklearn import metrics as oracle

from pneumojax.evaluation.bootstrap import PatientBootstrap

RESAMPLES = 50


def examples(test):
    """Decorates a test with `given`. It gets the same 80 examples in each run, and a warning is an error."""
    test = settings(deadline=None, max_examples=80, derandomize=True, database=None)(test)
    return pytest.mark.filterwarnings("error", "ignore::sklearn.exceptions.UndefinedMetricWarning")(test)


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
