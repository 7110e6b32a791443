"""Tests of the compiled step of pretraining."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from trainer import (
    BATCH,
    PLAIN,
    draw_batches,
    draw_images,
    make_mesh,
)

from pneumojax import parallel, steps
from pneumojax.config import config_from_dict
from pneumojax.models import make_pretraining_model
from pneumojax.optimizer import make_optimizer
from pneumojax.pretrain_steps import make_pretrain_chunk
from pneumojax.sharding import AXIS, put


def test_a_pretraining_step_reports_sums_over_images():
    config = config_from_dict(PLAIN | {"model": "mlp"})
    mesh, tx = make_mesh(1), make_optimizer(config.optimizer, 100)
    chunk = make_pretrain_chunk(config, steps.make_graph(config, make_pretraining_model), tx, mesh)
    state = steps.init_state(config, tx, mesh, make_pretraining_model)
    # All embeddings are 0, so each view is as similar to its partner as to all others.
    state = dataclasses.replace(state, params=jax.tree.map(jnp.zeros_like, state.params))
    arrays = (
        put(draw_images()[0], mesh),
        parallel.put_batches(draw_batches(1), config, mesh),
        steps.make_key(config, mesh),
    )
    _, metrics = chunk(state, *arrays)
    np.testing.assert_allclose(metrics["loss"], [BATCH * np.log(2 * BATCH - 1)], rtol=1e-6)
    np.testing.assert_array_equal(metrics["count"], [BATCH])
    np.testing.assert_array_equal(metrics["correct"], [1.0])  # The first two views, by their positions.


def pretrain_steps(config, devices):
    """Returns (state, metrics) after three steps, as numpy arrays."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    tx = make_optimizer(config.optimizer, 10)
    chunk = make_pretrain_chunk(config, steps.make_graph(config, make_pretraining_model), tx, mesh)
    state = steps.init_state(config, tx, mesh, make_pretraining_model)
    draws = np.random.default_rng(0)
    # Images of different brightness, because normalisation would amplify rounding errors of nearly equal features.
    images = draws.normal(draws.uniform(30, 220, (64, 1, 1)), 40, (64, 32, 32)).clip(0, 255).astype(np.uint8)
    batches = draws.permutation(64)[:48].reshape(3, 16).astype(np.int32)
    arrays = put(images, mesh), parallel.put_batches(batches, config, mesh), steps.make_key(config, mesh)
    return jax.device_get(chunk(state, *arrays))


@pytest.mark.slow
def test_eight_devices_pretrain_as_one_does(compile_as_users_do):
    fields = {"image_px": 32, "cnn_widths": (4, 8), "rotate_degrees": 0.0, "shift": 0.0, "zoom": 0.0}
    fields |= {"optimizer": "sgd", "learning_rate": 1e-3, "warmup": 0.0, "crop_min_area": 0.5}
    config = config_from_dict(fields)
    with compile_as_users_do():
        (one, one_metrics), (eight, eight_metrics) = (pretrain_steps(config, devices) for devices in (1, 8))
    for (path, mine), other in zip(
        jax.tree_util.tree_leaves_with_path((eight, eight_metrics)), jax.tree.leaves((one, one_metrics)), strict=True
    ):
        scale = max(np.abs(other).max(), 1e-3)
        np.testing.assert_allclose(mine / scale, other / scale, atol=1e-4, err_msg=jax.tree_util.keystr(path))
    assert (one_metrics["count"] == 16).all()
    assert (one_metrics["loss"] / 16 < 1.2 * np.log(31)).all()  # By chance, one of 31 views is found.
