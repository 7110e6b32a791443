"""Tests of how figures are written, and that drawing loads and changes nothing else."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from pneumojax.reporting.figures import evaluation, style


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "confusion.png"
    evaluation.save_confusion_matrix(path, np.eye(2, dtype=int), ("NORMAL", "PNEUMONIA"))
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        evaluation.save_confusion_matrix(path, np.zeros((2, 2), int), ("NORMAL", "PNEUMONIA"))
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]
    assert path.read_bytes() == before


def test_what_a_killed_process_left_of_a_picture_is_gone_after_the_next(tmp_path):
    code = (
        "import os, signal; from pneumojax.reporting.figures import style;"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL);"
        f"style.save_figure(style.make_figure(1, 1), {str(tmp_path / 'a.png')!r})"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] != []
    style.save_figure(style.make_figure(1, 1), tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_import_is_light_and_drawing_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys; from pneumojax.evaluation import metrics;"
        "from pneumojax.reporting.figures import evaluation; import numpy as np;"
        "assert not {'matplotlib', 'sklearn', 'jax'} & set(sys.modules);"
        f"evaluation.save_confusion_matrix({str(tmp_path / 'a.png')!r}, np.eye(2, dtype=int), ('NORMAL', 'PNEUMONIA'));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
