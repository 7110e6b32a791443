"""Tests of the figures of the benchmarks."""

import pytest
from pictures import is_picture
from PIL import Image

from experiments.benchmarks import figures
from pneumojax.reporting.figures.style import BLUE, ORANGE


@pytest.fixture(autouse=True)
def drawn(draw_pictures):
    with draw_pictures():
        yield


def make_points(*speeds):
    return [{"x": 2**i, "median": speed, "low": 0.9 * speed, "high": 1.1 * speed} for i, speed in enumerate(speeds)]


@pytest.mark.filterwarnings("error")
def test_each_curve_of_speeds_is_drawn(tmp_path):
    curves = {"ours": make_points(100, 190, 350), "torch": make_points(90, 160, 200)}
    figures.save_speeds(tmp_path / "both.png", curves, "Batch size", "Steps", ideal=True)
    assert is_picture(tmp_path / "both.png", BLUE) and is_picture(tmp_path / "both.png", ORANGE)
    figures.save_speeds(tmp_path / "one.png", {"ours": curves["ours"][:1]}, "Batch size", "Steps")
    assert is_picture(tmp_path / "one.png", BLUE) and not is_picture(tmp_path / "one.png", ORANGE)


@pytest.mark.filterwarnings("error")
def test_a_roofline_has_a_point_for_each_case_with_and_without_a_known_chip(tmp_path):
    points = [{"name": f"case {i}", "intensity": 10.0 * (i + 1), "flops": 1e12 * (i + 1)} for i in range(2)]
    for name, roofs in (("known", {"chip": (1e13, 1e12)}), ("unknown", {})):
        figures.save_roofline(tmp_path / f"{name}.png", points, roofs)
        assert is_picture(tmp_path / f"{name}.png", BLUE) and is_picture(tmp_path / f"{name}.png", ORANGE)
    with Image.open(tmp_path / "known.png") as known, Image.open(tmp_path / "unknown.png") as unknown:
        assert known.height > unknown.height  # The legend names the roof.
