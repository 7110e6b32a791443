"""The optimizer and its schedule."""

import functools
import math

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from pneumojax.config import CLASSIFIER, OptimizerConfig


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of each step: straight up from 0, then a cosine down to 0. The largest may be an array."""
    warmup_steps = round(config.warmup * total_steps)
    decay_steps = max(total_steps - warmup_steps, 1)
    # optax.warmup_cosine_decay_schedule is the same, but takes no array for its peak.
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup_steps)
    return optax.join_schedules([rise, optax.cosine_decay_schedule(config.learning_rate, decay_steps)], [warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW, or SGD with Nesterov momentum and weight decay in the gradient, or Muon with AdamW beside it.

    Only kernels decay: biases and normalisation have one axis. Muon is for the kernels of hidden layers. It makes their
    updates orthogonal, as matrices from all that a kernel sums over to its outputs, and as large as AdamW's: one
    learning rate serves both.

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
      Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
      Liu et al., "Muon is Scalable for LLM Training", 2025: the size of its updates.
    """

    def is_kernel(params):
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

    def scale_backbone(updates, params):
        # Both optimizers' updates are the learning rate times something that does not depend on it.
        del params
        scale = config.backbone_learning_rate_scale
        return {
            name: layer if name.startswith(CLASSIFIER) else jax.tree.map(lambda update: scale * update, layer)
            for name, layer in updates.items()
        }

    return optax.chain(tx, optax.stateless(scale_backbone))


def _choose_rules(params):
    """muon or adam for each leaf: Muon is for the kernels of hidden layers, not for the head's."""

    def choose(hidden, leaf):
        return "muon" if hidden and leaf.ndim > 1 else "adam"

    hidden = {name: not name.startswith("head") for name in params}
    return {name: jax.tree.map(functools.partial(choose, hidden[name]), layer) for name, layer in params.items()}


def _scale_by_muon() -> optax.GradientTransformation:
    def find_axes(kernels):
        return jax.tree.map(lambda kernel: MuonDimensionNumbers(tuple(range(kernel.ndim - 1)), -1), kernels)

    def scale(update, params):
        del params
        # 0.2: about the root mean square of AdamW's updates (Liu et al.).
        return 0.2 * math.sqrt(max(update.size // update.shape[-1], update.shape[-1])) * update

    return optax.chain(scale_by_muon(weight_dimension_numbers=find_axes), optax.stateless_with_tree_map(scale))
