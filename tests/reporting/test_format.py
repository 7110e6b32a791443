import pytest

from pneumojax.reporting.format import format_score


@pytest.mark.parametrize(
    ("threshold", "text"),
    [(0.5, "0.5"), (0.31249, "0.312"), (3.2e-7, "3.2e-07"), (0.95, "0.950"), (0.99998, "0.999980"), (1.0, "1")],
)
def test_threshold_is_never_rounded_to_one(threshold, text):
    assert format_score(threshold) == text
