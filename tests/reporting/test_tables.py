"""Tests of tables as text, Markdown and CSV."""

from pneumojax.reporting.tables import Table, format_csv


def test_a_table_as_text_is_aligned_and_a_long_end_of_a_row_widens_no_column():
    table = Table(("row", "value", "note"), (("a", "1", ""), ("long name", "none: for a reason", ""), ("c", "22", "x")))
    assert table.format_text().splitlines() == [
        "row         value   note",
        "a           1",
        "long name   none: for a reason",
        "c           22      x",
    ]


def test_a_table_as_markdown():
    table = Table(("row", "value"), (("a", "1"), ("b", "2")))
    assert table.format_markdown() == "| row | value |\n| --- | --- |\n| a | 1 |\n| b | 2 |"


def test_csv_keeps_every_digit_quotes_commas_and_leaves_none_empty():
    rows = [("a", 0.1 + 0.2, None), ("b,c", 1, "x")]
    assert format_csv(("name", "value", "note"), rows) == 'name,value,note\na,0.30000000000000004,\n"b,c",1,x\n'
