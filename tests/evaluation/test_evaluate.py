"""Tests of the evaluation: it is exact, uses a threshold from validation, and its files are consistent."""

import base64
import concurrent.futures
import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from scored import read_csv, read_results
from source_files import edit_metadata

from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import metrics, point_metrics, prediction_files, thresholds
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.ensemble import open_ensemble
from pneumojax.evaluation.evaluate import FILES, evaluate
from pneumojax.evaluation.operating_point import load_or_choose_threshold
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.recalibration import fit_calibration
from pneumojax.evaluation.run import open_run
from pneumojax.files import replace_folder
from pneumojax.reporting.caveats import describe_warnings
from pneumojax.training.fit import fit
from tfds_builder import kermany_pneumonia

tfds = pytest.importorskip("tensorflow_datasets")

BINARY = {"auroc", "auprc", "accuracy", "sensitivity", "specificity", "precision", "f1", "npv", "balanced_accuracy"}
BINARY |= {f"specificity_at_sensitivity_{target}" for target in ("0.95", "0.975", "0.99")}
BINARY |= {"precision_macro", "f1_macro"}


def test_the_files_agree_with_each_other(workdir, draw_pictures):
    with draw_pictures():
        results = evaluate(open_run(workdir), "test", explain=True)
    assert results == read_results(workdir, "test")
    statistics = {"metrics", "operating_points", "calibration", "at_prevalence", "subgroups", "label_noise"}
    assert set(results) == statistics | {"threshold", "counts", "run"}
    assert set(results["metrics"]) == BINARY
    for name, metric in results["metrics"].items():
        assert {"value", "ci95"} <= set(metric)
        if metric["ci95"]:
            low, high = metric["ci95"]
            assert 0 <= low <= high <= 1, name
    assert {"value", "rule", "split"} <= set(results["threshold"])
    assert results["threshold"] == json.loads((workdir / "threshold.json").read_text())
    assert results["threshold"]["split"] == "validation"
    assert results["run"]["trained_on_this_data"] is True

    rows = read_csv(workdir, "test")
    split = load_split(open_run(workdir).config.data, "test")
    assert [row["filename"] for row in rows] == list(split.filenames)
    assert results["counts"]["images"] == len(rows) == len(split)
    assert results["counts"]["patients"] == len({row["patient_id"] for row in rows})
    labels = np.array([row["label"] == "PNEUMONIA" for row in rows]).astype(int)
    scores = np.array([float(row["score"]) for row in rows])
    threshold = results["threshold"]["value"]
    assert [row["decision"] == "PNEUMONIA" for row in rows] == list(scores >= threshold)
    assert list(scores) == [1 - float(row["probability_NORMAL"]) for row in rows] or np.allclose(
        scores, [float(row["probability_PNEUMONIA"]) for row in rows], atol=1e-15
    )
    probabilities = np.array([[float(row["probability_NORMAL"]), float(row["probability_PNEUMONIA"])] for row in rows])
    patients = [row["patient_id"] for row in rows]
    assert metrics.compute_metrics(labels, probabilities, threshold, PatientBootstrap(patients)) == results["metrics"]
    decided = scores >= threshold
    expected = [[int(((labels == i) & (decided == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    assert results["counts"]["confusion_matrix"]["at_threshold"] == expected
    assert results["metrics"]["accuracy"]["value"] == pytest.approx((expected[0][0] + expected[1][1]) / len(rows))
    written = {path.name for path in (workdir / "evaluation" / "test").iterdir()}
    pictures = {"roc.png", "precision_recall.png", "confusion_matrix.png", "learning_curves.png"}
    pictures |= {"reliability.png", "predictive_values.png", "decision_curve.png"}
    assert written == {"metrics.json", "predictions.csv", "curves.json", "report.html"} | pictures
    report = (workdir / "evaluation" / "test" / "report.html").read_text()
    assert len(report) < 3e6
    for picture in pictures - {"confusion_matrix.png"}:
        content = (workdir / "evaluation" / "test" / picture).read_bytes()
        assert base64.b64encode(content).decode() in report, picture
    assert "synthetic radiographs, not patients" in report
    errors = expected[0][1] + expected[1][0]
    assert 0 < report.count('alt="Map on ') <= min(errors, 16) and "occlusion, was tested in" in report
    evaluate(open_run(workdir), "test")  # Without maps.
    assert "Map on " not in (workdir / "evaluation" / "test" / "report.html").read_text()


def test_three_classes_score_as_one_minus_normal_and_have_their_own_matrix(three_class_workdir):
    results = evaluate(open_run(three_class_workdir), "validation")
    rows = read_csv(three_class_workdir, "validation")
    names = ["NORMAL", "BACTERIA", "VIRUS"]
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in names] for row in rows])
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    scores = np.array([float(row["score"]) for row in rows])
    np.testing.assert_allclose(scores, 1 - probabilities[:, 0], atol=1e-12)
    labels = np.array([names.index(row["label"]) for row in rows])
    assert [row["most_probable_class"] for row in rows] == [names[i] for i in probabilities.argmax(1)]
    matrices = results["counts"]["confusion_matrix"]
    chosen = probabilities.argmax(1)
    assert matrices["most_probable_class"] == [
        [int(((labels == i) & (chosen == j)).sum()) for j in range(3)] for i in range(3)
    ]
    assert np.sum(matrices["at_threshold"]) == len(rows)
    patients = [row["patient_id"] for row in rows]
    threshold = results["threshold"]["value"]
    assert metrics.compute_metrics(labels, probabilities, threshold, PatientBootstrap(patients)) == results["metrics"]
    assert set(results["metrics"]) > BINARY
    for word in ("NORMAL", "BACTERIA", "VIRUS", "macro"):
        assert [name for name in results["metrics"] if name.endswith(word)], word


def test_the_threshold_comes_from_validation_whatever_is_scored(workdir, monkeypatch):
    (workdir / "threshold.json").unlink()
    asked = []
    choose = thresholds.choose_threshold
    monkeypatch.setattr(
        thresholds, "choose_threshold", lambda labels, *a, **k: asked.append(labels) or choose(labels, *a, **k)
    )
    run = open_run(workdir)
    results = evaluate(run, "test")
    validation = load_split(run.config.data, "validation")
    times = len(asked)
    assert times == 5  # the run's own rule, and the four operating points that are always reported
    for labels in asked:
        np.testing.assert_array_equal(labels, validation.labels("binary"))
    scores = 1 - compute_probabilities(run.predict(validation.images))[:, 0]
    sensitivity = np.mean(scores[validation.subtypes > 0] >= results["threshold"]["value"])
    assert sensitivity >= 0.95
    assert json.loads((workdir / "threshold.json").read_text()) == results["threshold"]
    assert evaluate(run, "test")["threshold"] == results["threshold"]  # It was stored, with the date of the first one.
    assert len(asked) == times


@pytest.mark.parametrize("subtype", [0, 1])
def test_a_split_of_one_class_is_scored_and_reported_with_reasons(workdir, monkeypatch, subtype):
    def load_one_class(config, name):
        split = load_split(config, name)
        kept = split.subtypes == subtype
        columns = {
            field.name: value[kept]
            for field in dataclasses.fields(split)
            if isinstance(value := getattr(split, field.name), np.ndarray)
        }
        return dataclasses.replace(split, **columns)

    monkeypatch.setattr("pneumojax.evaluation.run.load_split", load_one_class)
    results = evaluate(open_run(workdir), "test")
    assert results["metrics"]["auroc"]["value"] is None
    report = (workdir / "evaluation" / "test" / "report.html").read_text()
    assert f"AUROC does not exist. {results['metrics']['auroc']['reason']}" in report


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "tried", [{0, len(FILES) // 2, len(FILES) - 2}, pytest.param(range(100), marks=pytest.mark.slow)]
)
def test_all_files_of_an_evaluation_appear_together_or_not_at_all(workdir, monkeypatch, tried):
    monkeypatch.setattr("pneumojax.evaluation.evaluate.PatientBootstrap", lambda ids: PatientBootstrap(ids, 40))
    before, after = open_run(workdir), open_run(workdir, test_time_views=2)
    folder = workdir / "evaluation" / "test"
    evaluate(before, "test")
    (folder / "compared_with_b.json").write_text("{}")
    (folder / "audit").mkdir()
    (folder / "audit" / "blocks.png").write_text("a picture")
    load_or_choose_threshold(after, after.config.threshold)
    earlier, replace = read_files(folder), os.replace
    for write in (*tried, len(FILES) - 1):  # There is no confusion matrix for three classes, so the last one succeeds.
        writes = iter(range(100))

        def fail_once(*arguments, writes=writes, write=write):
            if next(writes) == write:
                raise OSError(28, "No space left on device")
            replace(*arguments)

        monkeypatch.setattr(os, "replace", fail_once)
        try:
            evaluate(after, "test")
            break
        except OSError:
            assert read_files(folder) == earlier, write
            assert [path.name for path in folder.parent.iterdir()] == ["test"]
    monkeypatch.undo()
    assert write == len(FILES) - 2
    now = read_files(folder)
    assert now.keys() == earlier.keys()
    assert now["predictions.csv"] != earlier["predictions.csv"]
    assert (now["compared_with_b.json"], now["blocks.png"]) == (b"{}", b"a picture")
    assert [path.name for path in folder.parent.iterdir()] == ["test"]


def test_an_evaluation_is_not_read_while_another_one_replaces_it(workdir):
    evaluate(open_run(workdir), "test")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        with replace_folder(workdir / "evaluation" / "test", ()):
            reading = threads.submit(prediction_files.read_predictions, workdir, "test")
            with pytest.raises(concurrent.futures.TimeoutError):
                reading.result(0.5)
        assert len(reading.result().labels) == len(read_csv(workdir, "test"))


def test_a_missing_test_split_is_said_with_its_reason(workdir, data_dir, tmp_path):
    other = edit_metadata(data_dir, tmp_path / "data", lambda metadata: metadata["fingerprints"].pop("test"))
    with pytest.raises(UserError, match="has no test split: its source .* had no folder of that name"):
        evaluate(open_run(workdir, data_dir=other), "test")
    assert not (workdir / "evaluation").exists()


@pytest.mark.slow
def test_the_leaky_protocol_chooses_on_test_trains_the_same_and_says_so(
    make_config, trained, workdir, tmp_path, caplog
):
    leaky = tmp_path / "leaky"
    with caplog.at_level("WARNING", "pneumojax"):
        fit(make_config(epochs=2, mixup_alpha=0.0, selection_split="test"), leaky)
    assert "leaky protocol" in caplog.text
    last = [open_run(one, "latest").variables for one in (leaky, trained["binary"])]
    for ours, theirs in zip(*map(jax.tree.leaves, last), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    run = open_run(leaky)
    test = load_split(run.config.data, "test")
    logits = run.predict(test.images)
    scores = 1 - compute_probabilities(logits)[:, 0]
    rows = [json.loads(line) for line in (leaky / "metrics.jsonl").read_text().splitlines()]
    aurocs = {row["step"]: row["val/auroc"] for row in rows if "val/auroc" in row}
    assert aurocs[run.step] == max(aurocs.values()) == pytest.approx(point_metrics.compute_auroc(test.subtypes, scores))
    stored = json.loads((leaky / "threshold.json").read_text())
    # The largest score that 95 % of the pneumonia images of test reach.
    ill = np.sort(scores[test.subtypes > 0])[::-1]
    assert stored["value"] == ill[int(np.ceil(0.95 * len(ill))) - 1]
    assert (stored["split"], stored["data_fingerprint"]) == ("test", test.fingerprint)
    fitted = json.loads((leaky / "calibration.json").read_text())
    assert fitted["split"] == "test"
    expected = fit_calibration(test.labels("binary"), compute_probabilities(logits))
    assert fitted.get("reason") if expected is None else fitted["temperature"] == expected[0]
    assert json.loads((leaky / "config.json").read_text())["config"]["selection_split"] == "test"

    warning = "LEAKY: epoch, threshold and calibration were chosen on the evaluated split"
    assert warning in " ".join(describe_warnings(evaluate(run, "test")))
    assert warning in (leaky / "evaluation" / "test" / "report.html").read_text()
    assert "LEAKY" not in " ".join(describe_warnings(evaluate(run, "validation")))
    with pytest.raises(UserError, match="leaky has selection_split=test|binary has selection_split=validation"):
        open_ensemble([leaky, workdir])


def test_operating_points_come_from_validation_and_keep_their_target_there(make_run):
    run = open_run(make_run())
    results = evaluate(run, "validation")
    assert results == read_results(run.workdir)
    for target in (0.95, 0.975, 0.99):
        point = results["operating_points"][f"target_sensitivity_{target:g}"]
        assert point["metrics"]["sensitivity"]["value"] >= target
        own = results["metrics"][f"specificity_at_sensitivity_{target:g}"]
        assert point["metrics"]["specificity"]["value"] == own["value"]
    on_test = evaluate(run, "test")["operating_points"]
    assert {name: point["threshold"] for name, point in on_test.items()} == {
        name: point["threshold"] for name, point in results["operating_points"].items()
    }


def test_stated_prevalence_gives_predictive_values_and_scores_there(make_run):
    run = open_run(make_run())
    assert evaluate(run, "validation")["at_prevalence"] is None
    assert "score_at_prevalence" not in read_csv(run.workdir)[0]
    results = evaluate(run, "validation", dataclasses.replace(run.config.threshold, prevalence=0.2))
    rates = {name: results["metrics"][name]["value"] for name in ("sensitivity", "specificity")}
    hits, alarms = 0.2 * rates["sensitivity"], 0.8 * (1 - rates["specificity"])
    assert results["at_prevalence"]["ppv"]["value"] == pytest.approx(hits / (hits + alarms))
    old = results["calibration"]["prevalence"]
    for row in read_csv(run.workdir):
        calibrated = float(row["calibrated_score"])
        odds = calibrated / (1 - calibrated) * (0.2 / 0.8) / (old / (1 - old))
        assert float(row["score_at_prevalence"]) == pytest.approx(odds / (1 + odds))


def test_files_of_an_evaluation(make_run):
    run = open_run(make_run())
    evaluate(run, "validation")
    names = {path.name for path in (run.workdir / "evaluation" / "validation").iterdir()}
    assert {"metrics.json", "predictions.csv", "curves.json", "reliability.png", "predictive_values.png"} <= names
    assert "decision_curve.png" in names
    curves = json.loads((run.workdir / "evaluation" / "validation" / "curves.json").read_text())
    assert {"roc", "precision_recall", "reliability", "predictive_values", "decision_curve"} <= set(curves)


def test_subgroups_are_of_the_files_as_they_were_found(make_run):
    run = open_run(make_run(task="three_class"))
    split = load_split(run.config.data, "validation")
    builder = kermany_pneumonia.dataset_dir("phantom", run.config.data.data_dir)
    source = tfds.builder_from_directory(builder).as_data_source("validation")
    for i, example in enumerate(source):
        assert split.filenames[i] == example["filename"].decode()
        assert (split.heights[i], split.widths[i]) == example["image"].shape[:2]
        assert split.channels[i] == example["channels"]
        assert split.duplicate_of[i] == example["duplicate_of"].decode()
    results = evaluate(run, "validation")["subgroups"]
    assert results["grey"]["images"] + results["rgb"]["images"] == len(split)
    assert results["bacterial_against_viral"]["images"] == (split.subtypes > 0).sum()
