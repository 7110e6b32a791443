"""Tests of experiments/export_parity.py, from its flags to its rows and its page."""

import json

import pytest
from forked import run_script


@pytest.mark.slow
def test_the_command_adds_a_row_and_writes_the_page(processes, tmp_path):
    results = tmp_path / "rows.jsonl"
    done = run_script(
        processes, tmp_path, "experiments/export_parity.py", "--rows=speedrun", f"--results={results}", timeout=300
    )
    assert done.returncode == 0, done.stderr
    [row] = map(json.loads, results.read_text().splitlines())
    assert row["network"] == "speedrun" and f"1 rows added to {results}" in done.stdout
    assert "| speedrun | 16 | 2 | 8,257 | " in results.with_suffix(".md").read_text()


def test_an_unknown_network_is_refused_with_those_there_are(processes, tmp_path):
    done = run_script(processes, tmp_path, "experiments/export_parity.py", "--rows=none")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "--rows: none is not a network or preset. There are mlp, cnn, " in done.stderr
