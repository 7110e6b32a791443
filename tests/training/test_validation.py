"""Validation during training: its metrics against scikit-learn, and the checkpoint that each measure chooses."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from pneumojax.checkpoint import load_run
from pneumojax.data.dataset import load_split
from pneumojax.evaluation.aspect import add_swapped, swap_aspect
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import open_run
from pneumojax.training.fit import fit
from pneumojax.training.replicas import fit_replicas
from pneumojax.training.validation import compute_selection_score, score_validation


def read_validation(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "val/auroc" in row}


def test_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, 80), rng.normal(size=(160, 3)).astype(np.float32)
    row = score_validation(np.tile(labels, 2), logits)
    probabilities = compute_probabilities(logits)
    plain, swapped = probabilities[:80], probabilities[80:]
    expected = {
        "val/loss": log_loss(labels, plain),
        "val/accuracy": accuracy_score(labels, plain.argmax(1)),
        "val/auroc": roc_auc_score(labels > 0, 1 - plain[:, 0]),
        "val/shift_auroc": roc_auc_score(labels > 0, 1 - swapped[:, 0]),
    }
    assert row == pytest.approx(expected, abs=1e-9)
    logits[100] = np.nan
    assert np.isnan(score_validation(np.tile(labels, 2), logits)["val/loss"])


def test_swapped_images_follow_the_images_themselves(make_config):
    split = load_split(make_config(image_px=32).data, "validation")
    both = add_swapped(split)
    positive = split.labels("binary") > 0
    assert len(both) == 2 * len(split)
    np.testing.assert_array_equal(both.images[: len(split)], split.images)
    np.testing.assert_array_equal(both.images[len(split) :], swap_aspect(split.images, positive))
    np.testing.assert_array_equal(both.subtypes, np.tile(split.subtypes, 2))


def test_selection_scores():
    row = {"val/auroc": 0.9, "val/shift_auroc": 0.7}
    assert [compute_selection_score(row, by, 30) for by in ("auroc", "shift", "last")] == [0.9, 0.7, 30.0]


@pytest.mark.parametrize(
    ("select_by", "replicas"),
    [
        ("shift", 1),
        pytest.param("last", 2, marks=pytest.mark.slow),
        pytest.param("shift", 2, marks=pytest.mark.slow),
        pytest.param("last", 1, marks=pytest.mark.slow),
    ],
)
def test_the_best_checkpoint_is_the_one_that_the_measure_chooses(select_by, replicas, make_config, tmp_path):
    config = make_config(model="mlp", epochs=4, learning_rate=0.02, select_by=select_by, replicas=replicas, seed=3)
    result = fit(config, tmp_path) if replicas == 1 else fit_replicas(config, tmp_path)[0]
    workdir = tmp_path if replicas == 1 else tmp_path / "replica_0"
    rows = read_validation(workdir)
    chosen = max(rows) if select_by == "last" else max(rows, key=lambda step: (rows[step]["val/shift_auroc"], step))
    assert result.best_step == chosen and result.best_auroc == rows[chosen]["val/auroc"]
    assert load_run(workdir, "best")[2] == chosen
    assert json.loads((workdir / "threshold.json").read_text())["checkpoint_step"] == chosen
    run = open_run(workdir)
    split = load_split(config.data, "validation")
    positive = split.labels("binary") > 0
    for name, images in (("val/auroc", split.images), ("val/shift_auroc", swap_aspect(split.images, positive))):
        scores = 1 - compute_probabilities(run.predict(images))[:, 0]
        assert roc_auc_score(positive, scores) == pytest.approx(rows[chosen][name], abs=1e-9)
