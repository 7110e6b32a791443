"""Tests of the audit of a run: its numbers equal those of an evaluation, and its page explains them."""

import base64
import dataclasses
import json
import shutil

import numpy as np
import pytest
from forked import run_script
from PIL import Image
from sklearn.metrics import roc_auc_score

from pneumojax.errors import UserError
from pneumojax.evaluation import audit, metrics
from pneumojax.evaluation.baselines import BASELINES
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.explanation_quality import measure_explanations
from pneumojax.evaluation.nuisances import NUISANCES
from pneumojax.evaluation.perturbations import PERTURBATIONS
from pneumojax.evaluation.run import Run, open_run
from pneumojax.reporting.html import Picture
from pneumojax.training.fit import fit


@pytest.fixture(scope="module")
def audited(make_config, tmp_path_factory):
    """A perceptron at 16 px that was trained for an epoch, and its audit. Tests must not change them."""
    workdir = tmp_path_factory.mktemp("audit") / "run"
    fit(make_config(model="mlp", image_px=16, epochs=1, mixup_alpha=0.0), workdir)
    run = open_run(workdir)
    return run, audit.audit(run, "validation")


def test_the_unaltered_row_is_the_evaluation_and_files_hold_what_is_returned(audited):
    run, results = audited
    directory = run.workdir / "evaluation" / "validation"
    assert json.loads((directory / "audit.json").read_text()) == results
    split, probabilities = run.score("validation")
    threshold = json.loads((run.workdir / "threshold.json").read_text())["value"]
    whole = metrics.compute_metrics(
        split.labels("binary"), probabilities, threshold, PatientBootstrap(split.patient_ids)
    )
    unaltered = results["altered"]["unaltered"]["metrics"]
    assert unaltered == {name: whole[name] for name in ("auroc", "sensitivity", "specificity")}
    assert set(results["altered"]) == set(PERTURBATIONS) and set(results["baselines"]) == set(BASELINES)
    for row in (*results["altered"].values(), *results["baselines"].values()):
        low, high = row["metrics"]["auroc"]["ci95"]
        assert 0 <= low <= row["metrics"]["auroc"]["value"] <= high <= 1
    assert {path.name for path in (directory / "audit").iterdir()} == {
        f"{name}.png" for name in (*PERTURBATIONS, "auroc")
    }


def test_the_page_shows_every_perturbation_and_needs_no_other_file(audited):
    run, results = audited
    page = (run.workdir / "evaluation" / "validation" / "audit.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count("<img") == len(PERTURBATIONS) + 1
    assert "http" not in page
    assert "synthetic radiographs" in page
    for table in audit.make_tables(results):
        for row in table.rows:
            assert all(cell in page.replace("\xa0", " ") for cell in row)


def test_pictures_show_what_the_network_saw(audited, monkeypatch):
    run, results = audited
    seen, drawn = [], {}
    predict = Run.predict
    monkeypatch.setattr(Run, "predict", lambda run, images: seen.append(images) or predict(run, images))
    monkeypatch.setattr(audit, "save_images", lambda path, images, *_: drawn.update({path.stem: images}) or save(path))
    # The rest of the audit is not tested here.
    monkeypatch.setattr(audit, "_score_baselines", lambda *_: (results["baselines"], results["counts"]["fitted_on"]))
    monkeypatch.setattr(audit, "measure_nuisances", lambda *_: results["nuisances"])

    def save(path):
        Image.new("L", (8, 8)).save(path)

    assert audit.audit(run, "validation")["altered"] == results["altered"]
    for images, (name, shown) in zip(seen, drawn.items(), strict=True):
        assert PERTURBATIONS[name].perturb(seen[0]).tobytes() == images.tobytes()
        assert len(shown) == 3
        assert all(any(np.array_equal(one, image) for image in images) for one in shown)


def test_three_classes_score_as_pneumonia_and_baselines_do_not_hang_on_the_run(audited, tmp_path, monkeypatch):
    run, of_two = audited
    load = audit.load_split

    def load_resized(config, name):
        split = load(config, name)
        side = np.full(len(split), 224, np.int32)
        return dataclasses.replace(split, widths=side, heights=side)

    logits = np.random.default_rng(0).normal(size=(len(load(run.config.data, "validation")), 3))
    monkeypatch.setattr(audit, "load_split", load_resized)
    monkeypatch.setattr(audit, "load_or_choose_threshold", lambda *_: of_two["threshold"])
    monkeypatch.setattr(Run, "predict", lambda run, images: logits)
    larger = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, image_px=24))
    results = audit.audit(dataclasses.replace(run, workdir=tmp_path, config=larger), "validation")
    labels = load(run.config.data, "validation").subtypes > 0
    others = np.log(np.exp(logits[:, 1:]).sum(axis=1))  # This has the same order as 1 - P(NORMAL).
    expected = roc_auc_score(labels, others - logits[:, 0])
    assert results["altered"]["blocks"]["metrics"]["auroc"]["value"] == pytest.approx(expected)

    size = results["baselines"].pop("size")["metrics"]["auroc"]
    assert size["value"] is None and "files have 224 x 224 pixels" in size["reason"]
    assert results["baselines"] == {name: of_two["baselines"][name] for name in results["baselines"]}
    page = (tmp_path / "evaluation" / "validation" / "audit.html").read_text()
    assert "none: All" in page and "were resized" in page


def test_the_page_shows_the_explanations_if_they_were_measured(audited, tmp_path, monkeypatch):
    run, results = audited
    directory = run.workdir / "evaluation" / "validation"
    page = (directory / "audit.html").read_text()
    command = f"experiments/explain.py --workdir={run.workdir} --out=pictures --split=validation --measure=200"
    assert results["explanations"] is None and command in page
    explained = measure_explanations(run, "validation", 4)
    # The rest of the audit is not tested here.
    monkeypatch.setattr(audit, "_score_perturbed", lambda *_: (results["altered"], {}))
    monkeypatch.setattr(audit, "load_picture", lambda path, *texts: Picture(path.name.encode(), *texts))
    monkeypatch.setattr(audit, "_score_baselines", lambda *_: (results["baselines"], results["counts"]["fitted_on"]))
    monkeypatch.setattr(audit, "measure_nuisances", lambda *_: results["nuisances"])
    again = dataclasses.replace(run, workdir=tmp_path)
    shutil.copytree(directory, tmp_path / "evaluation" / "validation")
    assert audit.audit(again, "validation")["explanations"] == explained
    (directory / "explanations.json").unlink()
    assert (tmp_path / "evaluation" / "validation" / "audit" / "cascade.png").exists()
    page = (tmp_path / "evaluation" / "validation" / "audit.html").read_text().replace("\xa0", " ")
    assert command not in page and "the maps of 4 random images" in page
    auroc = {name: f"{row['metrics']['auroc']['value']:.3f} (" for name, row in results["altered"].items()}
    assert f"only that region, the network reaches an AUROC of {auroc['centre_only']}" in page
    assert f"shown only the rest, {auroc['centre_black']}" in page
    assert f"{explained['methods']['occlusion']['outside']['value']:.3f} (" in page
    assert base64.b64encode(b"cascade.png").decode() in page


def make_rows(of, **aurocs):
    rows = {
        name: {"title": name, "without_lungs": one.without_lungs, "metrics": {"auroc": {"value": 0.8, "ci95": None}}}
        for name, one in of.items()
    }
    for name, (value, low, high) in aurocs.items():
        rows[name]["metrics"]["auroc"] = {"value": value, "ci95": [low, high]}
    return rows


def test_the_reading_judges_by_the_interval():
    altered = make_rows(
        PERTURBATIONS, unaltered=(0.95, 0.9, 0.98), centre_black=(0.7, 0.6, 0.8), edge_only=(0.3, 0.2, 0.4)
    )
    baselines = make_rows(
        BASELINES, size=(0.55, 0.45, 0.6), edge_pixels=(0.6, 0.5, 0.7), pixels=(0.9, 0.8, 0.95), hog=(0.94, 0.9, 0.97)
    )
    text = audit.explain(altered, baselines, "test", "validation")
    assert "0.950 (0.900 to 0.980)" in text[0]
    assert "centre_black, the network reaches 0.700 (0.600 to 0.800): better than chance" in text[1]
    assert "edge_only, the network reaches 0.300 (0.200 to 0.400): worse than chance" in text[2]
    assert "size, a linear model reaches 0.550 (0.450 to 0.600): no better than chance" in text[3]
    assert "edge_pixels, a linear model reaches 0.600 (0.500 to 0.700): no better than chance" in text[4]
    assert text[5].endswith("pixels alone reach 0.900 and hog 0.940: the network adds 0.010 to that.")
    assert len(text) == 6
    baselines["hog"]["metrics"]["auroc"]["value"] = 0.95
    assert "does not prove" in audit.explain(altered, baselines, "validation", "validation")[5]
    assert "slightly optimistic" in audit.explain(altered, baselines, "test", "test")[6]
    altered["unaltered"]["metrics"]["auroc"] = {"value": None, "ci95": None, "reason": "One class."}
    assert audit.explain(altered, baselines, "test", "validation") == ["There is nothing to explain: One class."]


def test_a_split_that_does_not_exist_is_named(audited, data_dir, tmp_path):
    copy = shutil.copytree(data_dir, tmp_path / "data")
    (path,) = copy.rglob("metadata.json")
    record = json.loads(path.read_text())
    del record["fingerprints"]["test"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="has no test split"):
        audit.audit(open_run(audited[0].workdir, data_dir=str(copy)), "test")
    assert not (audited[0].workdir / "evaluation" / "test").exists()


@pytest.mark.slow
def test_script_prints_both_tables_the_reading_and_the_next_command(audited, processes, tmp_path):
    run, results = audited
    done = run_script(processes, tmp_path, "experiments/audit.py", f"--workdir={run.workdir}")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    network, linear, numbers = audit.make_tables(results)
    assert len(numbers.rows) == len(NUISANCES)
    assert linear.format_text() in text
    for row in network.rows:  # On one device, the last digit of a score, and therefore a decision, may differ.
        assert f"\n{row[0]}   " in text
    assert results["reading"][-2] in text
    data = run.config.data
    assert text.rstrip().endswith(f"scripts/run experiments/explore.py --dataset=phantom --data_dir={data.data_dir}")


def test_the_numbers_of_an_image_separate_the_classes_as_scikit_learn_says(audited):
    run, results = audited
    small = dataclasses.replace(run.config.data, image_px=64)
    for which, name in (("train", "train"), ("split", "validation")):
        split = audit.load_split(small, name)
        for nuisance, row in results["nuisances"].items():
            expected = roc_auc_score(split.labels("binary"), NUISANCES[nuisance].measure(split.images))
            assert row[which] == pytest.approx(expected, abs=1e-12)
