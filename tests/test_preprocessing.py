"""Tests of the path from stored pixels to the network's input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pneumojax import preprocessing
from pneumojax.config import config_from_dict
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import make_mesh
from pneumojax.steps import init_state, make_graph, make_train_step


def test_training_augments_the_classes_of_the_config():
    losses = {}
    for classes in ("all", "normal"):
        config = config_from_dict({"model": "mlp", "mlp_widths": [4], "image_px": 16, "augment_classes": classes})
        graph, tx, mesh = make_graph(config), make_optimizer(config.optimizer, 2), make_mesh()
        step = jax.jit(make_train_step(config, graph, tx, np.ones(2, np.float32), mapped=False))
        images = np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint8)
        state = init_state(config, tx, mesh)
        for name, label in (("NORMAL", 0), ("PNEUMONIA", 1)):
            labels, index = jnp.full(4, label, jnp.int32), jnp.arange(4, dtype=jnp.int32)
            losses[classes, name] = float(step(state, images, labels, index, jax.random.key(0))[1]["loss"])
    assert losses["all", "NORMAL"] == pytest.approx(losses["normal", "NORMAL"], rel=1e-5)
    assert abs(losses["all", "PNEUMONIA"] - losses["normal", "PNEUMONIA"]) > 1e-3


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16), np.uint8)
LABELS = np.array([0, 1, 1, 0, 1, 0], np.int32)
INDEX = np.array([4, 0, 3], np.int32)
STILL = {"rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0, "brightness": 0.0, "contrast": 0.0, "gamma": 0.0}
STILL |= {"model": "mlp", "image_px": 16}


def test_pixels_are_scaled_to_the_range_of_a_network():
    pixels = preprocessing.scale_pixels(jnp.array([[[0, 51, 255]]], jnp.uint8))
    np.testing.assert_allclose(pixels, [[[0, 0.2, 1]]], rtol=1e-6)
    np.testing.assert_allclose(preprocessing.normalise(pixels), [[[[-2], [-1.2], [2]]]], rtol=1e-6)


def test_rows_are_gathered_by_number_or_by_batch():
    np.testing.assert_array_equal(preprocessing.gather(jnp.asarray(IMAGES), jnp.asarray(INDEX)), IMAGES[INDEX])
    np.testing.assert_array_equal(preprocessing.gather(jnp.asarray(IMAGES[None]), jnp.int32(0)), IMAGES)


def test_without_augmentation_a_batch_is_its_normalised_images_with_smoothed_targets():
    config = config_from_dict(STILL | {"task": "three_class", "label_smoothing": 0.3})
    keys = jax.random.split(jax.random.key(0), 3)
    prepare = jax.jit(preprocessing.make_prepare(config, mapped=False, image_px=None))
    batch, targets = prepare(IMAGES, 2 * LABELS[INDEX], INDEX, keys, keys)
    np.testing.assert_allclose(batch, ((np.float32(IMAGES[INDEX]) / 255 - 0.5) / 0.25)[..., None], atol=1e-6)
    np.testing.assert_allclose(targets, 0.7 * np.eye(3)[2 * LABELS[INDEX]] + 0.1, atol=1e-6)
    smaller = jax.jit(preprocessing.make_prepare(config, mapped=False, image_px=8))
    assert smaller(IMAGES, LABELS[INDEX], INDEX, keys, keys)[0].shape == (3, 8, 8, 1)


def test_mixup_blends_each_image_with_the_next_one_and_the_targets_alike():
    config = config_from_dict(STILL | {"mixup_alpha": 0.4})
    keys = jax.random.split(jax.random.key(1), 3)
    prepare = jax.jit(preprocessing.make_prepare(config, mapped=False, image_px=None))
    batch, targets = (np.asarray(part) for part in prepare(IMAGES, LABELS[INDEX], INDEX, keys, keys))
    plain = ((np.float32(IMAGES[INDEX]) / 255 - 0.5) / 0.25)[..., None]
    one_hot = np.eye(2)[LABELS[INDEX]]
    following = np.roll(plain, -1, axis=0)
    for i in range(3):
        share = np.vdot(batch[i] - following[i], plain[i] - following[i]) / np.sum((plain[i] - following[i]) ** 2)
        assert 0 <= share <= 1
        np.testing.assert_allclose(batch[i], share * plain[i] + (1 - share) * following[i], atol=1e-5)
        np.testing.assert_allclose(targets[i], share * one_hot[i] + (1 - share) * one_hot[(i + 1) % 3], atol=1e-5)


def test_one_of_the_cached_views_is_drawn_for_each_image():
    config = config_from_dict(STILL | {"model": "cnn", "cached_views": 4, "mixup_alpha": 0.0})
    prepare = preprocessing.make_prepare_features(config, mapped=False, image_px=None)
    features = jnp.arange(6 * 4).reshape(6, 4)
    keys, index = jax.random.split(jax.random.key(2), 400), jnp.arange(400) % 6
    drawn, targets = prepare(features, jnp.asarray(LABELS)[index], index, keys, keys)
    np.testing.assert_array_equal(drawn // 4, index)
    assert np.bincount(np.asarray(drawn) % 4).min() > 70
    np.testing.assert_array_equal(targets.argmax(1), LABELS[index])
