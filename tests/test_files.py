import json
import os

import pytest

from pneumojax import files
from pneumojax.files import append_row, read_rows, truncate_rows, write_json, write_text


def test_json_is_written_and_read_by_others_and_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "run.json"
    write_json(path, {"a": [1, 2.5, None], "umlaut": "ü"})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None], "umlaut": "ü"}
    assert path.stat().st_mode & 0o777 == 0o644
    write_json(path, {})
    assert json.loads(path.read_text()) == {}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_a_write_cut_short_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch, error):
    path = tmp_path / "run.json"
    write_text(path, "old")

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", fail)
        with pytest.raises(type(error)):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_content_is_complete_before_it_takes_the_name(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    seen = []
    replace = os.replace

    def watch(source, target):
        with open(source) as file:
            seen.append(file.read())
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", watch)
    write_text(path, "x" * 100_000)
    assert seen == ["x" * 100_000]


def test_rows_come_back_as_they_were_added(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "train/loss": 0.1 + 0.2}, {"step": 2, "note": "two\nlines \u2028 and more"}]
    assert read_rows(path) == []
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows


def test_a_last_row_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_row(path, {"step": step})
    whole = path.read_text()
    for length in range(len(whole)):
        path.write_text(whole[:length])
        assert read_rows(path) in ([], [{"step": 1}], [{"step": 1}, {"step": 2}])
        assert len(read_rows(path)) >= whole[:length].count("\n")


def test_a_continued_run_goes_on_from_its_step_also_after_half_a_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3, 3):
        append_row(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 4, "tra')
    truncate_rows(path, 2)
    append_row(path, {"step": 3, "again": True})
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_truncating_keeps_the_row_of_the_step_itself_and_needs_no_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    truncate_rows(path, 0)
    assert read_rows(path) == []
    append_row(path, {"step": 5})
    truncate_rows(path, 5)
    assert read_rows(path) == [{"step": 5}]
