"""Tests of the learning curves."""

import pytest
from pictures import is_picture
from PIL import Image

from pneumojax.reporting.figures import style, training


@pytest.mark.filterwarnings("error")
def test_learning_curves_of_a_log(tmp_path):
    path = tmp_path / "learning_curves.png"
    rows = [{"step": s, "epoch": s / 10, "train/loss": 1 / s, "perf/images_per_second": 900.0} for s in range(1, 31)]
    rows += [{"step": s, "epoch": s / 10, "val/loss": 0.5, "val/auroc": 0.9, "val/accuracy": 0.8} for s in (10, 20, 30)]
    training.save_learning_curves(path, rows, title="cnn")
    assert is_picture(path, style.BLUE) and is_picture(path, style.ORANGE)
    with Image.open(path) as image:
        three_panels = image.width
    training.save_learning_curves(path, rows[:30])
    with Image.open(path) as image:
        assert image.width < three_panels / 2
    assert is_picture(path, style.BLUE)
    training.save_learning_curves(path, [])
    assert is_picture(path) and not is_picture(path, style.BLUE)


def test_log_of_a_resumed_run_is_read_by_step():
    rows = [
        {"step": 1, "epoch": 0.5, "val/auroc": 0.6},
        {"step": 2, "epoch": 1.0, "val/auroc": 0.7},
        {"step": 3, "epoch": 1.5, "val/auroc": None, "val/loss": 0.3},
        {"step": 2, "epoch": 1.0, "val/auroc": 0.8},
        {"step": 4, "epoch": 2.0, "val/auroc": float("nan")},
    ]
    epochs, values = training._read_curve(rows, "val/auroc")
    assert epochs.tolist() == [0.5, 1.0]
    assert values.tolist() == [0.6, 0.8]
