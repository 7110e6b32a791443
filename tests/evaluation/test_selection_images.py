"""The images on which the threshold and the calibration are chosen: as they are, or with swapped aspects as well."""

import dataclasses
import json

import numpy as np
import pytest

from pneumojax.errors import UserError
from pneumojax.evaluation import thresholds
from pneumojax.evaluation.aspect import swap_aspect
from pneumojax.evaluation.ensemble import open_ensemble
from pneumojax.evaluation.operating_point import load_or_choose_threshold, load_or_fit_calibration
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.recalibration import fit_calibration
from pneumojax.evaluation.run import open_run
from pneumojax.training.fit import fit


@pytest.fixture(scope="module")
def shifted(make_config, tmp_path_factory):
    """A perceptron whose threshold is chosen on both kinds of images; not to be changed."""
    workdir = tmp_path_factory.mktemp("shifted") / "run"
    fit(make_config(model="mlp", epochs=2, mixup_alpha=0.0, selection_images="shift"), workdir)
    return workdir


def test_threshold_and_calibration_are_those_of_both_kinds_of_images(shifted):
    run = open_run(shifted)
    split, plain = run.score("validation")
    swapped = compute_probabilities(run.predict(swap_aspect(split.images, split.labels("binary") > 0)))
    both, labels = np.concatenate([plain, swapped]), np.tile(split.labels("binary"), 2)
    stored = json.loads((shifted / "threshold.json").read_text())
    expected = thresholds.choose_threshold(labels, 1 - both[:, 0], "target_sensitivity", target_sensitivity=0.95)
    assert stored["value"] == pytest.approx(expected, abs=1e-12)
    assert stored["selection_images"] == "shift" and stored["split"] == "validation"
    fitted = json.loads((shifted / "calibration.json").read_text())
    temperature, biases = fit_calibration(labels, both)
    assert fitted["temperature"] == pytest.approx(temperature, rel=1e-9)
    assert fitted["biases"] == pytest.approx(biases.tolist(), rel=1e-9)


def test_a_threshold_of_other_images_is_chosen_again(shifted, tmp_path):
    run = dataclasses.replace(open_run(shifted), workdir=tmp_path)
    stored = load_or_choose_threshold(run, run.config.threshold)
    plain = dataclasses.replace(
        run, config=dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, selection_images="plain"))
    )
    other = load_or_choose_threshold(plain, run.config.threshold)
    assert other["selection_images"] == "plain"
    assert load_or_fit_calibration(plain)["selection_images"] == "plain"
    assert load_or_choose_threshold(run, run.config.threshold)["value"] == stored["value"]


def test_an_ensemble_needs_one_choice_of_images(shifted, make_config, tmp_path):
    fit(make_config(model="mlp", epochs=1, mixup_alpha=0.0), tmp_path / "plain")
    with pytest.raises(UserError, match="The runs of an ensemble must have the same"):
        open_ensemble([shifted, tmp_path / "plain"])
