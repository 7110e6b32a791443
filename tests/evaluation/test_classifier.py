"""Tests of the classifier: it needs no data, ensembles, and the fingerprint."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from pneumojax.errors import UserError
from pneumojax.evaluation.classifier import Square, make_classifier
from pneumojax.evaluation.ensemble import Ensemble, open_ensemble, open_predictor
from pneumojax.evaluation.operating_point import load_or_choose_threshold
from pneumojax.evaluation.run import open_run


def make_images(image_px, number=5):
    return np.random.default_rng(0).integers(0, 256, (number, image_px, image_px), np.uint8)


@pytest.mark.slow
def test_a_run_predicts_where_its_data_set_is_missing(make_run, tmp_path, monkeypatch):
    workdir = shutil.copytree(make_run(), tmp_path / "run")
    images = {Square(16, "squeeze"): make_images(16)}
    expected = make_classifier(open_run(workdir), 8)
    with monkeypatch.context() as patch:
        for name in ("pneumojax.evaluation.run.load_split", "pneumojax.evaluation.operating_point.ensure_prepared"):
            patch.setattr(name, lambda *_: pytest.fail("needs the data set"))
        away = make_classifier(open_run(workdir, data_dir=str(tmp_path / "nowhere")), 8)
        assert (away.model, away.threshold) == (expected.model, expected.threshold)
        assert away.predict(images) == expected.predict(images)
    (workdir / "threshold.json").unlink()
    again = make_classifier(open_run(workdir), 8)
    assert again.model == expected.model
    assert again.threshold | {"date": None} == expected.threshold | {"date": None}


def test_the_stored_threshold_is_used_whatever_its_rule(make_run, tmp_path):
    run = open_run(shutil.copytree(make_run(), tmp_path / "run"))
    default = make_classifier(run, 8)
    rules = dataclasses.replace(run.config.threshold, threshold_rule="fixed", fixed_threshold=0.25)
    load_or_choose_threshold(run, rules)
    fixed = make_classifier(run, 8)
    assert fixed.threshold["value"] == 0.25
    assert fixed.model != default.model
    path = run.workdir / "threshold.json"
    old = json.loads(path.read_text())
    del old["uncertain"]  # As stored before the uncertain band existed.
    path.write_text(json.dumps(old))
    assert make_classifier(run, 8).threshold["uncertain"] == default.threshold["uncertain"]


def test_the_model_is_named_by_its_step_and_by_all_that_determines_a_prediction(make_run):
    run = open_run(make_run())
    model = make_classifier(run, 8).model
    assert model.startswith(f"{run.step}-") and model == make_classifier(run, 64).model
    others = [
        open_run(make_run(seed=1)),
        open_run(run.workdir, test_time_views=None, checkpoint="best"),
        dataclasses.replace(run, variables={**run.variables, "batch_stats": {"changed": np.ones(1)}}),
    ]
    assert [make_classifier(other, 8).model == model for other in (others[0], others[1])] == [False, True]
    from pneumojax.evaluation.classifier import _fingerprint

    assert _fingerprint(others[2], []) != _fingerprint(run, [])


@pytest.mark.slow
def test_an_ensemble_predicts_as_its_evaluation_does_from_squares_of_two_sizes(make_run, tmp_path):
    folders = [shutil.copytree(make_run(**fields), tmp_path / name) for name, fields in
               (("a", {}), ("b", {"image_px": 24, "seed": 1}))]  # fmt: skip
    ensemble = open_predictor(folders)
    assert isinstance(ensemble, Ensemble)
    classifier = make_classifier(ensemble, 8)
    assert classifier.squares == [Square(16, "squeeze"), Square(24, "squeeze")]
    _, expected = ensemble.score("test")
    splits = [run.score("test")[0] for run in ensemble.members]
    rows = []
    for start in range(0, len(splits[0]), 8):
        images = [split.images[start : start + 8] for split in splits]
        rows += classifier.predict(dict(zip(classifier.squares, images, strict=True)))
    np.testing.assert_allclose([row["score"] for row in rows], 1 - expected[:, 0], atol=1e-6)
    assert classifier.model.startswith("+".join(str(run.step) for run in ensemble.members) + "-")


def test_one_member_of_an_ensemble_still_is_calibrated(make_run, tmp_path):
    workdir = shutil.copytree(make_run(), tmp_path / "a")
    ensemble = open_ensemble([workdir])
    classifier = make_classifier(ensemble, 8)
    split, expected = ensemble.score("validation")
    rows = classifier.predict({Square(16, "squeeze"): split.images[:8]})
    np.testing.assert_allclose([row["score"] for row in rows], 1 - expected[:8, 0], atol=1e-6)


def test_no_workdir_is_a_sentence():
    with pytest.raises(UserError, match="--workdir is empty"):
        open_predictor([])
