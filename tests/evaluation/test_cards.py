"""Tests of reading the record of a run and writing its cards."""

import json
import shutil

import pytest

from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.evaluation.cards import make_model_card, read_record, write_cards
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.run import open_run

NAMES = ["model_card.md", "data_card.md", "claim_2024.md", "tripod_ai.md", "stard_ai.md"]


def test_the_cards_of_an_evaluated_run_show_its_figures(three_class_workdir, tmp_path):
    run = open_run(three_class_workdir)
    results = evaluate(run, "test")
    assert write_cards(run, tmp_path / "cards") == NAMES
    assert sorted(path.name for path in (tmp_path / "cards").iterdir()) == sorted(NAMES)
    auroc = f"{results['metrics']['auroc']['value']:.3f} ("
    for name in ("model_card.md", "claim_2024.md", "tripod_ai.md", "stard_ai.md"):
        assert auroc in (tmp_path / "cards" / name).read_text()
    assert make_model_card(run) == (tmp_path / "cards" / "model_card.md").read_text()


def test_a_record_counts_patients_and_parameters(workdir):
    run = open_run(workdir)
    record, split = read_record(run), load_split(run.config.data, "train")
    assert record.patients["train"]["all"] == len(set(split.patient_ids.tolist()))
    assert record.patients["train"]["NORMAL"] == len(set(split.patient_ids[split.subtypes == 0].tolist()))
    assert record.parameters > 0 and len(record.weights_sha256) == 64 and record.evaluations == {}


def test_patients_are_unknown_without_the_data_or_with_other_data(workdir, tmp_path, monkeypatch):
    record = read_record(open_run(workdir, data_dir=str(tmp_path / "gone")))
    assert record.patients is None and record.metadata is None
    assert not (tmp_path / "gone").exists()
    run = open_run(workdir)
    run.info["data"]["fingerprint"] = "other"
    assert read_record(run).patients is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"metrics": {"auroc": {"value": "x", "ci95": null}}}', "\0"])
def test_a_damaged_metrics_file_is_named_and_nothing_is_written(text, workdir, tmp_path):
    path = workdir / "evaluation" / "test" / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics.json is damaged .*evaluate.py"):
        write_cards(open_run(workdir), tmp_path / "cards")
    assert not (tmp_path / "cards").exists()


def test_a_result_of_another_version_is_a_sentence(three_class_workdir):
    run = open_run(three_class_workdir)
    evaluate(run, "test")
    path = run.workdir / "evaluation" / "test" / "metrics.json"
    results = json.loads(path.read_text())
    del results["calibration"]["after"]
    path.write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"is damaged or of another version .* Evaluate the run again"):
        make_model_card(run)


@pytest.mark.parametrize("name", ["robustness.json", "audit.json", "explanations.json"])
def test_other_damaged_results_are_named(name, workdir, tmp_path):
    path = workdir / "evaluation" / "test" / name
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match=f"{name} is damaged"):
        write_cards(open_run(workdir), tmp_path / "cards")


def test_an_earlier_folder_is_kept_because_authors_may_have_filled_it(workdir, tmp_path):
    run = open_run(workdir)
    shutil.rmtree(workdir / "evaluation", ignore_errors=True)
    write_cards(run, tmp_path / "cards")
    (tmp_path / "cards" / "claim_2024.md").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_cards(run, tmp_path / "cards")
    assert (tmp_path / "cards" / "claim_2024.md").read_text() == "mine"


def test_a_failed_write_leaves_no_folder(workdir, tmp_path, monkeypatch):
    def fail(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pneumojax.evaluation.cards.write_text", fail)
    with pytest.raises(OSError, match="No space"):
        write_cards(open_run(workdir), tmp_path / "out" / "cards")
    assert list((tmp_path / "out").iterdir()) == []
