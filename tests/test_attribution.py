"""Tests of attribution: each method against its definition, for every network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_networks import LARGE, NETWORKS, make_network

from pneumojax.attribution import FRACTIONS, METHODS, has_maps, make_attribute, make_removal_curves
from pneumojax.errors import UserError
from pneumojax.losses import as_class_logits
from pneumojax.preprocessing import normalise, scale_pixels
from pneumojax.steps import make_graph

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
SIGN = np.array([1, -1, 1], np.float32)


def make(name, task="binary", **fields):
    config, variables = make_network(name, task, **fields)

    @jax.jit
    def compute_log_odds(batch):
        model = nnx.merge(make_graph(config), variables["params"], variables["batch_stats"])
        logits = as_class_logits(model(batch, train=False))
        return SIGN[: len(batch)] * (jax.nn.logsumexp(logits[:, 1:], axis=1) - logits[:, 0])

    return config, variables, normalise(scale_pixels(jnp.asarray(IMAGES)), config.data.pixel_scaling), compute_log_odds


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in NETWORKS])
def test_every_method_works_with_every_network_or_says_why_not(name):
    config, variables, _, _ = make(name, "three_class")
    for method in METHODS:
        if name == "mlp" and method == "grad_cam":
            with pytest.raises(UserError, match="Grad-CAM needs a layer with spatial positions, which mlp does not"):
                make_attribute(config, method)
            continue
        maps = make_attribute(config, method)(variables, IMAGES, SIGN)
        assert maps.shape == IMAGES.shape and np.isfinite(maps).all()
        assert np.ptp(maps) > 0 or method == "grad_cam", method
    assert has_maps(config) == (name != "mlp")


def test_vgg_without_dense_layers_has_maps():
    config, variables, _, _ = make("vgg16", vgg_dense_widths=[])
    assert make_attribute(config, "grad_cam")(variables, IMAGES, SIGN).shape == IMAGES.shape


@pytest.mark.parametrize("name", ["mlp", "resnet9"])
def test_integrated_gradients_add_up_to_the_change_of_the_log_odds(name):
    config, variables, batch, compute_log_odds = make(name)
    maps = make_attribute(config, "integrated_gradients")(variables, IMAGES, SIGN)
    change = compute_log_odds(batch) - compute_log_odds(0 * batch)
    np.testing.assert_allclose(maps.sum((1, 2)), change, rtol=0.05, atol=0.02)


def test_occlusion_is_the_loss_of_log_odds_in_a_corner():
    config, variables, batch, compute_log_odds = make("cnn")
    maps = make_attribute(config, "occlusion")(variables, IMAGES, SIGN)
    side = round(32 / 6)  # Only the first square covers the corner.
    loss = compute_log_odds(batch) - compute_log_odds(batch.at[:, :side, :side].set(0))
    np.testing.assert_allclose(maps[:, 0, 0], loss, rtol=1e-4, atol=1e-6)


def test_grad_cam_of_a_pooled_network_weights_the_maps_by_the_head():
    config, variables, batch, _ = make("cnn")
    model = nnx.merge(make_graph(config), variables["params"], variables["batch_stats"])
    features, kernel = model.extract_maps(batch, train=False), variables["params"]["head"]["linear"]["kernel"][:, 0]
    positions = features.shape[1] * features.shape[2]
    cam = np.maximum(SIGN[:, None, None] * (features @ kernel) / positions, 0)
    maps = make_attribute(config, "grad_cam")(variables, IMAGES, SIGN)
    np.testing.assert_allclose(maps, jax.image.resize(cam, IMAGES.shape, "linear"), rtol=1e-4, atol=1e-6)


def test_the_curves_end_at_the_whole_and_the_grey_image_and_follow_the_map():
    config, variables, batch, compute_log_odds = make("cnn")
    maps = make_attribute(config, "integrated_gradients")(variables, IMAGES, SIGN)
    deletion, insertion = make_removal_curves(config)(variables, IMAGES, SIGN, maps)
    whole, grey = jax.nn.sigmoid(compute_log_odds(batch)), jax.nn.sigmoid(compute_log_odds(0 * batch))
    for curve, first, last in ((deletion, whole, grey), (insertion, grey, whole)):
        assert curve.shape == (3, len(FRACTIONS))
        np.testing.assert_allclose(curve[:, 0], first, rtol=1e-5)
        np.testing.assert_allclose(curve[:, -1], last, rtol=1e-5)
    worst, _ = make_removal_curves(config)(variables, IMAGES, SIGN, -maps)
    assert (deletion.mean(1) < worst.mean(1)).all()
