"""Tests of how numbers and intervals are formatted."""

import pytest

from pneumojax.reporting.format import format_bounds, format_interval, format_score


@pytest.mark.parametrize(
    ("threshold", "text"),
    [(0.5, "0.5"), (0.31249, "0.312"), (3.2e-7, "3.2e-07"), (0.95, "0.950"), (0.99998, "0.999980"), (1.0, "1")],
)
def test_threshold_is_never_rounded_to_one(threshold, text):
    assert format_score(threshold) == text


@pytest.mark.parametrize(
    ("metric", "options", "text"),
    [
        ({"value": 0.9666, "ci95": [0.951, 0.98]}, {}, "0.967 (0.951 to 0.980)"),
        ({"value": 0.9666, "ci95": None}, {"spec": ".4f"}, "0.9666"),
        ({"value": None, "ci95": None}, {}, "-"),
        ({"value": None, "ci95": None}, {"missing": "none: One class."}, "none: One class."),
        ({"value": 0.5, "ci95": (0.4, 0.6), "standard_deviation": 0.1}, {"spec": ".1f"}, "0.5 ± 0.1 (0.4 to 0.6)"),
        ({"value": 0.5, "ci95": (0.4, 0.6), "standard_deviation": None}, {"spec": ".1f"}, "0.5 (0.4 to 0.6)"),
        ({"value": 0.01, "ci95": (-0.01, 0.03)}, {"spec": "+.2f"}, "+0.01 (-0.01 to +0.03)"),
        ({"value": 0.01, "ci95": None, "standard_deviation": 0.02}, {"spec": "+.2f"}, "+0.01 ± 0.02"),
    ],
)
def test_an_interval_follows_its_number(metric, options, text):
    assert format_interval(metric, **options) == text


def test_bounds():
    assert format_bounds((1234.5, 2345.0), ",.1f") == "1,234.5 to 2,345.0"
