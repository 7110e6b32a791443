"""gate.py trains the gate of a run and writes its tables."""

import shutil

import pytest
from forked import run_script


@pytest.mark.slow
def test_the_gate_is_stored_and_its_tables_are_printed_and_written(make_run, processes, tmp_path):
    workdir = shutil.copytree(make_run(), tmp_path / "run")
    done = run_script(processes, tmp_path, "experiments/gate.py", f"--workdir={workdir}", timeout=300)
    assert done.returncode == 0, done.stderr
    text = (workdir / "gate.md").read_text()
    assert "| any | " in text and "| photographs in colour | 120 | " in text and "are not measured" in text
    assert (workdir / "gate.npz").exists() and f"Written to {workdir / 'gate.md'}." in done.stdout
    assert "Gate (once): learning to recognise them" in done.stderr


def test_a_missing_run_is_a_sentence(processes, tmp_path):
    done = run_script(processes, tmp_path, "experiments/gate.py", f"--workdir={tmp_path / 'none'}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "none" in done.stderr
