"""The table of predicted files: what is written is read again. test_file_prediction.py tests it with a network."""

import pytest

from pneumojax.errors import UserError
from pneumojax.evaluation.prediction_table import Counts, format_header, format_rows, read_table

COLUMNS = ["file", "decision", "uncertain", "notices", "model"]
ROWS = [
    {"file": 'a,"b"\n\r.png', "decision": "NORMAL", "uncertain": True, "notices": ["x", "y"], "model": "1-a"},
    {"file": "\u00e9 .png", "decision": None, "uncertain": None, "notices": [], "model": "1-a"},
    {"file": "c", "decision": "PNEUMONIA", "uncertain": False, "notices": [], "model": "1-a"},
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_written_rows_are_counted_and_a_cut_row_is_removed(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    text = format_header(COLUMNS, suffix) + format_rows(ROWS, COLUMNS, suffix)
    path.write_bytes(text.encode())
    names, counts = read_table(path, COLUMNS, "1-a")
    assert names == {row["file"] for row in ROWS}
    assert counts == Counts(files=3, predicted=2, pneumonia=1, uncertain=1, failed=1)
    path.write_bytes(text.encode()[:-3])
    assert read_table(path, COLUMNS, "1-a")[0] == {row["file"] for row in ROWS[:2]}
    assert path.read_bytes() == (format_header(COLUMNS, suffix) + format_rows(ROWS[:2], COLUMNS, suffix)).encode()


def test_a_table_of_another_model_or_suffix_is_refused(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text(format_rows(ROWS, COLUMNS, ".jsonl"))
    with pytest.raises(UserError, match="holds predictions of another model"):
        read_table(path, COLUMNS, "2-b")
    with pytest.raises(UserError, match="must end in .csv or .jsonl"):
        read_table(tmp_path / "table.txt", COLUMNS, "1-a")
    assert read_table(tmp_path / "none.csv", COLUMNS, "1-a") == (set(), Counts())
