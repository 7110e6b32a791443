"""Makes the optimizer and the learning rate schedule of a training."""

import functools
import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from pneumojax.config import CLASSIFIER, OptimizerConfig


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Makes the learning rate schedule: a linear warm-up from 0, then a cosine decay to 0.

    Args:
      config: the optimizer's config. The field learning_rate is the peak of the schedule. It may be a [] array.
      total_steps: training steps of the whole run.
    """
    warmup_steps = round(config.warmup * total_steps)
    decay_steps = max(total_steps - warmup_steps, 1)
    # optax.warmup_cosine_decay_schedule is the same schedule, but its peak cannot be an array.
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup_steps)
    return optax.join_schedules([rise, optax.cosine_decay_schedule(config.learning_rate, decay_steps)], [warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Makes AdamW, SGD with Nesterov momentum, or Muon.

    Weight decay applies only to kernels, which are the parameters with more than one axis. SGD adds it to the gradient.
    Muon orthogonalises the updates of the hidden layers' kernels, as matrices from all input axes to the output axis.
    It scales them to the size of AdamW's updates, so that the same learning rates can be used for both. All other
    parameters are updated by Adam.

    Args:
      config: the optimizer's config.
      total_steps: training steps of the whole run.

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
      Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
      Liu et al., "Muon is Scalable for LLM Training", 2025: the size of the updates.
    """

    def is_kernel(params: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    schedule = make_schedule(config, total_steps)
    if config.optimizer == "adamw":
        tx = optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_kernel)
    elif config.optimizer == "muon":
        tx = optax.chain(
            optax.partition({"muon": _scale_by_muon(), "adam": optax.scale_by_adam()}, _choose_rules),
            optax.add_decayed_weights(config.weight_decay, mask=is_kernel),
            optax.scale_by_learning_rate(schedule),
        )
    else:
        tx = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=is_kernel),
            optax.sgd(schedule, momentum=config.momentum, nesterov=True),
        )
    if config.backbone_learning_rate_scale == 1:
        return tx

    def scale_backbone(updates: dict[str, Any], params: dict[str, Any] | None) -> dict[str, Any]:
        # The updates of all optimizers are proportional to the learning rate.
        del params
        scale = config.backbone_learning_rate_scale
        return {
            name: layer if name.startswith(CLASSIFIER) else jax.tree.map(lambda update: scale * update, layer)
            for name, layer in updates.items()
        }

    return optax.chain(tx, optax.stateless(scale_backbone))


def _choose_rules(params: dict[str, Any]) -> dict[str, Any]:
    """Returns "muon" or "adam" for each leaf. The head is not a hidden layer, so its kernel is updated by Adam."""

    def choose(hidden: bool, leaf: jax.Array) -> str:
        return "muon" if hidden and leaf.ndim > 1 else "adam"

    hidden = {name: not name.startswith("head") for name in params}
    return {name: jax.tree.map(functools.partial(choose, hidden[name]), layer) for name, layer in params.items()}


def _scale_by_muon() -> optax.GradientTransformation:
    def find_axes(kernels: dict[str, Any]) -> dict[str, Any]:
        return jax.tree.map(lambda kernel: MuonDimensionNumbers(tuple(range(kernel.ndim - 1)), -1), kernels)

    def scale(update: jax.Array, params: jax.Array | None) -> jax.Array:
        del params
        # 0.2 is about the root mean square of AdamW's updates (Liu et al.).
        return 0.2 * math.sqrt(max(update.size // update.shape[-1], update.shape[-1])) * update

    return optax.chain(scale_by_muon(weight_dimension_numbers=find_axes), optax.stateless_with_tree_map(scale))
