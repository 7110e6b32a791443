"""Tests of experiments/card.py."""

import pytest
from forked import run_script


@pytest.mark.slow
def test_cards_are_written_and_mistakes_are_sentences(make_run, processes, tmp_path):
    workdir, out = make_run(), tmp_path / "cards"
    (tmp_path / "file").write_text("")
    arguments = (f"--workdir={workdir}", f"--out={out}")
    done = run_script(processes, tmp_path, "experiments/card.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"Written to {out}: model_card.md, data_card.md" in done.stdout
    assert "has not been evaluated, so the cards have no results" in done.stdout
    assert "this run has not been evaluated" in (out / "model_card.md").read_text()
    for flags, message in (
        (arguments, f"{out} exists already"),
        ((f"--workdir={tmp_path / 'gone'}", f"--out={tmp_path / 'b'}"), "holds no checkpoints. Train a run there"),
        ((f"--workdir={workdir}", f"--out={tmp_path / 'file' / 'b'}"), "cannot be written"),
    ):
        done = run_script(processes, tmp_path, "experiments/card.py", *flags)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists()


def test_cards_are_in_the_folder_of_the_run_by_default(make_run, processes, tmp_path):
    workdir = make_run(seed=1)
    done = run_script(processes, tmp_path, "experiments/card.py", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert (workdir / "cards" / "stard_ai.md").is_file()
