"""Tests of the evaluation of a collection: it tunes nothing, and it agrees with the evaluation of a split."""

import numpy as np
import pytest
from encoded_images import encode
from scored import read_csv, read_results

from pneumojax.data.dataset import load_split
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.external import compare_collections, evaluate_collection, find_same_sensitivity
from pneumojax.evaluation.run import open_run
from pneumojax.reporting.caveats import describe_warnings

pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def write_collection(tmp_path):
    """`write_collection(split, names, chosen)`: writes images of a split into sub-folders. Returns the folder."""

    def write(split, names, chosen=slice(None)):
        folder = tmp_path / "hospital"
        for image, subtype, filename in zip(
            split.images[chosen], split.subtypes[chosen], split.filenames[chosen], strict=True
        ):
            path = folder / names[subtype] / f"{filename.rsplit('/')[-1]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(np.asarray(image)))
        return folder

    return write


@pytest.mark.parametrize("task", ["binary", "three_class"])
def test_images_of_a_split_have_the_same_metrics_as_the_split(task, request, write_collection):
    workdir = request.getfixturevalue("workdir" if task == "binary" else "three_class_workdir")
    run = open_run(workdir)
    expected = evaluate(run, "test")
    stored = [(workdir / name).read_bytes() for name in ("threshold.json", "calibration.json")]
    folder = write_collection(load_split(run.config.data, "test"), ("NORMAL", "BACTERIA", "VIRUS"))
    results = evaluate_collection(run, folder, "folders")
    assert [(workdir / name).read_bytes() for name in ("threshold.json", "calibration.json")] == stored
    assert results == read_results(workdir, "hospital")
    for name, metric in expected["metrics"].items():
        assert results["metrics"][name]["value"] == pytest.approx(metric["value"], abs=1e-6), name
    assert results["threshold"] == expected["threshold"]
    assert results["counts"]["classes"] == expected["counts"]["classes"]
    assert results["run"]["trained_on_this_data"] is None
    assert "another training split" not in " ".join(describe_warnings(results))
    assert "Do not report it" in (workdir / "evaluation" / "hospital" / "report.html").read_text()


def test_pneumonia_of_unknown_kind_is_evaluated_with_two_classes(three_class_workdir, write_collection):
    run = open_run(three_class_workdir)
    expected = evaluate(run, "test")
    folder = write_collection(load_split(run.config.data, "test"), ("NORMAL", "PNEUMONIA", "PNEUMONIA"))
    (folder / "NORMAL" / "broken.png").write_bytes(b"\x89PNG")
    results = evaluate_collection(run, folder, "folders", prevalence=0.1)
    for name in ("auroc", "sensitivity", "specificity"):
        assert results["metrics"][name]["value"] == pytest.approx(expected["metrics"][name]["value"], abs=1e-6)
    assert results["run"]["class_names"] == ["NORMAL", "PNEUMONIA"]
    rows = read_csv(three_class_workdir, "hospital")
    assert {row["label"] for row in rows} == {"NORMAL", "PNEUMONIA"}
    assert all(float(row["score"]) == pytest.approx(float(row["probability_PNEUMONIA"])) for row in rows)
    before = {float(row["calibrated_score"]) for row in read_csv(three_class_workdir, "test")}
    after = [float(row["calibrated_score"]) for row in rows]
    assert all(min(abs(score - other) for other in before) < 1e-6 for score in after)
    folder = three_class_workdir / "evaluation" / "hospital"
    assert "NORMAL/broken.png," in (folder / "unreadable.csv").read_text()
    assert "left out as unreadable" in (folder / "report.html").read_text()
    assert "BACTERIA, score" not in (folder / "report.html").read_text()


@pytest.mark.parametrize("positive", [False, True])
def test_a_collection_of_one_class_is_evaluated(workdir, write_collection, positive):
    run = open_run(workdir)
    split = load_split(run.config.data, "test")
    folder = write_collection(split, ("NORMAL", "PNEUMONIA", "PNEUMONIA"), (split.subtypes > 0) == positive)
    results = evaluate_collection(run, folder, "folders")
    assert results["metrics"]["auroc"]["value"] is None
    present, missing = ("sensitivity", "specificity") if positive else ("specificity", "sensitivity")
    assert results["metrics"][present]["value"] is not None and results["metrics"][missing]["value"] is None
    report = (workdir / "evaluation" / "hospital" / "report.html").read_text()
    assert ("All images show pneumonia" if positive else "All images are NORMAL") in report


def test_the_shift_is_one_half_for_equal_images_and_finds_brighter_ones():
    images = np.random.default_rng(0).integers(50, 150, (20, 16, 16), np.uint8)
    assert all(row["auroc"] == 0.5 for row in compare_collections(images, images).values())
    assert compare_collections(images, images + 60)["exposure"]["auroc"] == 1


def test_the_same_sensitivity_is_reached_with_another_threshold():
    labels = np.array([0, 0, 1, 1, 1, 1])
    scores = np.array([0.1, 0.6, 0.4, 0.7, 0.8, 0.9])
    found = find_same_sensitivity((labels, scores), (labels, scores / 2), 0.5)
    assert found == {"target": 0.75, "threshold": 0.35, "sensitivity": 0.75, "specificity": 1.0}
    assert find_same_sensitivity((labels, scores), (labels * 0, scores), 0.5)["threshold"] is None
