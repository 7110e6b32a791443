"""Compares the losses with scikit-learn, optax and closed forms."""

import jax
import numpy as np
import optax
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from pneumojax.losses import (
    TEMPERATURE,
    as_class_logits,
    compute_class_weights,
    compute_contrastive,
    compute_cross_entropy,
    make_targets,
)

LABELS = np.array([0, 2, 1, 1, 2, 2, 1, 2], np.int32)
LOGITS = np.random.default_rng(0).normal(0, 3, (8, 3)).astype(np.float32)
EQUAL = np.ones(3, np.float32)


def test_one_output_gives_the_probability_of_pneumonia():
    logits = LOGITS[:, :1]
    probabilities = jax.nn.softmax(as_class_logits(logits))
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp(-logits[:, 0])), rtol=1e-5)
    assert as_class_logits(LOGITS) is LOGITS


def test_cross_entropy_is_log_loss():
    losses = compute_cross_entropy(LOGITS, make_targets(LABELS, 3, 0.0), EQUAL)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    np.testing.assert_allclose(losses.mean(), log_loss(LABELS, probabilities), rtol=1e-5)
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(8), LABELS]), rtol=1e-4)


def test_cross_entropy_of_one_output_is_the_sigmoids():
    labels = np.minimum(LABELS, 1)
    logits = LOGITS[:, :1]
    losses = compute_cross_entropy(as_class_logits(logits), make_targets(labels, 2, 0.0), EQUAL[:2])
    np.testing.assert_allclose(losses, optax.sigmoid_binary_cross_entropy(logits[:, 0], labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_cross_entropy_is_optax_s(smoothing):
    targets = make_targets(LABELS, 3, smoothing)
    np.testing.assert_allclose(targets, optax.smooth_labels(jax.nn.one_hot(LABELS, 3), smoothing), rtol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    losses = compute_cross_entropy(LOGITS, targets, EQUAL)
    np.testing.assert_allclose(losses, optax.softmax_cross_entropy(LOGITS, targets), rtol=1e-5)


def test_cross_entropy_stays_finite_for_sure_and_wrong_logits():
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)
    targets = make_targets(np.array([1, 1]), 2, 0.0)
    np.testing.assert_allclose(compute_cross_entropy(logits, targets, EQUAL[:2]), [2e4, 0])


def test_each_image_weighs_as_its_class_and_a_mixture_as_its_mixture():
    weights = np.array([0.5, 1.0, 3.0], np.float32)
    targets = make_targets(LABELS, 3, 0.0)
    plain = compute_cross_entropy(LOGITS, targets, EQUAL)
    np.testing.assert_allclose(compute_cross_entropy(LOGITS, targets, weights), plain * weights[LABELS], rtol=1e-6)
    half = np.array([[0.5, 0.0, 0.5]], np.float32)
    ratio = compute_cross_entropy(LOGITS[:1], half, weights) / compute_cross_entropy(LOGITS[:1], half, EQUAL)
    np.testing.assert_allclose(ratio, 1.75, rtol=1e-6)


@pytest.mark.parametrize("task", ["binary", "three_class"])
def test_balanced_class_weights_are_scikit_learns_and_their_mean_over_the_images_is_1(task):
    labels = LABELS if task == "three_class" else np.minimum(LABELS, 1)
    weights = compute_class_weights(labels, task, "balanced")
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-6)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(compute_class_weights(labels, task, "none"), np.ones(len(expected)))


def test_a_class_without_images_weighs_1():
    # Label smoothing gives this class a share, so a weight as large as the split would dominate the others.
    labels = np.array([0, 1, 1, 1])
    weights = compute_class_weights(labels, "three_class", "balanced")
    np.testing.assert_allclose(weights, [2, 2 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(weights[labels].mean(), 1)


def test_the_contrastive_loss_is_its_definition():
    """Computes the loss in float64, in a loop over the views."""
    embeddings = np.random.default_rng(0).normal(size=(6, 2, 5))
    losses, correct = compute_contrastive(np.float32(embeddings))
    views = embeddings.reshape(12, 5)
    for i, view in enumerate(views):
        cosines = views @ view / np.linalg.norm(views, axis=1) / np.linalg.norm(view)
        others = [j for j in range(12) if j != i]
        partner = i + 1 if i % 2 == 0 else i - 1
        expected = -np.log(np.exp(cosines[partner] / 0.2) / np.exp(cosines[others] / 0.2).sum())
        np.testing.assert_allclose(losses[i], expected, rtol=1e-4)
        assert correct[i] == (partner == max(others, key=lambda j: cosines[j]))
    assert 0 < correct.sum() < 12
    np.testing.assert_allclose(compute_contrastive(np.float32(7 * embeddings))[0], losses, rtol=1e-4)


def compute_mean_contrastive(embeddings):
    return compute_contrastive(embeddings)[0].mean()


def test_the_contrastive_loss_and_its_gradients_are_optax_s():
    embeddings = np.random.default_rng(1).normal(size=(8, 2, 5)).astype(np.float32)

    def compute_optax(embeddings):
        return optax.losses.ntxent(embeddings.reshape(16, 5), np.repeat(np.arange(8), 2), TEMPERATURE)

    ours, theirs = (
        jax.jit(jax.value_and_grad(compute))(embeddings) for compute in (compute_mean_contrastive, compute_optax)
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


def test_the_contrastive_loss_of_equal_embeddings_is_that_of_chance_and_its_gradient_is_finite():
    loss, gradient = jax.jit(jax.value_and_grad(compute_mean_contrastive))(np.zeros((4, 2, 3), np.float32))
    np.testing.assert_allclose(loss, np.log(7), rtol=1e-5)
    assert np.isfinite(gradient).all()
