"""Tests of the storage of a search: which files are accepted, and what happens if a file cannot be written."""

import sqlite3

import pytest
from searches import run_trials

from pneumojax.errors import UserError

optuna = pytest.importorskip("optuna")
from pneumojax.training import search, search_storage  # noqa: E402


def test_a_full_disk_is_named_and_does_not_end_the_heartbeats(open_search, trials_by_formula, monkeypatch):
    def fail(self, *arguments, **options):
        raise optuna.exceptions.StorageInternalError from sqlite3.OperationalError("database or disk is full")

    def fill_the_disk(*arguments):
        for name in ("record_heartbeat", "set_trial_state_values", "get_trial"):
            monkeypatch.setattr(optuna.storages.RDBStorage, name, fail)
        opened.study._storage.record_heartbeat(0)
        return 0.5

    opened = open_search()
    monkeypatch.setattr(search, "_run_trial", fill_the_disk)
    with pytest.raises(UserError, match="study.db cannot be written .*disk is full.*Free some disk space"):
        run_trials(opened, 1)


def make_foreign(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE patients (name TEXT)")


def make_another_study(path):
    optuna.create_study(storage=f"sqlite:///{path}", study_name="mine")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(b"trial,auroc\n" * 100), "cannot be used as the storage of a search"),
        (lambda path: path.write_bytes(path.read_bytes()[:50_000]), "cannot be used as the storage of a search"),
        (lambda path: path.write_bytes(path.read_bytes()[:10]), "cannot be used as the storage of a search"),
        (lambda path: (path.unlink(), make_foreign(path)), "is a database of another program"),
        (lambda path: (path.unlink(), make_another_study(path)), "is a database of another program"),
    ],
    ids=["text", "cut", "short", "foreign", "other study"],
)
def test_a_damaged_or_foreign_file_is_refused_and_left_as_it_is(
    open_search, trials_by_formula, tmp_path, damage, sentence
):
    run_trials(open_search(), 1)
    path = tmp_path / "study.db"
    damage(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=sentence) as caught:
        open_search()
    assert str(caught.value).startswith(str(path))
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_file_that_stays_locked_is_told(open_search, trials_by_formula, tmp_path, monkeypatch):
    monkeypatch.setattr(search_storage, "LOCK_SECONDS", 1)
    opened = open_search()
    with sqlite3.connect(tmp_path / "study.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="was locked by another process for more than 1 s"):
            run_trials(opened, 1)
        with pytest.raises(UserError, match="was locked by another process"):
            open_search()
    assert len(run_trials(open_search(), 1)) == 1
