"""Tests of the tables of reproduce.py: reported metrics are compared with ours, and the leaky protocol is set apart."""

import csv
import io

import pytest

from experiments.benchmarks import reproduce_page
from experiments.benchmarks.systems import FIGURES, LEAKY, SYSTEMS


def make_result(shift=0.0):
    """Makes the results of a system over two seeds: each metric has a value of its own."""
    names = dict.fromkeys((*reproduce_page.METRICS, *FIGURES))
    metrics = {
        name: {"value": 0.5 + shift + i / 100, "ci95": [0.4, 0.8], "standard_deviation": 0.01}
        for i, name in enumerate(names)
    }
    metrics["auroc"] |= {"value": None, "ci95": None, "reason": "One class."}
    shift_auroc = {"value": 0.7 + shift, "standard_deviation": 0.01, "ci95": None}
    return {"metrics": metrics, "shift_auroc": shift_auroc, "seeds": 2, "seconds": 60.0, "images_per_second": None}


@pytest.fixture
def results():
    return {"a1": make_result(), "e1": make_result(0.1), f"e1_{LEAKY}": make_result(0.2)}


def test_each_reported_metric_is_next_to_ours(results):
    reported = reproduce_page.list_reported(results)
    assert [(name, value) for name, _, value, _ in reported] == [
        (name, value) for name in ("a1", "e1") for value in SYSTEMS[name].reported.values()
    ]
    for name, figure, _, ours in reported:
        (metric,) = (metric for metric, words in FIGURES.items() if words == figure)
        assert ours is results[name]["metrics"][metric]


def test_the_leaky_protocol_has_a_section_of_its_own(results):
    headings = [section.heading for section in reproduce_page.make_sections(results, "test")]
    assert headings == ["Reported and ours", "Ours on test", "Leaky protocol, for comparison only"]
    *_, leaky = reproduce_page.make_sections(results, "test")
    assert [row[0] for row in leaky.blocks[0].rows] == [f"e1_{LEAKY}"]
    assert len(reproduce_page.make_sections({"a1": results["a1"]}, "test")) == 2


def test_the_csv_keeps_all_digits_and_marks_the_protocol(results):
    rows = [*csv.DictReader(io.StringIO(reproduce_page.format_results(results, "test")))]
    assert len(rows) == sum(len(result["metrics"]) + 1 for result in results.values())
    assert [float(row["mean"]) for row in rows if row["metric"] == "shift_auroc"] == pytest.approx([0.7, 0.8, 0.9])
    accuracy = {(row["system"], row["protocol"]): row for row in rows if row["metric"] == "accuracy"}
    honest, leaky = accuracy["e1", "chosen on validation"], accuracy["e1", "chosen on test (leaky)"]
    assert float(honest["mean"]) == results["e1"]["metrics"]["accuracy"]["value"]
    assert float(leaky["mean"]) == results[f"e1_{LEAKY}"]["metrics"]["accuracy"]["value"]
    assert (float(honest["reported_on_test"]), leaky["reported_on_test"]) == (SYSTEMS["e1"].reported["accuracy"], "")
    aurocs = [row for row in rows if row["metric"] == "auroc"]
    assert {(row["mean"], row["low"], row["images_per_second"]) for row in aurocs} == {("", "", "")}


def test_the_description_counts_systems_and_names_the_split(results):
    metadata = {"fingerprint": "0123456789abcdef", "counts": {"validation": {"NORMAL": 10, "PNEUMONIA": 20}}}
    info = {"image_px": 32, "device": {"count": 1, "kind": "cpu"}, "versions": {"jax": "1", "flax": "2"}}
    first, second = reproduce_page.describe(results, "validation", metadata, info)
    assert first.startswith("2 systems, mean ± standard deviation over 2 seeds,")
    assert "Ours are of validation, because this data set has no test split." in first
    assert second.startswith("Data 0123456789ab (validation: 30 images), 32 px, devices: 1 (cpu), jax 1, flax 2.")


def test_markdown_has_the_warning_and_the_tables(results):
    text = reproduce_page.format_markdown(["Lead."], "Smoke test.", reproduce_page.make_sections(results, "test"))
    assert text.startswith(f"# {reproduce_page.TITLE}\n\n**Smoke test.**\n\nLead.\n\n## Reported and ours\n\n|")
    assert text.count("\n## ") == 3 and text.count("| system |") == 3


def test_the_presets_describe_each_system_once(results):
    section = reproduce_page.describe_presets(results)
    assert len(section.text) == 2  # The leaky protocol has the preset of its system.
    assert all(len(text) > 100 and "#" not in text[:1] for text in section.text)
