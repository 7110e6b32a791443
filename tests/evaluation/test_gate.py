"""Tests of the gate: descriptions, distances, flags and its file."""

import dataclasses

import numpy as np
import pytest
from sklearn.decomposition import PCA

from pneumojax.errors import UserError
from pneumojax.evaluation.gate import THUMBNAIL_PX, Gate, describe_images, read_gate, write_gate

T = THUMBNAIL_PX**2 + 6


def make_gate(**fields):
    """Makes a gate for two features that looks at the mean grey value only."""
    mean, scale = np.zeros(T + 2, np.float32), np.ones(T + 2, np.float32)
    weights = np.zeros((2, T), np.float32)
    weights[:, -6] = 1, -1
    gate = {
        "model": "1-a",
        "names": np.array(["bright", "dark"]),
        "mean": mean,
        "scale": scale,
        "weights": weights,
        "biases": np.array([-200, 50], np.float32),
        "defect_limit": 0,
        "components": np.eye(T + 2, dtype=np.float32)[-2:],
        "variances": np.array([4, 1], np.float32),
        "residual_variance": 1e9,
        "far_limit": 9,
    }
    return Gate(**gate | fields)


def fill(*greys):
    return np.stack([np.full((32, 32), grey, np.uint8) for grey in greys])


def test_an_image_has_its_most_probable_defect_and_can_be_far():
    features = np.array([[0, 0], [0, 0], [5.9, 0], [6.1, 0], [0, 3.1]], np.float32)
    flags = make_gate().check(fill(201, 100, 199, 49, 51), features)
    assert flags == [["bright"], [], [], ["far", "dark"], ["far"]]


@pytest.mark.parametrize("image_px", [10, 24, 40, 96])
def test_a_thumbnail_is_the_mean_over_equal_areas_of_any_size(image_px):
    ramp = np.broadcast_to(np.arange(image_px, dtype=np.uint8), (2, image_px, image_px))
    described = describe_images(ramp)
    assert described.shape == (2, T) and described.dtype == np.float32
    pattern, mean = described[0, :-6].reshape(THUMBNAIL_PX, THUMBNAIL_PX), described[0, -6]
    assert mean == pytest.approx((image_px - 1) / 2)
    np.testing.assert_allclose(pattern, pattern[:1].repeat(THUMBNAIL_PX, 0), atol=1e-5)
    if image_px % THUMBNAIL_PX == 0:
        np.testing.assert_allclose(np.diff(pattern[0]), np.diff(pattern[0])[0], rtol=1e-3)
    np.testing.assert_allclose(described[0, -2:], np.log1p([0, 1]), atol=1e-6)


def test_the_pattern_does_not_depend_on_brightness_and_the_statistics_do():
    image = np.random.default_rng(0).integers(20, 90, (1, 48, 48)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    dark, bright, clipped = (describe_images(image + np.uint8(grey))[0] for grey in (0, 100, 165))
    np.testing.assert_allclose(dark[:-6], bright[:-6], atol=1e-4)
    assert bright[-6] - dark[-6] == pytest.approx(100, abs=1e-3)
    assert dark[-3] == 0 < clipped[-3]


def test_distances_are_the_likelihoods_of_probabilistic_pca():
    rng = np.random.default_rng(0)
    scaled = rng.normal(size=(300, T + 2)) * np.linspace(0.1, 3, T + 2)
    pca = PCA(5, svd_solver="full").fit(scaled - scaled.mean(0))
    gate = make_gate(
        components=pca.components_, variances=pca.explained_variance_, residual_variance=pca.noise_variance_
    )
    distances = gate.measure_distance(scaled - scaled.mean(0))
    np.testing.assert_allclose(np.diff(distances), -2 * np.diff(pca.score_samples(scaled - scaled.mean(0))), rtol=1e-5)


def test_a_stored_gate_is_the_same_and_damage_is_a_sentence(tmp_path):
    gate, path = make_gate(), tmp_path / "gate.npz"
    write_gate(path, gate)
    again = read_gate(path)
    for name, value in dataclasses.asdict(gate).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert (again.model, again.version) == (gate.model, gate.version)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:200], content[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"gate.npz is damaged .* Delete it."):
            read_gate(path)
    np.savez(path, model="1-a")
    with pytest.raises(UserError, match="is damaged"):
        read_gate(path)
