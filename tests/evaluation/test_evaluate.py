"""Tests of the evaluation: it is exact, uses a threshold from validation, and its files are consistent."""

import base64
import concurrent.futures
import csv
import dataclasses
import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from pneumojax.config import ThresholdConfig
from pneumojax.data.augment import make_augment
from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import metrics, point_metrics, prediction_files, thresholds
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.calibration import fit_temperature
from pneumojax.evaluation.ensemble import open_ensemble
from pneumojax.evaluation.evaluate import FILES, evaluate
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import open_run
from pneumojax.files import replace_folder
from pneumojax.models import make_model
from pneumojax.reporting.caveats import describe_warnings
from pneumojax.sharding import AXIS
from pneumojax.training.fit import fit
from tfds_builder import kermany_pneumonia

BINARY = {"auroc", "auprc", "accuracy", "sensitivity", "specificity", "precision", "f1", "npv", "balanced_accuracy"}
BINARY |= {f"specificity_at_sensitivity_{target}" for target in ("0.95", "0.975", "0.99")}
BINARY |= {"precision_macro", "f1_macro"}


@pytest.fixture(scope="module")
def trained(make_config, tmp_path_factory):
    """Workdirs of a run for each task. Tests must not change them."""
    workdirs = {}
    for task in ("binary", "three_class"):
        workdirs[task] = tmp_path_factory.mktemp(task)
        fit(make_config(task=task, epochs=2, mixup_alpha=0.0), workdirs[task])
    return workdirs


@pytest.fixture
def workdir(trained, tmp_path):
    return shutil.copytree(trained["binary"], tmp_path / "binary")


@pytest.fixture
def three_class_workdir(trained, tmp_path):
    return shutil.copytree(trained["three_class"], tmp_path / "three_class")


def read_results(workdir, split):
    return json.loads((workdir / "evaluation" / split / "metrics.json").read_text())


def read_predictions(workdir, split):
    with (workdir / "evaluation" / split / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def with_eval_batch_size(run, size):
    train = dataclasses.replace(run.config.train, eval_batch_size=size)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, train=train))


def edit_record(data_dir, copy, edit):
    """A copy of the data folder with changed metadata."""
    shutil.copytree(data_dir, copy)
    (path,) = copy.rglob("metadata.json")
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return str(copy)


@functools.partial(jax.jit, static_argnums=0)
def apply_network(config, variables, images):
    """Returns the network's outputs for images with pixels 0..1."""
    model = make_model(config.model, config.data.image_px, jax.random.key(0))
    nnx.update(model, variables["params"], variables["batch_stats"])
    return model((images[..., None] - 0.5) / 0.25, train=False)


@pytest.mark.parametrize(("task", "devices"), [("binary", 1), ("binary", 8), ("three_class", 8)])
def test_logits_are_those_of_the_network_for_any_batch_and_number_of_devices(trained, monkeypatch, task, devices):
    run = open_run(trained[task])
    images = load_split(run.config.data, "test").images
    plain = np.asarray(apply_network(run.config, run.variables, np.float32(images) / 255))
    if task == "binary":
        plain = np.concatenate([np.zeros_like(plain), plain], axis=1)
    monkeypatch.setattr("pneumojax.evaluation.run.make_mesh", lambda: Mesh(np.array(jax.devices()[:devices]), (AXIS,)))
    for size in (1, 7, 1000):
        logits = with_eval_batch_size(run, size).predict(images)
        np.testing.assert_allclose(logits, plain, atol=1e-5, err_msg=str(size))
    one = run.predict(images[3:4])
    np.testing.assert_allclose(one, plain[3:4], atol=1e-5)


def test_the_files_agree_with_each_other(workdir, draw_pictures):
    with draw_pictures():
        results = evaluate(open_run(workdir), "test")
    assert results == read_results(workdir, "test")
    statistics = {"metrics", "operating_points", "calibration", "at_prevalence", "subgroups"}
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

    rows = read_predictions(workdir, "test")
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


def test_three_classes_score_as_one_minus_normal_and_have_their_own_matrix(three_class_workdir):
    results = evaluate(open_run(three_class_workdir), "validation")
    rows = read_predictions(three_class_workdir, "validation")
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


def test_threshold_and_temperature_belong_to_the_data_set_that_they_were_chosen_on(workdir, other_data_dir):
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
            temperature = fit_temperature(validation.labels("binary"), probabilities)
            assert chosen["calibration"]["temperature"] == (temperature or 1.0)
            assert chosen["calibration"]["data_fingerprint"] == validation.fingerprint
            assert chosen["threshold"]["data_fingerprint"] == validation.fingerprint
            assert chosen["threshold"]["value"] == thresholds.choose_threshold(
                validation.labels("binary"),
                point_metrics.compute_binary_scores(probabilities),
                rules.threshold_rule,
                target_sensitivity=rules.target_sensitivity,
            )
        assert choose(ours, rules) == expected


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_of_an_evaluation_appear_together_or_not_at_all(workdir, monkeypatch):
    monkeypatch.setattr("pneumojax.evaluation.evaluate.PatientBootstrap", lambda ids: PatientBootstrap(ids, 40))
    before, after = open_run(workdir), open_run(workdir, test_time_views=2)
    folder = workdir / "evaluation" / "test"
    evaluate(before, "test")
    (folder / "compared_with_b.json").write_text("{}")
    (folder / "audit").mkdir()
    (folder / "audit" / "blocks.png").write_text("a picture")
    load_or_choose_threshold(after, after.config.threshold)
    earlier, replace = read_files(folder), os.replace
    for write in range(100):
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
    assert write == len(FILES) - 1  # There is no confusion matrix for three classes.
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
        assert len(reading.result().labels) == len(read_predictions(workdir, "test"))


def evaluate_parts(run, rules):
    return {"threshold": load_or_choose_threshold(run, rules), "calibration": load_or_fit_calibration(run)}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rule": "youden"}'])
def test_a_damaged_threshold_is_named(workdir, text):
    (workdir / "threshold.json").write_text(text)
    run = open_run(workdir)
    with pytest.raises(UserError, match=r"threshold\.json is damaged"):
        load_or_choose_threshold(run, run.config.threshold)


def test_a_missing_test_split_is_said_with_its_reason(workdir, data_dir, tmp_path):
    other = edit_record(data_dir, tmp_path / "data", lambda record: record["fingerprints"].pop("test"))
    with pytest.raises(UserError, match="has no test split: its source .* had no folder of that name"):
        evaluate(open_run(workdir, data_dir=other), "test")
    assert not (workdir / "evaluation").exists()


def test_a_run_scored_on_another_data_set_warns(workdir, data_dir, tmp_path, caplog):
    other = edit_record(data_dir, tmp_path / "data", lambda record: record["fingerprints"].update(train="0" * 64))
    with caplog.at_level("WARNING", "pneumojax"):
        results = evaluate(open_run(workdir, data_dir=other), "test")
    assert "the run was trained on another training split" in caplog.text
    assert results["run"]["trained_on_this_data"] is False


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 64, 64), np.uint8), "32 x 32 pixels, not on uint8 images of shape 64x64"),
        (np.zeros((2, 32, 32), np.float32), "not on float32 images of shape 32x32"),
        (np.zeros((2, 32, 32, 3), np.uint8), "of shape 32x32x3"),
        (np.zeros((0, 32, 32), np.uint8), "no images"),
    ],
)
def test_images_that_the_network_does_not_take_are_refused(trained, images, words):
    with pytest.raises(UserError, match=words):
        open_run(trained["binary"]).predict(images)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"cnn_widths": [4, 16]}, r"norm2/mean has shape \(8,\), the network needs \(16,\)"),
        ({"model": "mlp"}, "has shape"),
        ({"image_px": "32"}, "does not fit its config"),
        ({"layers": 3}, "unknown config fields: layers"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_a_checkpoint_with_an_edited_config_is_refused(workdir, edit, words):
    for path in (workdir / "checkpoints").glob("*/run/metadata"):
        run = json.loads(path.read_text())
        path.write_text(json.dumps(run | {"config": run["config"] | edit}))
    with pytest.raises(UserError, match=words):
        open_run(workdir)


def test_a_checkpoint_that_lacks_the_runs_record_is_refused(workdir):
    for path in (workdir / "checkpoints").glob("*/run/metadata"):
        path.write_text(json.dumps({"config": {}}))
    with pytest.raises(UserError, match="cannot be opened"):
        open_run(workdir)


def test_probabilities_of_sure_cases_stay_apart():
    sure = compute_probabilities(np.array([[0.0, 20.0], [0.0, 21.0], [-2000.0, 2000.0]]))
    assert sure[0, 1] < sure[1, 1] < 1
    np.testing.assert_allclose(sure.sum(1), 1)


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
    temperature = fit_temperature(test.labels("binary"), compute_probabilities(logits))
    assert fitted["temperature"] == temperature or fitted.get("reason")
    assert json.loads((leaky / "config.json").read_text())["config"]["selection_split"] == "test"

    warning = "LEAKY: epoch, threshold and temperature were chosen on the evaluated split"
    assert warning in " ".join(describe_warnings(evaluate(run, "test")))
    assert warning in (leaky / "evaluation" / "test" / "report.html").read_text()
    assert "LEAKY" not in " ".join(describe_warnings(evaluate(run, "validation")))
    with pytest.raises(UserError, match="leaky was chosen on test|binary was chosen on validation"):
        open_ensemble([leaky, workdir])


def test_views_are_averaged_the_same_for_any_batch_device_and_neighbour(trained, monkeypatch):
    run = open_run(trained["three_class"], test_time_views=3)
    erasing = dataclasses.replace(run.config.augment, erase_probability=1.0)  # Views must not change this.
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, augment=erasing))
    images = load_split(run.config.data, "test").images
    augment = jax.jit(make_augment(dataclasses.replace(erasing, erase_probability=0.0)))
    views = [np.float32(images) / 255]
    views += [augment(jnp.broadcast_to(key, len(images)), views[0]) for key in jax.random.split(jax.random.key(0), 2)]
    logits = [apply_network(run.config, run.variables, view) for view in views]
    expected = np.mean([compute_probabilities(one) for one in logits], axis=0)
    for devices, size, of in ((1, 7, slice(None)), (8, 1000, slice(None)), (8, 1, slice(3, 4))):
        mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
        monkeypatch.setattr("pneumojax.evaluation.run.make_mesh", lambda mesh=mesh: mesh)
        probabilities = compute_probabilities(with_eval_batch_size(run, size).predict(images[of]))
        np.testing.assert_allclose(probabilities, expected[of], atol=1e-5, err_msg=f"{devices} {size}")


def test_threshold_and_temperature_are_of_as_many_views_as_are_scored(workdir):
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


def test_views_without_augmentation_are_refused(make_config):
    still = dict.fromkeys(("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma"), 0.0)
    with pytest.raises(UserError, match="test_time_views=4 needs an augmentation range"):
        make_config(**still, crop_min_area=1.0, test_time_views=4)
    assert make_config(**still, crop_min_area=1.0, flip=True, test_time_views=4).augment.test_time_views == 4
