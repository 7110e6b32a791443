"""Tests of the figures of intervals."""

import pytest
from pictures import is_picture

from pneumojax.reporting.figures import intervals, style


@pytest.mark.filterwarnings("error")
def test_intervals_are_drawn_where_they_exist(tmp_path):
    groups = {
        "network": {"a": {"value": 0.9, "ci95": [0.8, 0.95]}, "b": {"value": 0.2, "ci95": None}},
        "linear": {"c": {"value": None, "ci95": None, "reason": "One size."}},
    }
    intervals.save_intervals(tmp_path / "intervals.png", groups, "test")
    assert is_picture(tmp_path / "intervals.png", style.BLUE)
    assert is_picture(tmp_path / "intervals.png", style.ORANGE)  # the heading
    nothing = {name: {"c": {"value": None, "ci95": None, "reason": "One class."}} for name in groups}
    intervals.save_intervals(tmp_path / "nothing.png", nothing)
    assert is_picture(tmp_path / "nothing.png")


def test_reported_figures_stand_beside_ours_also_where_ours_does_not_exist(tmp_path):
    ours = [{"value": 0.8, "ci95": [0.7, 0.9]}, {"value": 0.5, "ci95": None}, {"value": None, "ci95": None}]
    rows = [{"name": f"system {i}", "reported": 0.6, "ours": one} for i, one in enumerate(ours)]
    intervals.save_reported(tmp_path / "reported.png", rows, "test")
    assert is_picture(tmp_path / "reported.png", style.BLUE)
    assert is_picture(tmp_path / "reported.png", style.ORANGE)
