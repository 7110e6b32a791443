"""Tests of experiments/audit.py."""

from forked import run_script


def test_script_without_a_run_ends_in_a_sentence_and_leaves_nothing(processes, tmp_path):
    done = run_script(processes, tmp_path, "experiments/audit.py", f"--workdir={tmp_path / 'none'}")
    assert done.returncode == 1
    assert f"{tmp_path / 'none'} holds no checkpoints" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()
