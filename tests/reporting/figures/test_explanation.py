"""Tests of the figures of explanations."""

import numpy as np
import pytest
from pictures import is_picture

from pneumojax.reporting.figures.explanation import (
    BLUR_SHARES,
    OPACITY,
    colour_map,
    overlay_map,
    save_cascade,
    save_explanation,
)
from pneumojax.reporting.figures.style import COLOURS


@pytest.mark.filterwarnings("error")
def test_an_image_is_shown_beside_its_maps(tmp_path):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    maps = {name: np.random.default_rng(0).normal(size=(16, 16)) for name in BLUR_SHARES}
    save_explanation(tmp_path / "a.png", image, maps, "NORMAL", "$a\n_b^{.png")
    save_explanation(tmp_path / "b.png", image, {"occlusion": np.zeros((16, 16))}, "NORMAL", "b.png")
    assert is_picture(tmp_path / "a.png") and is_picture(tmp_path / "b.png")


def test_positive_is_red_negative_blue_and_zero_transparent():
    values = np.zeros((10, 10))
    values[:2], values[-2:] = 1, -1
    red, blue, none = (colour_map(values, 0)[i, 0] for i in (0, -1, 5))
    assert red[0] > red[2] and blue[2] > blue[0]
    assert red[3] == blue[3] == pytest.approx(OPACITY) and none[3] == 0


def test_a_map_is_painted_on_its_image():
    image, values = np.full((10, 10), 100, np.uint8), np.zeros((10, 10))
    np.testing.assert_array_equal(overlay_map(image, values, "occlusion"), np.full((10, 10, 3), 100))
    values[:5] = 1
    painted = overlay_map(image, values, "grad_cam")
    assert painted.dtype == np.uint8 and painted[0, 0, 0] > 100 > painted[0, 0, 2]
    np.testing.assert_array_equal(painted[5:], 100)


@pytest.mark.filterwarnings("error")
def test_the_cascade_is_drawn_without_the_control_and_without_missing_values(tmp_path):
    stages = {"head": {"value": 0.4, "ci95": [0.3, 0.5]}, "stem": {"value": 0.1, "ci95": None}}
    methods = {
        "occlusion": {"cascade": stages},
        "grad_cam": {"cascade": stages | {"stem": {"value": None, "ci95": None}}},
        "random": {"cascade": {}},
    }
    save_cascade(tmp_path / "a.png", methods, "validation")
    assert is_picture(tmp_path / "a.png") and is_picture(tmp_path / "a.png", COLOURS[1])
    assert not is_picture(tmp_path / "a.png", COLOURS[2])
