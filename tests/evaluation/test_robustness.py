"""The robustness report of a run: its figures are those of the predictions, and a shortcut shows in them."""

import dataclasses
import json

import numpy as np
import pytest
from forked import run_script
from sklearn.metrics import roc_auc_score

from pneumojax.evaluation.nuisances import NUISANCES
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.robustness import describe_series, make_tables, measure_robustness
from pneumojax.evaluation.run import Run, open_run
from pneumojax.training.fit import fit


@pytest.fixture(scope="module")
def measured(make_config, tmp_path_factory):
    """A perceptron of 16 px, trained for an epoch, and its report; not to be changed."""
    workdir = tmp_path_factory.mktemp("robustness") / "run"
    fit(make_config(model="mlp", image_px=16, epochs=1, mixup_alpha=0.0), workdir)
    run = open_run(workdir)
    return run, measure_robustness(run, "validation")


def test_figures_are_those_of_the_predictions(measured):
    run, results = measured
    directory = run.workdir / "evaluation" / "validation"
    assert json.loads((directory / "robustness.json").read_text()) == results
    split, probabilities = run.score("validation")
    positive = split.labels("binary") > 0
    unchanged = roc_auc_score(positive, 1 - probabilities[:, 0])
    assert results["unchanged"]["auroc"]["value"] == pytest.approx(unchanged, abs=1e-12)
    for name, row in results["nuisances"].items():
        images = NUISANCES[name].swap(split.images, positive)
        scores = 1 - compute_probabilities(run.predict(images))[:, 0]
        assert row["metrics"]["auroc"]["value"] == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        change = row["metrics"]["auroc"]["value"] - unchanged
        assert row["change"]["value"] == pytest.approx(change, abs=1e-12)
    changes = {name: row["change"]["value"] for name, row in results["nuisances"].items()}
    assert results["worst"] == min(changes, key=changes.get)


def test_the_page_holds_every_row(measured):
    run, results = measured
    page = (run.workdir / "evaluation" / "validation" / "robustness.html").read_text().replace("\xa0", " ")
    assert page.count('src="data:image/png;base64,') == 1 and "http" not in page
    for table in make_tables(results):
        for row in table.rows:
            assert all(cell in page for cell in row)


def test_a_network_that_reads_the_aspect_alone_is_exposed(measured, monkeypatch):
    run, _ = measured
    split, _ = run.score("validation")
    measure = NUISANCES["aspect"].measure

    def predict(_, images):  # Logits [N, 2] from the aspect of the image and nothing else.
        value = measure(images) - np.median(measure(split.images))
        return np.stack([np.zeros_like(value), 5 * value], axis=1).astype(np.float32)

    monkeypatch.setattr(Run, "predict", predict)
    row = measure_robustness(run, "validation")["nuisances"]["aspect"]
    assert row["metrics"]["auroc"]["value"] == pytest.approx(row["separation"]["swapped"], abs=1e-3)
    assert row["change"]["value"] < -0.2


def test_series_are_the_first_part_of_the_names(measured):
    run, _ = measured
    split, probabilities = run.score("validation")
    names = np.array([f"{'IM' if i % 3 else 'NORMAL2-IM'}-{i}.jpeg" for i in range(len(split))])
    renamed = dataclasses.replace(split, filenames=names)
    scores = 1 - probabilities[:, 0]
    series = describe_series(renamed, scores, 0.5)
    normal = split.subtypes == 0
    chosen = normal & (np.arange(len(split)) % 3 == 0)
    assert set(series) == {"IM", "NORMAL2"}
    assert series["NORMAL2"]["images"] == chosen.sum()
    assert series["NORMAL2"]["mean_score"] == pytest.approx(scores[chosen].mean())
    assert series["NORMAL2"]["specificity"] == pytest.approx((scores[chosen] < 0.5).mean())


@pytest.mark.slow
def test_the_script_prints_the_tables_and_says_where_they_are(measured, processes, tmp_path):
    run, results = measured
    done = run_script(processes, tmp_path, "experiments/robustness.py", f"--workdir={run.workdir}")
    assert done.returncode == 0, done.stderr
    for table in make_tables(results):
        assert table.rows[0][0] in done.stdout
    assert "robustness.html" in done.stdout and "Next" in done.stdout


def test_a_missing_run_is_one_sentence(processes, tmp_path):
    done = run_script(processes, tmp_path, "experiments/robustness.py", f"--workdir={tmp_path / 'none'}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "holds no checkpoints" in done.stderr
