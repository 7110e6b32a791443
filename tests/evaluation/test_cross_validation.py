"""Tests of cross-validation: each image and patient is in one fold, and predictions are those of the fold's own run."""

import csv
import dataclasses
import functools
import json

import numpy as np
import pytest
from forked import run_script
from sklearn.metrics import accuracy_score, roc_auc_score

from pneumojax.checkpoint import read_run
from pneumojax.data.dataset import ensure_prepared, load_split, load_training_images
from pneumojax.errors import UserError
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.prediction_files import check_same_images, read_predictions
from pneumojax.evaluation.recalibration import apply_calibration
from pneumojax.evaluation.run import open_run

PARTS = ("train", "validation", "test")
TINY = ("--image_px=32", "--model=mlp", "--mlp_widths=8", "--batch_size=16", "--chunk_steps=2", "--epochs=1")


def set_fold(config, folds, fold):
    return dataclasses.replace(config.data, folds=folds, fold=fold)


def find_persons(split):
    """Returns series and number: "person/12" of bacteria and of virus may be one child."""
    return {tuple(patient.split("/")[-2:]) for patient in split.patient_ids}


@pytest.mark.parametrize("folds", [2, 5])
def test_each_image_is_held_out_once_and_no_person_is_on_two_sides(make_config, folds):
    whole = load_training_images(make_config().data)
    held_out, inner = [], []
    for fold in range(folds):
        splits = [load_split(set_fold(make_config(), folds, fold), name) for name in PARTS]
        persons = [find_persons(split) for split in splits]
        assert sum(map(len, persons)) == len(set.union(*persons)) == len(find_persons(whole))
        assert sorted(np.concatenate([split.filenames for split in splits])) == sorted(whole.filenames)
        assert [split.name for split in splits] == list(PARTS)
        held_out += splits[2].filenames.tolist()
        inner.append(frozenset(splits[1].filenames))
    assert sorted(held_out) == sorted(whole.filenames)
    assert len(set(inner)) == folds


def test_a_fold_holds_the_images_of_its_rows(make_config):
    config = make_config()
    whole, part = load_training_images(config.data), load_split(set_fold(config, 2, 1), "validation")
    rows = {filename: i for i, filename in enumerate(whole.filenames)}
    for i, filename in enumerate(part.filenames):
        np.testing.assert_array_equal(part.images[i], whole.images[rows[filename]])
        assert part.subtypes[i] == whole.subtypes[rows[filename]]
        assert part.patient_ids[i] == whole.patient_ids[rows[filename]]


def test_fingerprints_tell_folds_apart(make_config):
    records = [ensure_prepared(set_fold(make_config(), folds, fold)) for folds, fold in ((2, 0), (2, 1), (3, 0))]
    for record in records:
        counts = {name: sum(of_split.values()) for name, of_split in record["counts"].items()}
        assert sum(counts.values()) == len(load_training_images(make_config().data))
    prints = [value for record in records for value in (record["fingerprint"], *record["fingerprints"].values())]
    assert len(set(prints)) == len(prints) == 12
    part = load_split(set_fold(make_config(), 3, 0), "train")
    assert part.fingerprint == records[2]["fingerprints"]["train"]
    share = dataclasses.replace(set_fold(make_config(), 3, 0), train_share=0.5)
    assert ensure_prepared(share)["fingerprints"] == records[2]["fingerprints"]
    assert len(load_split(share, "train")) < len(part)


def test_more_folds_than_persons_are_told(make_config):
    with pytest.raises(
        UserError, match="folds=1000 is too many: a test split of this data set would have one class only"
    ):
        load_split(set_fold(make_config(), 1000, 500), "test")


@pytest.fixture(scope="module")
def cross_validate(processes, tmp_path_factory):
    """`cross_validate(...)`: runs the script on as many devices as the tests, so that its numbers are bitwise equal."""
    folder = tmp_path_factory.mktemp("printed")
    return functools.partial(run_script, processes, folder, "experiments/cross_validate.py", devices=8)


@pytest.fixture(scope="module")
def cross_validated(cross_validate, data_dir, tmp_path_factory):
    """Two folds, run by the script."""
    workdir = tmp_path_factory.mktemp("folds")
    done = cross_validate(f"--data_dir={data_dir}", f"--workdir={workdir}", "--folds=2", *TINY)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def read_csv(directory):
    with (directory / "predictions.csv").open(newline="") as file:
        return {row["filename"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_out_of_fold_predictions_are_those_of_the_run_that_never_saw_the_patient(cross_validated, data_dir):
    workdir, _ = cross_validated
    pooled = read_csv(workdir / "evaluation" / "out_of_fold")
    seen = []
    for fold in range(2):
        run = open_run(workdir / f"fold_{fold}", data_dir=str(data_dir))
        assert (run.config.data.folds, run.config.data.fold) == (2, fold)
        held_out = load_split(run.config.data, "test")
        probabilities = compute_probabilities(run.predict(held_out.images))
        chosen = {name: json.loads((run.workdir / f"{name}.json").read_text()) for name in ("threshold", "calibration")}
        calibrated = apply_calibration(
            probabilities, *(chosen["calibration"][name] for name in ("temperature", "biases"))
        )
        for i, filename in enumerate(held_out.filenames):
            row, score = pooled[filename], 1 - probabilities[i, 0]
            assert float(row["probability_NORMAL"]) == probabilities[i, 0]
            assert float(row["calibrated_score"]) == 1 - calibrated[i, 0]
            assert float(row["threshold"]) == chosen["threshold"]["value"]
            assert row["decision"] == ("PNEUMONIA" if score >= chosen["threshold"]["value"] else "NORMAL")
            assert row["patient_id"] == held_out.patient_ids[i]
        assert chosen["threshold"]["data_fingerprint"] == load_split(run.config.data, "validation").fingerprint
        seen += held_out.filenames.tolist()
    assert sorted(seen) == sorted(pooled)


@pytest.mark.slow
def test_the_figures_of_all_folds_are_those_of_their_predictions(cross_validated):
    workdir, printed = cross_validated
    directory = workdir / "evaluation" / "out_of_fold"
    results, rows = json.loads((directory / "metrics.json").read_text()), [*read_csv(directory).values()]
    positive = [row["label"] == "PNEUMONIA" for row in rows]
    decided = [row["decision"] == "PNEUMONIA" for row in rows]
    metrics = results["metrics"]
    np.testing.assert_allclose(
        metrics["auroc"]["value"], roc_auc_score(positive, [float(row["score"]) for row in rows])
    )
    np.testing.assert_allclose(metrics["accuracy"]["value"], accuracy_score(positive, decided))
    assert results["threshold"]["value"] == sorted({float(row["threshold"]) for row in rows})
    assert results["run"]["trained_on_this_data"]
    assert {path.name for path in directory.iterdir()} >= {"curves.json", "roc.png", "reliability.png"}

    for name, spread in results["over_folds"].items():
        values = [fold["metrics"][name] for fold in results["folds"]]
        np.testing.assert_allclose(
            (spread["mean"], spread["standard_deviation"]), (np.mean(values), np.std(values, ddof=1))
        )
    assert f"{metrics['auroc']['value']:.4f} (" in printed
    assert f"{results['over_folds']['auroc']['mean']:.4f} ± " in printed


@pytest.mark.slow
def test_out_of_fold_predictions_can_be_compared(cross_validated):
    workdir, _ = cross_validated
    predictions = read_predictions(workdir, "out_of_fold")
    check_same_images(predictions, predictions)
    decided = (1 - predictions.probabilities[:, 0] >= predictions.threshold).tolist()
    rows = read_csv(workdir / "evaluation" / "out_of_fold")
    assert decided == [rows[filename]["decision"] == "PNEUMONIA" for filename in predictions.filenames]


@pytest.mark.slow
def test_a_run_records_the_splits_of_its_fold(cross_validated):
    workdir, _ = cross_validated
    runs = [read_run(workdir / f"fold_{fold}" / "config.json") for fold in range(2)]
    fingerprints = [run["data"]["fingerprints"] for run in runs]
    assert all(set(one) == set(PARTS) for one in fingerprints)
    assert not set(fingerprints[0].values()) & set(fingerprints[1].values())


@pytest.mark.slow
@pytest.mark.slow
def test_the_same_command_trains_nothing_again_and_other_folds_are_refused(cross_validated, cross_validate, data_dir):
    workdir, printed = cross_validated
    before = (workdir / "fold_0" / "metrics.jsonl").read_text()
    other = cross_validate(f"--data_dir={data_dir}", f"--workdir={workdir}", "--folds=3", *TINY)
    assert other.returncode == 1
    assert "folds was 2, is 3" in other.stderr
    assert "Traceback" not in other.stderr
    again = cross_validate(f"--data_dir={data_dir}", f"--workdir={workdir}", "--folds=2", *TINY)
    assert again.stdout == printed
    assert (workdir / "fold_0" / "metrics.jsonl").read_text() == before
