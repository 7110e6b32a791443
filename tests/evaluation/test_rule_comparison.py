"""Rules for the threshold are chosen on the validation split of a fold, and scored on its held-out images."""

import numpy as np
import pytest
from sklearn import metrics as oracle

from pneumojax.data.dataset import load_split
from pneumojax.evaluation import rule_comparison
from pneumojax.evaluation.aspect import swap_aspect
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.recalibration import apply_calibration, fit_calibration
from pneumojax.evaluation.run import open_run
from pneumojax.evaluation.thresholds import choose_threshold
from pneumojax.training.fit import fit


@pytest.fixture(scope="module")
def runs(make_config, tmp_path_factory):
    """Two folds by series, of a small perceptron."""
    folder, opened = tmp_path_factory.mktemp("series"), []
    for fold in range(2):
        config = make_config(model="mlp", epochs=2, task="three_class", folds=2, folds_by="series", fold=fold)
        fit(config, folder / f"fold_{fold}")
        opened.append(open_run(folder / f"fold_{fold}"))
    return opened


@pytest.fixture(scope="module")
def results(runs):
    return rule_comparison.compare_rules(runs)


def score(run, split_name, swapped):
    split = load_split(run.config.data, split_name)
    images = swap_aspect(split.images, split.subtypes > 0) if swapped else split.images
    return split.subtypes, compute_probabilities(run.predict(images))


@pytest.mark.slow
@pytest.mark.parametrize("swapped", [False, True])
def test_a_rule_is_chosen_on_validation_and_scored_on_the_fold(runs, results, swapped):
    expected = []
    for run in runs:
        labels, of_validation = score(run, "validation", False)
        fitted = fit_calibration(labels, of_validation) or (1.0, np.zeros(3))
        scores = 1 - apply_calibration(of_validation, *fitted)[:, 0]
        threshold = choose_threshold(labels, scores, "target_sensitivity", target_sensitivity=0.95)
        labels, of_fold = score(run, "test", swapped)
        decided = 1 - apply_calibration(of_fold, *fitted)[:, 0] >= threshold
        positive = labels > 0
        expected.append((oracle.recall_score(positive, decided), oracle.accuracy_score(positive, decided)))
    images = "held out, swapped" if swapped else "held out"
    wanted = {"rule": "sensitivity 0.95", "chosen_on": "validation", "images": images}
    (row,) = [one for one in results["rules"] if wanted.items() <= one.items()]
    assert row["sensitivity"] == pytest.approx(np.mean(expected, axis=0)[0])
    assert row["accuracy"] == pytest.approx(np.mean(expected, axis=0)[1])
    assert row["worst"] == pytest.approx(np.min(expected, axis=0)[1])


@pytest.mark.slow
def test_each_rule_and_calibration_has_a_row_for_each_kind_of_images(results):
    assert len(results["rules"]) == 2 * 2 * len(rule_comparison.RULES)
    assert len(results["calibration"]) == 2 * 3
    assert all(0 <= one["ece"] <= 1 for one in results["calibration"])
    rules, calibration = rule_comparison.make_tables(results)
    assert (len(rules.rows), len(calibration.rows)) == (len(results["rules"]), len(results["calibration"]))
