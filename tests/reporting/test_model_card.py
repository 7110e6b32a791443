"""Tests of model cards."""

import pytest
from records import make_evaluation, make_record

from pneumojax.reporting.caveats import NOT_A_DEVICE
from pneumojax.reporting.model_card import make_model_card, make_table, start_sentence

SECTIONS = [
    "Model details",
    "Intended use",
    "Out-of-scope use",
    "Training data",
    "Training procedure",
    "Results",
    "Threshold and calibration",
    "Subgroups",
    "Tests",
    "Limits",
    "Fingerprints",
    "Licence",
    "Authors, contact and citation",
]


def read_head(card):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_has_all_sections_and_the_warning():
    card = make_model_card(make_record())
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == SECTIONS
    assert NOT_A_DEVICE in card


def test_a_run_without_evaluation_has_a_card_that_says_so():
    card = make_model_card(make_record())
    assert "this run has not been evaluated. Run `scripts/run experiments/evaluate.py --workdir=runs/a" in card
    assert "model-index" not in read_head(card)


def test_results_are_shown_with_intervals_and_in_the_head():
    evaluations = {"test": make_evaluation(), "hospital": make_evaluation("hospital", collection={})}
    card = make_model_card(make_record(evaluations=evaluations))
    assert "| metric (95 % interval) | test: 10 images of 8 patients | hospital: 10 images of 8 patients |" in card
    assert "| AUROC | 0.900 (0.850 to 0.950) | 0.900 (0.850 to 0.950) |" in card
    assert "| test | viral | 7 | 0.700 (0.650 to 0.750) | - | - |" in card
    head = read_head(card)
    assert head["pipeline_tag"] == "image-classification" and head["license"] == "other"
    first, second = head["model-index"][0]["results"]
    assert first["dataset"]["split"] == "test" and second["dataset"]["name"] == "collection"
    assert {"type": "roc_auc", "value": 0.9} in first["metrics"]


def test_a_metric_without_a_value_shows_its_reason():
    evaluation = make_evaluation()
    evaluation["metrics"]["auroc"] = {"value": None, "ci95": None, "reason": "one class only"}
    assert "| AUROC | one class only |" in make_model_card(make_record(evaluations={"test": evaluation}))


def test_optimistic_and_outdated_results_are_marked():
    card = make_model_card(make_record(evaluations={"validation": make_evaluation("validation", step=40)}))
    assert "so the results are optimistic" in card and "Missing: results on the test split" in card
    assert "measured with the checkpoint of step 40, and this card describes step 60" in card


def test_a_stored_threshold_and_its_uncertain_scores_are_shown():
    threshold = {"value": 0.25, "rule": "youden", "split": "validation", "uncertain": {"low": 0.1, "high": 0.4}}
    card = make_model_card(make_record(threshold=threshold))
    assert "0.25, by the rule youden" in card and "**Uncertain scores**: 0.1 to 0.4" in card


def test_a_card_of_synthetic_radiographs_says_so():
    card = make_model_card(make_record(synthetic=True))
    assert "These are synthetic radiographs" in card and "Training data: synthetic" in card
    assert "CC BY" not in card


def test_helpers():
    assert start_sentence("a b") == "A b" and start_sentence("") == ""
    assert make_table(("a", "b"), [("1|2", "3")]).splitlines()[-1] == "| 1\\|2 | 3 |"
