"""Loads the initial weights of a training from a file."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from pneumojax.config import ModelConfig
from pneumojax.models.weight_import import check_pretraining_images, load_pretrained
from pneumojax.preprocessing import PIXEL_MEAN, PIXEL_STD
from pneumojax.sharding import put
from pneumojax.state import TrainState
from pneumojax.training.plan import TrainingPlan


def load_initial_weights(plan: TrainingPlan, states: Sequence[TrainState]) -> list[TrainState]:
    """Replaces the weights of initial states by the weights in the file `--pretrained`.

    It logs a warning if the file is a backbone of pretrain.py and its images were not the training images of the plan.

    Args:
      plan: the training.
      states: the initial state of a run, or of each replica. If the file has no classifier that fits the network, the
        states keep the random weights of their classifier.

    Returns:
      The states with the new weights.

    Raises:
      UserError: the file cannot be read or belongs to another network.
    """
    model = plan.config.model
    assert model.pretrained is not None
    loaded = [_replace_weights(model.pretrained, model, state, plan.mesh) for state in states]
    check_pretraining_images(model.pretrained, plan.data.fingerprint)
    return loaded


def _replace_weights(path: str, model: ModelConfig, state: TrainState, mesh: Mesh) -> TrainState:
    fresh = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    loaded = load_pretrained(path, model, fresh, PIXEL_MEAN, PIXEL_STD)
    # The weights are copied twice because a donated state must not contain a buffer twice.
    arrays, average = (jax.tree.map(lambda leaf: put(np.array(leaf), mesh), loaded) for _ in range(2))
    return dataclasses.replace(state, **arrays, ema=average if state.ema else {})
