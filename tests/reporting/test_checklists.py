"""Tests of the reporting checklists."""

import re

import pytest
from records import make_evaluation, make_record

from pneumojax.reporting.checklists import (
    BY_AUTHORS,
    FILLED,
    MISSING,
    NOT_APPLICABLE,
    PARTLY,
    answer_item,
    escape_cell,
    load_checklists,
    make_checklist,
)
from pneumojax.reporting.run_record import Fact, make_facts

FACTS = {"known": Fact("12 images."), "absent": Fact(None, "CMD")}
HEAD = {"item": "1a", "section": "Title", "asks": "the title"}


@pytest.mark.parametrize(
    ("item", "answer", "status"),
    [
        ({"facts": ["known"]}, "12 images", FILLED),
        ({"facts": ["known"], "authors": "a"}, "12 images; unknown: to be filled by the authors (a)", PARTLY),
        ({"facts": ["known", "absent"]}, "12 images; missing: run `CMD` first", PARTLY),
        ({"facts": ["absent"]}, "missing: run `CMD` first", MISSING),
        ({"authors": "a"}, "unknown: to be filled by the authors (a)", BY_AUTHORS),
        ({"not_applicable": "no trial"}, "no trial", NOT_APPLICABLE),
    ],
)
def test_the_status_of_an_item(item, answer, status):
    assert answer_item(HEAD | item, FACTS) == ("1a", "Title", "the title", answer, status)


@pytest.mark.parametrize(("name", "numbers", "rows"), [("claim", 44, 44), ("tripod", 27, 52), ("stard", 40, 48)])
def test_the_items_are_numbered_without_gaps(name, numbers, rows):
    items = [one["item"] for one in load_checklists()[name]["items"]]
    assert len(items) == len(set(items)) == rows
    assert list(dict.fromkeys(int(re.match(r"\d+", item)[0]) for item in items)) == list(range(1, numbers + 1))


@pytest.mark.parametrize("name", ["claim", "tripod", "stard"])
def test_each_item_has_an_answer_and_names_statements_that_exist(name):
    facts, checklist = make_facts(make_record()), load_checklists()[name]
    for item in checklist["items"]:
        assert item.keys() <= {"item", "section", "asks", "facts", "authors", "not_applicable"}
        assert item.get("facts") or item.get("authors") or item.get("not_applicable")
        assert set(item.get("facts", ())) <= facts.keys()
    assert checklist["file"].endswith(".md") and "doi:" in checklist["citation"]


def test_a_checklist_is_a_table_with_the_citation_and_the_number_of_rows_of_each_status():
    checklist = load_checklists()["claim"]
    text = make_checklist(checklist, make_facts(make_record(evaluations={"test": make_evaluation()})), "a")
    rows = [line for line in text.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 44 and all(len(re.split(r"(?<!\\)\|", row)) == 7 for row in rows)
    assert checklist["citation"] in text and "not with the publication itself" in text
    filled = sum(row.endswith(f"| {FILLED} |") for row in rows)
    assert f"{filled} {FILLED}" in text and filled > 10


def test_a_cell_cannot_break_its_row():
    assert escape_cell("a | b\nc") == "a \\| b c"
