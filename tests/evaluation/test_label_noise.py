"""Checks the estimate of wrong labels on made-up networks."""

import numpy as np
import pytest

from pneumojax.evaluation.label_noise import estimate_label_noise


def draw(share, images=3000):
    """Returns labels of which a share is wrong, and the probabilities of a network that knows the true classes."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, images)
    wrong = rng.random(images) < share
    labels = np.where(wrong, (true + rng.integers(1, 3, images)) % 3, true)
    probabilities = np.full((images, 3), 0.05) + 0.85 * np.eye(3)[true]
    return labels, probabilities, wrong.mean()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_a_network_that_knows_the_classes_finds_the_share_of_wrong_labels(share):
    labels, probabilities, wrong = draw(share)
    result = estimate_label_noise(labels, probabilities)
    assert result["share"] == pytest.approx(wrong, abs=1e-9)
    assert np.sum(result["counts"]) == result["confident"] == len(labels)


def test_images_without_a_confident_class_are_left_out():
    probabilities = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.34, 0.33, 0.33]])
    result = estimate_label_noise(np.array([0, 1, 2, 2]), probabilities)
    # The mean probability of class 2 among its two images is 0.565.
    assert result == {"share": 0.0, "confident": 3, "counts": np.eye(3, dtype=int).tolist()}


def test_a_class_without_images_counts_for_none():
    result = estimate_label_noise(np.array([0, 1]), np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]]))
    assert result["counts"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0], [[0.5, 0.5], [0.5, 0.5]], "Lengths differ"),
        ([2], [[0.5, 0.5]], "label must be"),
        ([], np.zeros((0, 2)), "no image"),
    ],
)
def test_bad_input_is_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        estimate_label_noise(np.array(labels, int), np.array(probabilities))
