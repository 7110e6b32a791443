"""Tests of files that are written whole or not at all, also if the process is killed."""

import json
import multiprocessing
import os
import pathlib
import shutil
import signal

import pytest

from pneumojax import files
from pneumojax.files import (
    append_row,
    lock_folder,
    read_rows,
    remove_leftovers,
    replace_folder,
    truncate_rows,
    write_json,
    write_text,
)


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


@pytest.mark.parametrize("cut", [1, 4])
def test_a_row_after_a_line_without_newline_is_its_own_row(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_row(path, {"step": step})
    path.write_bytes(path.read_bytes()[:-cut])
    append_row(path, {"step": 3})
    append_row(path, {"step": 4})
    kept = [1, 2] if cut == 1 else [1]
    assert read_rows(path) == [{"step": step} for step in (*kept, 3, 4)]


@pytest.mark.parametrize("broken", [b"{", b"\xff\xfe", b"\0\0\0", b"12", b"null", b"", b"[1]"])
def test_a_broken_line_in_the_middle_is_skipped_and_truncating_removes_it(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 2}\n')
    assert read_rows(path) == [{"step": 1}, {"step": 2}]
    truncate_rows(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def write_and_die(path, step):
    """Replaces a folder and is killed at the given call of the functions that change the disk."""
    calls = iter(range(100))

    def count(function):
        def call(*arguments, **options):
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for owner, name in (
        (os, "mkdir"),
        (os, "fsync"),
        (os, "chmod"),
        (pathlib.Path, "rename"),
        (pathlib.Path, "write_text"),
        (shutil, "copy2"),
        (shutil, "rmtree"),
    ):
        setattr(owner, name, count(getattr(owner, name)))
    with replace_folder(path, ("a", "b")) as folder:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
    os._exit(0)


def read_folder(path):
    return {entry.name: entry.read_text() for entry in path.iterdir()} if path.exists() else None


def test_a_killed_writer_leaves_the_old_folder_or_the_new_one(tmp_path):
    path = tmp_path / "folder"
    old, new = {"a": "old", "notes": "mine"}, {"a": "new", "b": "new", "notes": "mine"}
    context, seen = multiprocessing.get_context("fork"), []
    for step in range(100):
        shutil.rmtree(tmp_path)
        path.mkdir(parents=True)
        for name, text in old.items():
            (path / name).write_text(text)
        process = context.Process(target=write_and_die, args=(path, step))
        process.start()
        process.join()
        seen.append(read_folder(path))
        remove_leftovers(path)
        assert read_folder(path) in (old, new), step
        assert list(tmp_path.iterdir()) == [path]
        if process.exitcode == 0:
            break
    assert step > 10 and seen[0] == old and seen[-1] == new
    # The folder is missing only between the two renames.
    assert [one for one in seen if one not in (old, new)] == [None]


def test_a_failed_writer_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "folder"
    with replace_folder(path) as folder:
        (folder / "a").write_text("old")

    def fail():
        with replace_folder(path) as folder:
            (folder / "a").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert read_folder(path) == {"a": "old"}
    assert list(tmp_path.iterdir()) == [path]
    with replace_folder(path) as folder:
        (folder / "b").write_text("new")
    assert read_folder(path) == {"b": "new"}
    assert path.stat().st_mode & 0o777 == 0o755


def test_leftovers_of_a_living_writer_are_kept(tmp_path):
    path = tmp_path / "folder"
    with replace_folder(path) as folder:
        remove_leftovers(path)
        with lock_folder(tmp_path, wait=False) as locked:
            assert not locked
        assert folder.exists()
    assert path.exists()


def write_repeatedly(path, text):
    for _ in range(50):
        write_text(path, text)


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path, texts = tmp_path / "run.json", ["a" * 100_000, "b" * 200_000]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_repeatedly, args=(path, text)) for text in texts]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if path.exists():
            assert path.read_text() in texts
    assert [process.exitcode for process in processes] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_gone_after_the_next_write(tmp_path):
    path = tmp_path / "run.json"
    (tmp_path / "run.json.tmp").write_text("half of a longer text")
    write_text(path, "whole")
    assert read_folder(tmp_path) == {"run.json": "whole"}
