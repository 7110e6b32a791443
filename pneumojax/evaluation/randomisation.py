"""Replaces the layers of a trained network by new ones, step by step from the output to the input.

References:
  Adebayo et al., "Sanity Checks for Saliency Maps", 2018: the cascading randomisation of a network.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from pneumojax.evaluation.run import Run
from pneumojax.models import make_model
from pneumojax.models.layers import BatchNorm, Network

# Largest number of steps. If a network has more stages, neighbouring stages become random in the same step.
MAX_STEPS = 8


def randomise_in_steps(run: Run, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Replaces the parameters and batch statistics of more and more stages by those of a new initialisation.

    Args:
      run: the run.
      seed: seed of the initialisation.

    Returns:
      {stage: {"params", "batch_stats"}} with numpy arrays, from the output to the input of the network. All layers from
      the named stage to the output are new. With the last stage, nothing is left of the run.
    """
    model = make_model(run.config.model, run.config.data.image_px, jax.random.key(seed + 1))
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    new = {kind: jax.device_get(nnx.to_pure_dict(nnx.state(model, variable))) for kind, variable in kinds.items()}
    steps: dict[str, dict[str, Any]] = {}
    replaced: set[str] = set()
    for stage, layers in reversed(group_layers(model).items()):
        replaced |= set(layers)
        steps[stage] = {
            kind: {name: (new if name in replaced else run.variables)[kind][name] for name in new[kind]} for kind in new
        }
    return steps


def group_layers(model: Network) -> dict[str, list[str]]:
    """Groups the layers of a network by depth.

    A stage has the layers whose names are equal up to the first underscore, and the batch normalisation that follows.

    Args:
      model: the network. It defines its layers in the order of their depth.

    Returns:
      {stage: names of its layers}, from the input to the output, with at most MAX_STEPS stages.
    """
    stages: list[list[str]] = []
    for name, layer in vars(model).items():
        if not isinstance(layer, nnx.Module):
            continue
        same = stages and name.split("_")[0] == stages[-1][0].split("_")[0]
        if same or isinstance(layer, BatchNorm):
            stages[-1].append(name)
        else:
            stages.append([name])
    parts = np.array_split(np.arange(len(stages)), min(len(stages), MAX_STEPS))
    joined = [[name for i in part for name in stages[i]] for part in parts]
    return {layers[0].split("_")[0]: layers for layers in joined}
