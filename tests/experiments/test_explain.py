"""Tests of experiments/explain.py."""

import pytest
from encoded_images import encode, smooth_pixels
from forked import run_script


@pytest.mark.slow
def test_files_and_splits_are_explained_and_mistakes_are_sentences(make_run, processes, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(smooth_pixels(40, 50)))
    (tmp_path / "empty").mkdir()
    arguments = (f"--workdir={make_run()}", f"--out={tmp_path / 'out'}")
    done = run_script(processes, tmp_path, "experiments/explain.py", *arguments, tmp_path / "a.png", "gone.png")
    assert done.returncode == 0, done.stderr
    assert "1 pictures, 1 files that could not be read." in done.stdout
    assert "Grad-CAM is left out" in done.stderr and "gone.png cannot be explained" in done.stderr
    done = run_script(processes, tmp_path, "experiments/explain.py", *arguments, "--split=validation", "--count=2")
    assert done.returncode == 0, done.stderr
    assert "2 pictures" in done.stdout
    for more, message in (
        ((), "give either files or --split"),
        (("a.png", "--split=test"), "give either files or --split"),
        (("a.png", "--measure=3"), "--measure needs --split"),
        ((tmp_path / "empty",), "there is no file to explain"),
    ):
        done = run_script(processes, tmp_path, "experiments/explain.py", *arguments, *more)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_measures_are_printed(make_run, processes, tmp_path):
    arguments = (f"--workdir={make_run()}", f"--out={tmp_path / 'out'}", "--split=validation", "--count=2")
    done = run_script(processes, tmp_path, "experiments/explain.py", *arguments, "--measure=4")
    assert done.returncode == 0, done.stderr
    assert "4 validation images" in done.stdout and "deletion AUC" in done.stdout and "2 pictures" in done.stdout
