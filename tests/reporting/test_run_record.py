"""Tests of the statements about a run."""

import pytest
from records import make_evaluation, make_metric, make_record

from pneumojax.reporting.run_record import AUTHORS, Fact, choose_evaluation, make_facts


def test_a_statement_is_its_text_or_the_command_that_writes_it():
    assert Fact("text").format() == "text"
    assert Fact(None, "CMD").format() == "missing: run `CMD` first"
    assert Fact(None).format() == AUTHORS == "unknown: to be filled by the authors"


def test_a_run_without_results_names_the_commands_that_make_them():
    facts = make_facts(make_record())
    for name, script in (
        ("performance", "evaluate.py --workdir=runs/a --split=test"),
        ("threshold", "evaluate.py --workdir=runs/a --split=validation"),
        ("robustness", "robustness.py --workdir=runs/a"),
        ("audit", "audit.py --workdir=runs/a"),
        ("external", "evaluate.py --workdir=runs/a --images=FOLDER --labels=CSV"),
        ("explanations", "explain.py --workdir=runs/a"),
        ("left_out", "prepare_data.py"),
    ):
        assert facts[name].text is None and script in facts[name].command


def test_a_command_names_a_split_that_the_data_set_has():
    record = make_record()
    record.info["data"]["counts"] = {"train": record.info["data"]["counts"]["train"]}
    assert make_facts(record)["performance"].command.endswith("--split=validation")


def test_results_are_those_of_test_if_it_was_evaluated():
    both = {name: make_evaluation(name) for name in ("validation", "test", "hospital")}
    assert choose_evaluation(make_record(evaluations=both))["run"]["split"]["name"] == "test"
    del both["test"]
    assert choose_evaluation(make_record(evaluations=both))["run"]["split"]["name"] == "validation"
    del both["validation"]
    assert choose_evaluation(make_record(evaluations=both)) is None


def test_statements_have_the_numbers_of_the_record():
    robustness = {"nuisances": {"aspect": {"change": make_metric(-0.01)}}, "worst": "aspect"}
    row = {"title": "without lungs", "without_lungs": True, "metrics": {"auroc": make_metric(0.6)}}
    facts = make_facts(
        make_record(
            evaluations={"test": make_evaluation(), "hospital": make_evaluation("hospital", collection={})},
            threshold={"value": 0.25, "rule": "youden", "split": "validation"},
            calibration={"temperature": 1.5, "biases": [0.0, 0.5], "split": "validation"},
            robustness={"test": robustness},
            audits={"test": {"altered": {"lungs": row, "edge": row | {"without_lungs": False, "title": "edge"}}}},
            explanations={"validation": {}},
            patients={"train": {"all": 30}, "test": {"all": 8}},
            metadata={
                "duplicates": {"left_out_redundant": 3, "left_out_in_test": 2, "left_out_contradictory": 1},
                "skipped": {"not an image": 4},
                "bad_images": ["a.jpeg"],
            },
        )
    )
    for name, text in (
        ("performance", "test: AUROC 0.900 (0.850 to 0.950)"),
        ("confusion", "5 true positives, 1 false positives, 0 false negatives, 4 true negatives"),
        ("subgroups", "viral: AUROC 0.700"),
        ("threshold", "0.25, by the rule youden, chosen on validation"),
        ("calibration", "temperature 1.500, bias +0.50, fitted on validation"),
        ("robustness", "aspect swapped between the classes, the AUROC changes by -0.0100"),
        ("audit", "without the lungs: without lungs 0.600 (0.550 to 0.650)"),
        ("external", "hospital: AUROC 0.900"),
        ("explanations", "tested on validation"),
        ("splits", "train: 40 images (10 NORMAL, 20 BACTERIA, 10 VIRUS) of 30 patients"),
        ("class_balance", "75.0 % of train, 50.0 % of test"),
        ("left_out", "3 byte-identical copies, 2 that are in test too, 1 with two labels; unreadable images: 1"),
    ):
        assert text in facts[name].text
    assert "edge" not in facts["audit"].text


@pytest.mark.parametrize(
    ("config", "name", "text"),
    [
        ({"pretrained": "w.h5"}, "initialisation", "pretrained weights w.h5"),
        ({"model": "mlp"}, "technology", "multilayer perceptron"),
        ({"select_by": "auroc"}, "selection", "best AUROC on the selection split, step 60"),
        ({"class_weights": "balanced"}, "class_balance", "class weights: balanced"),
    ],
)
def test_statements_follow_the_config(config, name, text):
    assert text in make_facts(make_record(config=config))[name].text


def test_synthetic_radiographs_are_not_called_x_rays_of_children():
    facts = make_facts(make_record(synthetic=True))
    for name in ("data_source", "study_design", "reference_standard", "limits", "data_availability"):
        assert "they show no patient" in facts[name].text and "Kermany" not in facts[name].text
