"""Tests of the page of the speedrun."""

import numpy as np
import pytest
from scipy import stats
from speedrun_rows import make_rows

from experiments.benchmarks import speedrun_page


def test_the_interval_is_students():
    values = [0.99, 0.992, 0.995, 0.991]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert speedrun_page.compute_interval(values) == pytest.approx(expected)


def test_the_table_compares_seed_by_seed_with_the_first_row_and_shows_of_equal_ones_the_last():
    rows = make_rows([0.98, 0.99], epochs=4) + make_rows([0.99, 0.992, 0.994], epochs=4)
    rows += make_rows([0.995, 0.998], first_seed=1, dtype="bfloat16")
    page = speedrun_page.format_page(rows)
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert len(lines) == 2
    assert (
        "| epochs=4 | 0 to 2 | 0.9920 ± 0.0020 (0.9870 to 0.9970) |  | 3 of 3 | 3.00 ± 1.00 | 3.00 ± 0.00 | 9.0 | 33 |"
        in lines[0]
    )
    # Both commands have seeds 1 and 2: 0.995 - 0.992 and 0.998 - 0.994.
    assert "| epochs=30, dtype=bfloat16 | 1 to 2 |" in lines[1] and "+0.0035 (-0.0029 to +0.0099), 2 seeds" in lines[1]
