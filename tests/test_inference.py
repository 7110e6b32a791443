"""Tests of prediction and of the extraction of features: each image has the result of the plain network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from trainer import Trainer, draw_images, make_mesh

from pneumojax.data.augment import make_augment
from pneumojax.inference import make_extract, make_predict
from pneumojax.sharding import put
from pneumojax.steps import make_graph

FROZEN = {"frozen": ("conv1", "norm1", "conv2", "norm2"), "cached_views": 3}


@functools.cache
def make_run(**fields):
    """Returns (config, graph, variables) of a network with random weights. The variables are on eight devices."""
    trainer = Trainer(8, **fields)
    return trainer.config, make_graph(trainer.config), trainer.state.eval_variables()


def scale(images):
    return np.float32(images) / 255


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply_network(graph, variables, pixels, features_only=False):
    """Returns the outputs, or the features, of images with pixels 0..1."""
    model = nnx.merge(graph, variables["params"], variables["batch_stats"])
    inputs = (pixels[..., None] - 0.5) / 0.25
    return model.extract(inputs, train=False) if features_only else model(inputs, train=False)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("task", ["binary", "three_class"])
def test_predictions_of_many_batches_are_those_of_the_network(task, streamed):
    _, graph, variables = make_run(task=task)
    images, mesh = draw_images()[0], make_mesh(8)
    batches = np.random.default_rng(0).permutation(len(images))[:48].reshape(3, 16).astype(np.int32)
    predict = make_predict(graph, mesh, streamed=streamed)
    if streamed:
        logits = predict(variables, put(images[batches], mesh, axis=1))
    else:
        logits = predict(variables, put(images, mesh), put(batches, mesh, axis=1))
    expected = np.asarray(apply_network(graph, jax.device_get(variables), scale(images)))
    if task == "binary":
        expected = np.concatenate([np.zeros_like(expected), expected], axis=1)
    np.testing.assert_allclose(logits, expected[batches], atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"model": "flatiron", "image_px": 32}], ids=["pooled", "maps"])
def test_features_are_those_of_the_backbone_and_cost_nothing(fields):
    _, graph, variables = make_run(**fields)
    images, mesh = draw_images()[0][:16], make_mesh(8)
    batch, programs = put(images[None], mesh, axis=1), []
    for features in (False, True):
        predict = make_predict(graph, mesh, streamed=True, features=features)
        programs.append((predict.lower(variables, batch).compile().cost_analysis()["flops"], predict(variables, batch)))
    (flops, plain), (more_flops, (logits, values)) = programs
    np.testing.assert_allclose(logits, plain, atol=1e-6)
    expected = np.asarray(apply_network(graph, jax.device_get(variables), scale(images), True))
    np.testing.assert_allclose(values[0], expected.mean(tuple(range(1, expected.ndim - 1))), atol=1e-5)
    assert more_flops < 1.05 * flops


def test_cached_features_are_classified_by_their_first_view():
    _, graph, variables = make_run(**FROZEN)
    images, mesh = draw_images()[0][:16], make_mesh(8)
    features = np.asarray(apply_network(graph, jax.device_get(variables), scale(images), True))
    views = np.stack([features, np.full_like(features, np.nan)], axis=1)
    batches = put(np.arange(16, dtype=np.int32)[None], mesh, axis=1)
    cached = make_predict(graph, mesh, cached=True)(variables, put(views, mesh), batches)
    plain = make_predict(graph, mesh)(variables, put(images, mesh), batches)
    np.testing.assert_allclose(cached, plain, atol=1e-5)


def test_view_0_is_the_image_and_each_other_view_is_augmented_by_its_own_key():
    config, graph, variables = make_run(**FROZEN, brightness=0.3, flip=True)
    mesh, (images, labels), key = make_mesh(8), draw_images(), jax.random.key(5)
    extract = make_extract(config, graph, mesh)
    index = np.array([3, 0, 9, 3, 21, 40, 63, 8], np.int32)
    arrays = put(images, mesh), put(labels, mesh), put(index, mesh, axis=0)
    host, augment = jax.device_get(variables), jax.jit(make_augment(config.augment))
    for view in range(3):
        features = extract(variables, *arrays, put(np.array(view, np.int32), mesh), key)
        pixels = jnp.asarray(scale(images[index]))
        if view:
            keys = [jax.random.fold_in(jax.random.fold_in(key, view), i) for i in index]
            pixels = augment(jnp.stack(keys), pixels)
        np.testing.assert_allclose(features, apply_network(graph, host, pixels, True), atol=1e-5)
        np.testing.assert_array_equal(features[0], features[3])  # The same image at another position.


def test_views_are_combined_as_the_mean_of_their_probabilities():
    config, graph, variables = make_run(brightness=0.3)
    mesh, images = make_mesh(8), draw_images()[0][:16]
    views = dataclasses.replace(config.augment, test_time_views=3)
    batches = put(np.arange(16, dtype=np.int32)[None], mesh, axis=1)
    logits = make_predict(graph, mesh, views)(variables, put(images, mesh), batches)[0]
    augment, host = jax.jit(make_augment(config.augment)), jax.device_get(variables)
    pixels = [jnp.asarray(scale(images))]
    pixels += [augment(jnp.broadcast_to(key, 16), pixels[0]) for key in jax.random.split(jax.random.key(0), 2)]
    positive = np.mean([jax.nn.sigmoid(apply_network(graph, host, one)[:, 0]) for one in pixels], axis=0)
    np.testing.assert_allclose(np.exp(logits), np.stack([1 - positive, positive], 1), atol=1e-5)
