"""Fills reporting checklists (CLAIM 2024, TRIPOD+AI, STARD-AI) from the record of a run."""

import functools
import pathlib
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pneumojax.reporting.run_record import AUTHORS, Fact
from pneumojax.reporting.tables import Table

FILE = pathlib.Path(__file__).with_suffix(".toml")

FILLED = "filled from the record"
PARTLY = "partly filled, to be completed by the authors"
BY_AUTHORS = "to be filled by the authors"
MISSING = "missing in the record"
NOT_APPLICABLE = "not applicable"


@functools.cache
def load_checklists() -> Mapping[str, Mapping[str, Any]]:
    """Loads the checklists: {name: {"file", "title", "citation", "verified", "items"}}. See checklists.toml."""
    return tomllib.loads(FILE.read_text())


def make_checklist(checklist: Mapping[str, Any], facts: Mapping[str, Fact], subject: str) -> str:
    """Makes a filled checklist.

    Args:
      checklist: a value of `load_checklists`.
      facts: from `run_record.make_facts`.
      subject: the folder of the run.

    Returns:
      Markdown.
    """
    rows = [answer_item(item, facts) for item in checklist["items"]]
    counts = Counter(row[-1] for row in rows)
    summary = "; ".join(f"{number} {status}" for status, number in counts.items())
    cells = [tuple(map(escape_cell, row)) for row in rows]
    table = Table(("item", "section", "what it asks for, in short", "where, or the value of the run", "status"), cells)
    return (
        f"# {checklist['title']}: {subject}\n\n"
        f"{checklist['citation']}\n\n"
        "The items are in our own words; the publication has the wording that counts. "
        f"{checklist['verified']}\n\n"
        "The record is that of the run, with the description of its data set. A filled row does not say that a "
        f"manuscript reports it: the authors add the page. Rows: {summary}.\n\n"
        f"{table.format_markdown()}\n"
    )


def answer_item(item: Mapping[str, Any], facts: Mapping[str, Fact]) -> tuple[str, str, str, str, str]:
    """Returns the row of an item: number, section, what it asks for, answer, status."""
    head = item["item"], item["section"], item["asks"]
    if "not_applicable" in item:
        return (*head, item["not_applicable"], NOT_APPLICABLE)
    answers = [facts[name] for name in item.get("facts", ())]
    words = [fact.format().rstrip(".") for fact in answers]
    if "authors" in item:
        words.append(f"{AUTHORS} ({item['authors']})")
    if not any(fact.text for fact in answers):
        status = MISSING if answers else BY_AUTHORS
    else:
        status = FILLED if all(fact.text for fact in answers) and "authors" not in item else PARTLY
    return (*head, "; ".join(words), status)


def escape_cell(text: str) -> str:
    """Makes text that can be a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
