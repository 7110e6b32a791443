"""Tests of the training of a gate: what it flags, when the stored one is used, and that it holds no image."""

import dataclasses
import shutil

import numpy as np
import pytest

from pneumojax.errors import UserError
from pneumojax.evaluation import gate_training
from pneumojax.evaluation.classifier import make_classifier
from pneumojax.evaluation.defects import make_unsuitable, vary
from pneumojax.evaluation.ensemble import open_predictor
from pneumojax.evaluation.gate_training import extract_features, load_or_train_gate, load_squares
from pneumojax.evaluation.run import open_run


@pytest.fixture(autouse=True, scope="module")
def few_iterations():
    """The few images of these tests need no converged regression."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_training, "MAX_ITERATIONS", 40)
        yield


@pytest.fixture(scope="module")
def trained(make_run, tmp_path_factory):
    """A run, its classifier and its gate."""
    run = open_run(shutil.copytree(make_run(image_px=32), tmp_path_factory.mktemp("gate") / "run"))
    classifier = make_classifier(run, 16)
    return run, classifier, load_or_train_gate(run, classifier)


def find_flags(run, classifier, gate, change=lambda images: images, split="validation"):
    squares = {square: change(images) for square, images in load_squares(run, classifier, split).items()}
    return gate.check(squares[classifier.squares[0]], extract_features(classifier, squares))


def test_images_with_defects_are_flagged_and_named_and_few_others_are(trained):
    assert np.mean([bool(flags) for flags in find_flags(*trained, split="train")]) < 0.03
    assert np.mean([bool(flags) for flags in find_flags(*trained, lambda images: vary(images, 0), "train")]) < 0.08
    assert np.mean([bool(flags) for flags in find_flags(*trained)]) < 0.2
    for name in ("rotated_180", "inverted", "collimated", "blank", "text"):
        flags = find_flags(*trained, lambda images, name=name: make_unsuitable(name, images, 1))
        assert np.mean([bool(one) for one in flags]) > 0.9, name
        assert np.mean([name in one for one in flags]) > 0.8, name


def test_a_classifier_with_a_gate_gives_the_same_scores_and_flags(trained):
    run, classifier, gate = trained
    (square,) = classifier.squares
    images = 255 - load_squares(run, classifier, "validation")[square][:8]
    plain = classifier.predict({square: images})
    flagged = dataclasses.replace(classifier, gate=gate).predict({square: images})
    assert [row | {"flags": []} for row in flagged] == plain
    assert all("inverted" in row["flags"] for row in flagged)


@pytest.mark.slow
def test_the_stored_gate_needs_no_data_and_another_model_trains_its_own(trained, monkeypatch):
    run, classifier, gate = trained
    with monkeypatch.context() as patch:
        patch.setattr(gate_training, "load_split", lambda *_: pytest.fail("needs the data set"))
        again = load_or_train_gate(run, classifier)
    for name, value in dataclasses.asdict(gate).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    other = dataclasses.replace(classifier, model="another")
    away = open_run(run.workdir, data_dir=str(run.workdir / "nowhere"))
    away = dataclasses.replace(
        away, config=dataclasses.replace(away.config, data=dataclasses.replace(away.config.data, dataset="kermany"))
    )
    with pytest.raises(UserError, match=r"has no gate for this model.*is not prepared.*--nogate"):
        load_or_train_gate(away, other)
    trained_again = load_or_train_gate(run, other)
    assert trained_again.model == "another"
    np.testing.assert_array_equal(trained_again.weights, gate.weights)
    np.testing.assert_array_equal(trained_again.components, gate.components)


@pytest.mark.slow
def test_the_features_of_all_members_of_an_ensemble_are_used(make_run, tmp_path):
    folders = [shutil.copytree(make_run(**fields), tmp_path / name) for name, fields in
               (("a", {}), ("b", {"image_px": 24, "seed": 1}))]  # fmt: skip
    ensemble = open_predictor(folders)
    classifier = make_classifier(ensemble, 16)
    gate = load_or_train_gate(ensemble, classifier)
    assert (ensemble.workdir / "gate.npz").exists()
    assert gate.components.shape[1] == gate.weights.shape[1] + 2 * 16
    squares = load_squares(ensemble, classifier, "validation")
    assert extract_features(classifier, squares).shape == (len(squares[classifier.squares[0]]), 32)


def test_a_gate_holds_fewer_numbers_than_the_images(trained):
    _, _, gate = trained
    numbers = sum(np.size(value) for value in dataclasses.asdict(gate).values())
    assert numbers < 1e5


def test_a_gate_is_not_trained_on_another_data_set(trained):
    run, classifier, _ = trained
    info = run.info | {"data": run.info["data"] | {"fingerprints": {"train": "another"}}}
    other = dataclasses.replace(run, info=info)
    with pytest.raises(
        UserError, match=r"cannot be trained here \(the data set is not the one on which it was trained"
    ):
        load_or_train_gate(other, dataclasses.replace(classifier, model="other data"))
