"""Tests of the path from stored pixels to the network's input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
