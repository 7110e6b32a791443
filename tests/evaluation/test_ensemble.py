"""Tests of ensembles: they average calibrated probabilities, and refuse runs that do not fit together."""

import dataclasses
import json

import numpy as np
import pytest
from scored import read_csv
from sklearn import metrics as oracle

from pneumojax.errors import UserError
from pneumojax.evaluation import thresholds
from pneumojax.evaluation.ensemble import open_ensemble
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.operating_point import load_or_choose_threshold
from pneumojax.evaluation.run import open_run
from tfds_builder import kermany_pneumonia


def test_ensemble_is_the_mean_of_calibrated_probabilities(make_run):
    workdirs = [
        make_run(seed=seed, epochs=epochs, image_px=px) for seed, epochs, px in ((0, 2, 16), (1, 3, 16), (2, 2, 24))
    ]
    ensemble = open_ensemble(workdirs)
    results = {split: evaluate(ensemble, split) for split in ("validation", "test")}
    for split in results:
        expected = []
        for workdir in workdirs:
            fitted = json.loads((workdir / "calibration.json").read_text())
            scores = 1 - open_run(workdir).score(split)[1][:, 0]
            log_odds = np.log(scores / (1 - scores)) / fitted["temperature"] + fitted["biases"][1]
            expected.append(1 / (1 + np.exp(-log_odds)))
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


@pytest.mark.slow
def test_ensembles_that_do_not_go_together(make_run, tmp_path):
    binary = make_run()
    with pytest.raises(UserError, match="different classes"):
        open_ensemble([binary, make_run(task="three_class")])
    with pytest.raises(UserError, match="named twice"):
        open_ensemble([binary, binary])
    kermany_pneumonia.prepare("phantom", tmp_path, phantom_images=60)
    ensemble = open_ensemble([binary, make_run(seed=1, epochs=3)])
    moved = dataclasses.replace(ensemble.config.data, data_dir=str(tmp_path))
    other = dataclasses.replace(ensemble.members[1], config=dataclasses.replace(ensemble.config, data=moved))
    with pytest.raises(UserError, match="different validation images"):
        evaluate(dataclasses.replace(ensemble, members=(ensemble.members[0], other)), "validation")
