"""Tests of the figures of a data set."""

import numpy as np
import pytest
from pictures import is_picture

from pneumojax.reporting.figures import data, style


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_pictures_of_data(tmp_path, classes):
    names = ("NORMAL", "BACTERIA", "VIRUS")
    rng = np.random.default_rng(0)
    images, of = rng.integers(0, 256, (30, 16, 16)).astype(np.uint8), np.arange(30) % classes
    averages = {names[c]: images[of == c].mean(axis=0) for c in range(classes)}
    data.save_average_images(tmp_path / "averages.png", averages)
    counts = {name: int(np.sum(of == c)) for c, name in enumerate(names)}
    data.save_class_counts(tmp_path / "counts.png", {"train": counts, "test": dict.fromkeys(names, 0)})
    data.save_distributions(tmp_path / "values.png", np.arange(30.0), of, names, "number")
    data.save_images(tmp_path / "images.png", images[:5], 3, ["caption"] * 5, "title")
    data.save_images_per_patient(tmp_path / "patients.png", np.array([1, 1, 4]))
    data.save_sizes(tmp_path / "sizes.png", rng.integers(300, 900, 30), rng.integers(300, 900, 30), of, names)
    for name in ("counts", "values"):
        for c, colour in enumerate(data.CLASS_COLOURS):
            assert is_picture(tmp_path / f"{name}.png", colour) == (c < classes)
    assert is_picture(tmp_path / "patients.png", style.BLUE)
    assert all(is_picture(path) for path in tmp_path.glob("*.png"))


def test_averages_of_one_class_and_files_of_one_size_are_told_not_drawn(tmp_path, monkeypatch):
    reasons = []
    monkeypatch.setattr(data, "save_reason", lambda path, heading, metric: reasons.append(metric["reason"]))
    data.save_average_images(tmp_path / "averages.png", {"VIRUS": np.ones((4, 4))})
    side = np.full(1200, 224)
    data.save_sizes(tmp_path / "sizes.png", side, side, np.arange(1200) % 3, ("A", "B", "C"))
    data.save_sizes(tmp_path / "sizes.png", side, np.arange(1200), np.arange(1200) % 3, ("A", "B", "C"))
    assert reasons == [
        "VIRUS is the only class, so there is nothing to compare.",
        "All 1,200 files have 224 x 224 pixels: they were resized before packaging.",
    ]


def test_images_keep_their_greys(tmp_path):
    """Tests that constant images are shown with their own grey value."""
    images = [np.full((8, 8), grey, np.uint8) for grey in (0, 100, 255)]
    data.save_images(tmp_path / "images.png", images, 3)
    for grey in (0, 100, 255):
        assert is_picture(tmp_path / "images.png", f"#{grey:02X}{grey:02X}{grey:02X}")
