"""Tests of the stored threshold and calibration: for which scores they are valid, and when they are chosen again."""

import dataclasses
import json

import numpy as np
import pytest
from scored import read_csv
from sklearn import metrics as oracle

from pneumojax.config import ThresholdConfig
from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import point_metrics, thresholds
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.calibration import compute_calibration
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.recalibration import apply_calibration, fit_calibration
from pneumojax.evaluation.run import open_run
from tfds_builder import kermany_pneumonia


def test_another_rule_chooses_again_and_is_stored(workdir):
    run = open_run(workdir)
    first = load_or_choose_threshold(run, run.config.threshold)
    rules = ThresholdConfig(threshold_rule="youden")
    youden = evaluate(run, "test", rules)["threshold"]
    assert (first["rule"], youden["rule"], youden["split"]) == ("target_sensitivity", "youden", "validation")
    assert json.loads((workdir / "threshold.json").read_text()) == youden
    fixed = load_or_choose_threshold(run, ThresholdConfig(threshold_rule="fixed", fixed_threshold=0.3))
    assert (fixed["value"], fixed["split"]) == (0.3, None)
    assert load_or_choose_threshold(run, ThresholdConfig(threshold_rule="fixed", fixed_threshold=0.4))["value"] == 0.4
    lower = load_or_choose_threshold(run, ThresholdConfig(target_sensitivity=0.5))
    assert lower["target_sensitivity"] == 0.5
    assert lower["value"] >= first["value"]


def test_the_threshold_of_another_checkpoint_is_not_taken_over(workdir):
    run = open_run(workdir)
    stored = load_or_choose_threshold(run, run.config.threshold)
    other = load_or_choose_threshold(dataclasses.replace(run, step=run.step + 1), run.config.threshold)
    assert other["checkpoint_step"] == stored["checkpoint_step"] + 1


@pytest.fixture(scope="module")
def other_data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("other")
    kermany_pneumonia.prepare("phantom", path, phantom_images=100)
    return str(path)


def test_threshold_and_calibration_belong_to_the_data_set_that_they_were_chosen_on(workdir, other_data_dir):
    youden = ThresholdConfig(threshold_rule="youden")
    ours, theirs = open_run(workdir), open_run(workdir, data_dir=other_data_dir)

    def choose(run, rules):
        return {name: chosen | {"date": None} for name, chosen in evaluate_parts(run, rules).items()}

    for rules in (ours.config.threshold, youden):
        expected = choose(ours, rules)
        for run in (theirs, ours, theirs):
            chosen = choose(run, rules)
            validation = load_split(run.config.data, "validation")
            probabilities = compute_probabilities(run.predict(validation.images))
            temperature, biases = fit_calibration(validation.labels("binary"), probabilities) or (1.0, np.zeros(2))
            assert chosen["calibration"]["temperature"] == temperature
            assert chosen["calibration"]["biases"] == biases.tolist()
            assert chosen["calibration"]["data_fingerprint"] == validation.fingerprint
            assert chosen["threshold"]["data_fingerprint"] == validation.fingerprint
            assert chosen["threshold"]["value"] == thresholds.choose_threshold(
                validation.labels("binary"),
                point_metrics.compute_binary_scores(probabilities),
                rules.threshold_rule,
                target_sensitivity=rules.target_sensitivity,
            )
        assert choose(ours, rules) == expected


def evaluate_parts(run, rules):
    return {"threshold": load_or_choose_threshold(run, rules), "calibration": load_or_fit_calibration(run)}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rule": "youden"}'])
def test_a_damaged_threshold_is_named(workdir, text):
    (workdir / "threshold.json").write_text(text)
    run = open_run(workdir)
    with pytest.raises(UserError, match=r"threshold\.json is damaged"):
        load_or_choose_threshold(run, run.config.threshold)


def test_threshold_and_calibration_are_of_as_many_views_as_are_scored(workdir):
    plain = open_run(workdir)
    rules = plain.config.threshold
    first = load_or_choose_threshold(plain, rules), load_or_fit_calibration(plain)
    run = open_run(workdir, test_time_views=2)
    results = evaluate(run, "test")
    assert results["threshold"]["test_time_views"] == results["run"]["test_time_views"] == 2
    assert results["calibration"]["test_time_views"] == 2
    validation = load_split(run.config.data, "validation")
    scores = 1 - compute_probabilities(run.predict(validation.images))[:, 0]
    assert results["threshold"]["value"] == thresholds.choose_threshold(
        validation.subtypes, scores, rules.threshold_rule, target_sensitivity=0.95
    )
    again = load_or_choose_threshold(plain, rules), load_or_fit_calibration(plain)
    for old, new in zip(first, again, strict=True):
        assert old | {"date": None} == new | {"date": None}
    # A file that is older than test_time_views is for one view.
    old = {name: value for name, value in again[0].items() if name != "test_time_views"} | {"value": 0.123}
    (workdir / "threshold.json").write_text(json.dumps(old))
    assert load_or_choose_threshold(plain, rules)["value"] == 0.123
    assert load_or_choose_threshold(run, rules)["value"] == results["threshold"]["value"]


@pytest.mark.parametrize("task", ["binary", "three_class"])
def test_calibration_is_fitted_once_on_validation_and_mends_it(make_run, task):
    run = open_run(make_run(task=task))
    stored = json.loads((run.workdir / "calibration.json").read_text())
    results = evaluate(run, "validation")
    validation = load_split(run.config.data, "validation")
    rows = read_csv(run.workdir)
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in run.info["class_names"]] for row in rows])
    temperature, biases = fit_calibration(validation.labels(task), probabilities)
    assert (stored["temperature"], stored["biases"]) == (temperature, biases.tolist())
    assert stored["prevalence"] == np.mean(validation.subtypes > 0)
    calibrated = apply_calibration(probabilities, temperature, biases)
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
    older = {name: value for name, value in stored.items() if name != "biases"}
    for content in (None, stored | {"temperature": 9.0, "checkpoint_step": run.step + 1}, older):
        path.unlink() if content is None else path.write_text(json.dumps(content))
        assert load_or_fit_calibration(run)["temperature"] == stored["temperature"]
        assert json.loads(path.read_text())["temperature"] == stored["temperature"]
    path.write_text('{"temperature": "warm"}')
    with pytest.raises(UserError, match=r"calibration\.json is damaged"):
        load_or_fit_calibration(run)
    path.write_text(json.dumps(stored))


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
