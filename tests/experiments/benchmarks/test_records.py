"""Tests of the rows of results files."""

import subprocess
import sys

from experiments.benchmarks import records


def test_a_row_keeps_the_words_that_say_what_is_measured(monkeypatch):
    own = ["--model=cnn", "--epochs", "2", "--noaugment"]
    places = ["--results", "/home/me/rows.jsonl", "--peer_python=/home/me/bin/python", "--resume"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *places[:2], *own, *places[2:]])
    assert records.list_measured_words() == own


def test_rows_in_the_results_leave_the_commit_as_it_is(monkeypatch, tmp_path):
    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=e@x")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    assert records.find_commit() is None
    records.RESULTS.mkdir()
    for name in ("code.py", "results/rows.jsonl"):
        (tmp_path / name).write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = records.find_commit()
    (tmp_path / "results/rows.jsonl").write_text("2\n")
    assert len(commit) == 12 and records.find_commit() == commit
    (tmp_path / "code.py").write_text("2\n")
    assert records.find_commit() == f"{commit}+"
