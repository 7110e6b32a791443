"""The tests of figures draw them."""

import pytest


@pytest.fixture(autouse=True)
def drawn(draw_pictures):
    with draw_pictures():
        yield
