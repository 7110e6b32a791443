"""Tests of the report: its text agrees with metrics.json, and it shows all warnings."""

import copy
import html
import re

import numpy as np
import pytest
from PIL import Image

from pneumojax.config import Config, config_from_dict, config_to_dict
from pneumojax.data.dataset import Split
from pneumojax.evaluation import point_metrics
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.summary import compute_statistics
from pneumojax.reporting.caveats import NOT_A_DEVICE, describe_warnings
from pneumojax.reporting.evaluation_report import make_report
from pneumojax.reporting.worst_errors import ErrorMaps

PICTURES = ("roc", "precision_recall", "reliability", "predictive_values", "decision_curve", "learning_curves")


def make_split(subtypes):
    """Makes a split with one image for each patient. The images differ in brightness."""
    n = len(subtypes)
    return Split(
        name="test",
        images=np.full((n, 4, 4), np.arange(n)[:, None, None], np.uint8),
        subtypes=np.asarray(subtypes, np.int32),
        patient_ids=np.array([f"p{i:02}" for i in range(n)]),
        filenames=np.array([f"image{i:02}.jpeg" for i in range(n)]),
        heights=np.full(n, 900, np.int32),
        widths=np.arange(1000, 1000 + n, dtype=np.int32),
        channels=np.ones(n, np.int32),
        duplicate_of=np.full(n, ""),
        fingerprint="f" * 64,
    )


def make_info(**fields):
    return {
        "config": config_to_dict(config_from_dict(fields)),
        "class_names": ["NORMAL", "PNEUMONIA"],
        "data": {"fingerprint": "d" * 64, "source": "a zip", "synthetic": False, "counts": {"test": {"NORMAL": 12}}},
        "versions": {"jax": "0.0.1"},
        "device": {"kind": "toaster", "count": 2},
        "created": "2026-01-02T03:04:05+00:00",
        "step": 1234,
    }


def make_results(split, scores, threshold=0.5, task="binary"):
    """Makes metrics.json for given scores. With three classes, a third of each score is the probability of VIRUS."""
    scores = np.asarray(scores, np.float64)
    columns = [1 - scores, scores] if task == "binary" else [1 - scores, scores * 2 / 3, scores / 3]
    probabilities = np.stack(columns, axis=1)
    chosen = {"value": threshold, "rule": "youden", "split": "validation"}
    chosen["operating_points"] = {"target_sensitivity_0.95": 0.25, "target_sensitivity_0.99": None, "youden": threshold}
    fitted = {"temperature": 1.5, "biases": [0.0, 0.5, 0.2][: len(columns)], "prevalence": 0.5, "split": "validation"}
    numbers = compute_statistics(split, task, probabilities, chosen, fitted, PatientBootstrap(split.patient_ids))
    ill = split.subtypes > 0
    confusion = point_metrics.compute_confusion(ill.astype(int), point_metrics.compute_decisions(scores, threshold), 2)
    names = ("NORMAL", "PNEUMONIA") if task == "binary" else ("NORMAL", "BACTERIA", "VIRUS")
    matrices = {"at_threshold": confusion.tolist()} | ({} if task == "binary" else {"most_probable_class": []})
    return {
        **numbers,
        "calibration": fitted | numbers["calibration"],
        "threshold": chosen,
        "counts": {
            "images": len(split),
            "patients": len(split),
            "classes": {name: int((split.labels(task) == i).sum()) for i, name in enumerate(names)},
            "confusion_matrix": matrices,
        },
        "run": {
            "workdir": "runs/a",
            "checkpoint": {"which": "best", "step": 1234},
            "split": {"name": split.name, "fingerprint": split.fingerprint},
            "trained_on_this_data": True,
            "test_time_views": 1,
            "bootstrap": {"resamples": 1000},
            "date": "2026-02-03T04:05:06+00:00",
            **make_info(),
        },
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation")
    for name in (*PICTURES, "confusion_matrix_three_class"):
        Image.new("L", (2, 2)).save(path / f"{name}.png")
    return path


def draw_report(results, split, scores, networks, directory, explained=None):
    decisions = point_metrics.compute_decisions(scores, results["threshold"]["value"])
    return make_report(results, split, np.asarray(scores), decisions, networks, directory, explained or ErrorMaps())


@pytest.fixture(scope="module")
def report(directory):
    """`report(subtypes, scores, ...)`: the text of the report for these scores."""

    def make(subtypes, scores, networks=None, **choices):
        split = make_split(subtypes)
        results = make_results(split, scores, **choices)
        return draw_report(results, split, scores, networks or {"runs/a": make_info()}, directory)

    return make


def read_text(page):
    """Returns the visible text of a page in one line."""
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).replace("\xa0", " ").split())


def read_rows(page):
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[read_text(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


# 20 NORMAL images and 20 of pneumonia: 2 false positives and 5 false negatives at 0.5, 7 and 2 at 0.25.
SUBTYPES = [0] * 20 + [1] * 12 + [2] * 8
SCORES = [0.1] * 13 + [0.3] * 5 + [0.6, 0.8] + [0.9] * 13 + [0.7] * 2 + [0.2, 0.05, 0.3, 0.4, 0.45]


def test_the_summary_says_what_was_found_and_what_was_missed(report):
    text = read_text(report(SUBTYPES, SCORES))
    assert "scored 40 chest X-rays of 40 children (20 NORMAL, 20 PNEUMONIA), the test split" in text
    assert re.search(r"0\.5 .*, 75 \(\d+ to \d+\) of 100 images with pneumonia are found \(15 of 20\)", text)
    assert re.search(r"Of 100 NORMAL images, 10 \(\d+ to \d+\) raise a false alarm \(2 of 20\)", text)
    auroc = np.mean([(a > b) + (a == b) / 2 for a in SCORES[20:] for b in SCORES[:20]])
    assert f"AUROC {auroc:.3f} (" in text
    assert NOT_A_DEVICE in text


def test_each_operating_point_has_its_confusion_matrix_and_rates(report):
    page = report(SUBTYPES, SCORES)
    rows = read_rows(page)
    (first,) = [i for i, row in enumerate(rows) if row[0] == "The run's own, youden threshold 0.5"]
    assert rows[first][1:4] == ["pneumonia", "15 found", "5 missed"]
    assert rows[first][4].startswith("sensitivity 0.750 (")
    assert rows[first + 1][:4] == ["", "NORMAL", "2 false alarms", "18 right"]
    assert rows[first + 1][4].startswith("specificity 0.900 (")
    assert rows[first + 2][2].startswith(f"PPV {15 / 17:.3f} (") and rows[first + 2][3].startswith(
        f"NPV {18 / 23:.3f} ("
    )
    assert rows[first + 3][:4] == ["Target sensitivity 0.95 threshold 0.25", "pneumonia", "18 found", "2 missed"]
    assert rows[first + 4][:4] == ["", "NORMAL", "7 false alarms", "13 right"]
    assert "Target sensitivity 0.99: no threshold." in read_text(page)


def test_both_kinds_of_errors_are_shown_beside_their_maps(directory):
    split = make_split(SUBTYPES)
    explained = ErrorMaps({36: np.ones((4, 4))}, "A note about the maps.")
    page = draw_report(make_results(split, SCORES), split, SCORES, {"runs/a": make_info()}, directory, explained)
    text = read_text(page)
    assert "NORMAL images that were called pneumonia: 2. The network saw 4 x 4 pixels" in text
    assert "Images with pneumonia that were called NORMAL: 5. The network saw 4 x 4 pixels" in text
    assert page.count('alt="Map on ') == 1 and text.count("A note about the maps.") == 2


@pytest.mark.parametrize("subtype", [0, 1])
def test_a_split_of_one_class_has_a_report_with_reasons(report, subtype):
    page = report([subtype] * 12, np.linspace(0.2, 0.8, 12))
    text = read_text(page)
    assert "AUROC does not exist. Needs images of pneumonia and others" in text
    reason = "Needs images of pneumonia and others; the split has only one of the two."
    assert ["AUROC", "-", reason] in read_rows(page)
    lacking = "no NORMAL image that could raise a false alarm" if subtype else "no image with pneumonia can be found"
    assert lacking in text


def test_training_lists_the_main_settings_and_those_that_are_not_the_default(report):
    networks = {"runs/a": make_info(flip=True), "runs/b": make_info(flip=True, epochs=7) | {"step": 77}}
    one, two = (read_rows(report(SUBTYPES, SCORES, networks=these)) for these in ({"runs/a": make_info()}, networks))
    assert ["Setting", "Default", "runs/a", "runs/b"] in two
    assert ["flip", "False", "True", "True"] in two
    default = Config()
    assert ["epochs", str(default.train.epochs), str(default.train.epochs), "7"] in two
    assert ["Checkpoint, step", "", "1,234", "77"] in two
    assert ["Device", "", "2 x toaster"] in one
    assert ["optimizer", "adamw", "adamw"] in one
    assert "flip" not in [row[0] for row in one] and "dropout" not in [row[0] for row in two]
    assert ["Fingerprint of the data set", "d" * 64] in one and ["Started", "", "2026-01-02 03:04 UTC"] in one


def test_three_classes_have_their_matrix_and_metrics(report):
    page = report(SUBTYPES, SCORES, task="three_class")
    assert "Confusion matrix of three classes" in page
    rows = read_rows(page)
    (first,) = [i for i, row in enumerate(rows) if row[0] == "Each class against the others"]
    assert rows[first][1:] == ["Mean (macro)", "NORMAL", "BACTERIA", "VIRUS"]
    assert [row[0] for row in rows[first + 1 : first + 4]] == ["AUROC", "AUPRC", "Sensitivity"]
    # NORMAL is the most probable class up to a score of 0.6, which 19 of 20 images have.
    assert rows[first + 3][2].startswith("0.950 (") and rows[first + 3][4] == "0.000 (0.000 to 0.369)"
    assert "Confusion matrix of three classes" not in report(SUBTYPES, SCORES)


@pytest.mark.parametrize(
    ("change", "sentences"),
    [
        ({}, []),
        ({"synthetic": True}, ["synthetic radiographs, not patients"]),
        ({"split": "validation"}, ["Epoch, threshold and calibration were chosen on the evaluated split"]),
        (
            {"split": "validation", "rule_split": None},
            ["Epoch and calibration were chosen on the evaluated split"],
        ),
        (
            {"split": "validation", "which": "latest", "rule_split": None},
            ["Calibration was chosen on the evaluated split"],
        ),
        (
            {"split": "validation", "select_by": "last"},
            ["Threshold and calibration were chosen on the evaluated split"],
        ),
        ({"split": "train"}, ["trained on these images"]),
        (
            {"selection_split": "test", "rule_split": "test"},
            ["LEAKY: epoch, threshold and calibration were chosen on the evaluated split"],
        ),
        ({"trained": False, "synthetic": True}, ["synthetic radiographs", "may have been trained on"]),
    ],
)
def test_warnings_stand_where_they_must_and_nowhere_else(change, sentences, directory):
    split = make_split(SUBTYPES)
    results = copy.deepcopy(make_results(split, SCORES))
    results["run"]["data"]["synthetic"] = change.get("synthetic", False)
    results["run"]["split"]["name"] = change.get("split", "test")
    results["run"]["config"]["select_by"] = change.get("select_by", "auroc")
    results["run"]["checkpoint"]["which"] = change.get("which", "best")
    results["run"]["trained_on_this_data"] = change.get("trained", True)
    results["calibration"]["split"] = change.get("selection_split", "validation")
    results["threshold"]["split"] = change.get("rule_split", "validation")
    warnings = describe_warnings(results)
    assert len(warnings) == len(sentences)
    assert all(sentence in warning for sentence, warning in zip(sentences, warnings, strict=True))
    page = draw_report(results, split, SCORES, {"runs/a": make_info()}, directory)
    framed = re.findall(r'<div class="warning">(.*?)</div>', page, re.DOTALL)
    assert [read_text(frame) for frame in framed] == ([" ".join(warnings)] if warnings else [])
