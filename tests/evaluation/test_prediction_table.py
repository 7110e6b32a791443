"""The table of predicted files: what is written is read again. test_file_prediction.py tests it with a network."""

import pytest

from pneumojax.errors import UserError
from pneumojax.evaluation.prediction_table import Counts, format_header, format_rows, read_table

COLUMNS = ["file", "decision", "uncertain", "flags", "model"]
ROWS = [
    {"file": 'a,"b"\n\r.png', "decision": "NORMAL", "uncertain": True, "flags": ["x", "y"], "model": "1-a"},
    {"file": "\u00e9 .png", "decision": None, "uncertain": None, "flags": None, "model": "1-a"},
    {"file": "c", "decision": "PNEUMONIA", "uncertain": False, "flags": [], "model": "1-a"},
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_written_rows_are_counted_and_a_cut_row_is_removed(tmp_path, suffix):
    path = tmp_path / f"table{suffix}"
    text = format_header(COLUMNS, suffix) + format_rows(ROWS, COLUMNS, suffix)
    path.write_bytes(text.encode())
    predicted, failed, counts = read_table(path, COLUMNS, "1-a")
    assert (predicted, failed) == ({ROWS[0]["file"], "c"}, {ROWS[1]["file"]})
    assert counts == Counts(files=3, predicted=2, pneumonia=1, uncertain=1, flagged=1, failed=1)
    path.write_bytes(text.encode()[:-3])
    assert read_table(path, COLUMNS, "1-a")[:2] == ({ROWS[0]["file"]}, {ROWS[1]["file"]})
    assert path.read_bytes() == (format_header(COLUMNS, suffix) + format_rows(ROWS[:2], COLUMNS, suffix)).encode()


def test_a_table_of_another_model_or_suffix_is_refused(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text(format_rows(ROWS, COLUMNS, ".jsonl"))
    with pytest.raises(UserError, match="holds predictions of another model"):
        read_table(path, COLUMNS, "2-b")
    with pytest.raises(UserError, match="must end in .csv or .jsonl"):
        read_table(tmp_path / "table.txt", COLUMNS, "1-a")
    assert read_table(tmp_path / "none.csv", COLUMNS, "1-a") == (set(), set(), Counts())


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("cut", [0, 3])
def test_a_second_row_takes_the_place_of_the_one_that_failed(tmp_path, suffix, cut):
    path = tmp_path / f"table{suffix}"
    again = [ROWS[1] | {"decision": "NORMAL", "uncertain": False, "flags": []}, ROWS[0] | {"file": "d"}]
    text = format_header(COLUMNS, suffix) + format_rows(ROWS + again, COLUMNS, suffix)
    path.write_bytes(text.encode()[: len(text.encode()) - cut])
    expected = [ROWS[0], again[0], ROWS[2], *([] if cut else again[1:])]
    for _ in range(2):
        predicted, failed, counts = read_table(path, COLUMNS, "1-a")
        assert (predicted, failed) == ({row["file"] for row in expected}, set())
        assert (counts.files, counts.predicted, counts.failed) == (len(expected), len(expected), 0)
        whole = format_header(COLUMNS, suffix) + format_rows(expected, COLUMNS, suffix)
        assert path.read_bytes() == whole.encode()
