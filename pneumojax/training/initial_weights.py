"""Loads the initial weights of a training from a file."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax.config import Config
from pneumojax.models.weight_import import load_pretrained
from pneumojax.sharding import put
from pneumojax.state import TrainState
from pneumojax.steps import PIXEL_MEAN, PIXEL_STD


def load_initial_weights(config: Config, state: TrainState, mesh: Mesh) -> TrainState:
    """Replaces the weights of a fresh state by those of the config's file.

    Args:
      config: the config of the run. Its `model.pretrained` is the file.
      state: the fresh state.
      mesh: the devices.

    Raises:
      UserError: the file cannot be read or belongs to another network.
    """
    fresh = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    loaded = load_pretrained(config.model.pretrained, config.model, fresh, PIXEL_MEAN, PIXEL_STD)
    # The weights are copied twice because a donated state must not contain a buffer twice.
    arrays, average = (jax.tree.map(lambda leaf: put(np.array(leaf), mesh), loaded) for _ in range(2))
    return dataclasses.replace(state, **arrays, ema=average if state.ema else {})
