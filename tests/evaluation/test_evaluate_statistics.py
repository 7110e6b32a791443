"""Tests of the statistics in the files of an evaluation."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from forked import run_script
from sklearn import metrics as oracle

from experiments import compare
from pneumojax.config import config_from_dict
from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import point_metrics, thresholds
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.calibration import apply_temperature, compute_calibration, fit_temperature
from pneumojax.evaluation.ensemble import open_ensemble
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration
from pneumojax.evaluation.prediction_files import check_same_images, read_predictions
from pneumojax.evaluation.run import open_run
from pneumojax.training.fit import fit
from tfds_builder import kermany_pneumonia

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def make_run(data_dir, tmp_path_factory):
    """`make_run(**fields)`: trains a small perceptron on the phantom set and returns its workdir."""
    made = {}

    def make(**fields):
        key = json.dumps(fields, sort_keys=True)
        if key not in made:
            workdir = tmp_path_factory.mktemp("runs") / f"run{len(made)}"
            small = {"data_dir": str(data_dir), "image_px": 16, "model": "mlp", "mlp_widths": [16], "epochs": 2}
            small |= {"rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0}  # Their compilation would take longest.
            fit(config_from_dict(small | fields), workdir, report=lambda *_: None)
            made[key] = workdir
        return made[key]

    return make


def read_results(workdir, split="validation"):
    return json.loads((pathlib.Path(workdir) / "evaluation" / split / "metrics.json").read_text())


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


def read_csv(workdir, split="validation"):
    with (pathlib.Path(workdir) / "evaluation" / split / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", ["binary", "three_class"])
def test_calibration_is_fitted_once_on_validation_and_mends_it(make_run, task):
    run = open_run(make_run(task=task))
    stored = json.loads((run.workdir / "calibration.json").read_text())
    results = evaluate(run, "validation")
    validation = load_split(run.config.data, "validation")
    rows = read_csv(run.workdir)
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in run.info["class_names"]] for row in rows])
    assert stored["temperature"] == fit_temperature(validation.labels(task), probabilities)
    assert stored["prevalence"] == np.mean(validation.subtypes > 0)
    calibrated = apply_temperature(probabilities, stored["temperature"])
    assert [float(row["calibrated_score"]) for row in rows] == point_metrics.compute_binary_scores(calibrated).tolist()
    assert oracle.log_loss(validation.labels(task), calibrated) <= oracle.log_loss(
        validation.labels(task), probabilities
    )
    expected = compute_calibration(validation.subtypes, calibrated, PatientBootstrap(validation.patient_ids))
    assert results["calibration"] == stored | {"before": results["calibration"]["before"], "after": expected}
    assert evaluate(run, "test")["calibration"]["temperature"] == stored["temperature"]


def test_lost_or_old_calibration_is_fitted_again_and_a_damaged_one_named(make_run):
    run = open_run(make_run())
    path = run.workdir / "calibration.json"
    stored = json.loads(path.read_text())
    for content in (None, stored | {"temperature": 9.0, "checkpoint_step": run.step + 1}):
        path.unlink() if content is None else path.write_text(json.dumps(content))
        assert load_or_fit_calibration(run)["temperature"] == stored["temperature"]
        assert json.loads(path.read_text())["temperature"] == stored["temperature"]
    path.write_text('{"temperature": "warm"}')
    with pytest.raises(UserError, match=r"calibration\.json is damaged"):
        load_or_fit_calibration(run)
    path.write_text(json.dumps(stored))


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


def test_runs_of_two_tasks_are_compared_on_pneumonia(make_run):
    runs = [open_run(make_run(task=task)) for task in ("binary", "three_class")]
    values = [evaluate(run, "validation")["metrics"] for run in runs]
    a, b = (read_predictions(run.workdir, "validation") for run in runs)
    check_same_images(a, b)
    results = compare.compare(a.to_binary(), b.to_binary())
    # The macro means are over two classes in one task and over three in the other.
    for name in (name for name in values[0] if not name.endswith("_macro")):
        assert results["metrics"][name]["a"] == pytest.approx(values[0][name]["value"])
        assert results["metrics"][name]["b"] == pytest.approx(values[1][name]["value"])


def test_ensemble_is_the_mean_of_calibrated_probabilities(make_run):
    workdirs = [
        make_run(seed=seed, epochs=epochs, image_px=px) for seed, epochs, px in ((0, 2, 16), (1, 3, 16), (2, 2, 24))
    ]
    ensemble = open_ensemble(workdirs)
    results = {split: evaluate(ensemble, split) for split in ("validation", "test")}
    for split in results:
        expected = []
        for workdir in workdirs:
            evaluate(open_run(workdir), split)
            temperature = json.loads((workdir / "calibration.json").read_text())["temperature"]
            scores = np.array([float(row["score"]) for row in read_csv(workdir, split)])
            expected.append(1 / (1 + np.exp(-np.log(scores / (1 - scores)) / temperature)))
        scores = np.array([float(row["score"]) for row in read_csv(ensemble.workdir, split)])
        np.testing.assert_allclose(scores, np.mean(expected, axis=0), atol=1e-6)
        labels = [row["label"] == "PNEUMONIA" for row in read_csv(ensemble.workdir, split)]
        assert results[split]["metrics"]["auroc"]["value"] == pytest.approx(oracle.roc_auc_score(labels, scores))
        if split == "validation":
            chosen = thresholds.choose_threshold(labels, scores, "target_sensitivity", target_sensitivity=0.95)
    assert results["test"]["threshold"]["value"] == chosen
    assert results["test"]["calibration"]["date"] == results["validation"]["calibration"]["date"]
    assert ensemble.workdir.parent == workdirs[0].parent
    report = (ensemble.workdir / "evaluation" / "test" / "report.html").read_text()
    assert "An ensemble of 3 networks scored" in report
    assert all(f'<th scope="col">{workdir}</th>' in report for workdir in workdirs)
    assert [member["step"] for member in results["test"]["run"]["members"]] == [open_run(one).step for one in workdirs]
    assert open_ensemble(workdirs[::-1]).workdir == ensemble.workdir
    members = tuple(dataclasses.replace(run, info=run.info | {"created": "later"}) for run in ensemble.members)
    path = ensemble.workdir / "threshold.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 0.123}))
    assert load_or_choose_threshold(ensemble, ensemble.config.threshold)["value"] == 0.123
    retrained = dataclasses.replace(ensemble, members=members)
    assert load_or_choose_threshold(retrained, ensemble.config.threshold)["value"] == chosen


def test_ensembles_that_do_not_go_together(make_run, tmp_path):
    binary = make_run()
    with pytest.raises(UserError, match="different classes"):
        open_ensemble([binary, make_run(task="three_class")])
    with pytest.raises(UserError, match="named twice"):
        open_ensemble([binary, binary])
    kermany_pneumonia.prepare("phantom", tmp_path, phantom_images=100)
    ensemble = open_ensemble([binary, make_run(seed=1, epochs=3)])
    moved = dataclasses.replace(ensemble.config.data, data_dir=str(tmp_path))
    other = dataclasses.replace(ensemble.members[1], config=dataclasses.replace(ensemble.config, data=moved))
    with pytest.raises(UserError, match="different validation images"):
        evaluate(dataclasses.replace(ensemble, members=(ensemble.members[0], other)), "validation")


def test_script_scores_an_ensemble_and_names_its_folder(make_run, processes, tmp_path):
    workdirs = [make_run(), make_run(seed=1, epochs=3)]
    arguments = (f"--workdir={workdirs[0]},{workdirs[1]}", "--split=test", "--prevalence=0.3")
    done = run_script(processes, tmp_path, "experiments/evaluate.py", *arguments)
    assert done.returncode == 0, done.stderr
    folder = workdirs[0].parent.resolve() / f"{workdirs[0].name}+{workdirs[1].name}"
    results = json.loads((folder / "evaluation" / "test" / "metrics.json").read_text())
    for part in (
        f"Written to {folder}",
        f"Read {folder / 'evaluation' / 'test' / 'report.html'}",
        "for 2 runs together",
        f"specificity_at_sensitivity_0.95    {results['metrics']['specificity_at_sensitivity_0.95']['value']:.4f}",
        f"at temperature {results['calibration']['temperature']:.3f}",
        f"PPV {results['at_prevalence']['ppv']['value']:.3f}",
        "bacterial_against_viral",
    ):
        assert part in done.stdout


def test_threshold_follows_the_rule_that_is_asked_for(make_run):
    run = open_run(make_run())
    own = run.config.threshold
    rules = [dataclasses.replace(own, threshold_rule="cost_ratio", cost_ratio=ratio) for ratio in (0.2, 50.0)]
    cheap, dear = (evaluate(run, "validation", rule)["threshold"] for rule in rules)
    assert dear["value"] < cheap["value"]
    assert (dear["rule"], dear["cost_ratio"], dear["prevalence"]) == ("cost_ratio", 50.0, None)
    rare = dataclasses.replace(own, threshold_rule="cost_ratio", cost_ratio=50.0, prevalence=0.001)
    assert evaluate(run, "validation", rare)["threshold"]["value"] > dear["value"]
    assert evaluate(run, "validation", own)["threshold"]["rule"] == "target_sensitivity"
