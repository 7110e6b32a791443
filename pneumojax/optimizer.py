"""The optimizer and its schedule."""

import jax
import optax

from pneumojax.config import CLASSIFIER, OptimizerConfig


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of each step: straight up from 0, then a cosine down to 0. The largest may be an array."""
    warmup_steps = round(config.warmup * total_steps)
    decay_steps = max(total_steps - warmup_steps, 1)
    # optax.warmup_cosine_decay_schedule is the same, but takes no array for its peak.
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup_steps)
    return optax.join_schedules([rise, optax.cosine_decay_schedule(config.learning_rate, decay_steps)], [warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW, or SGD with Nesterov momentum and weight decay in the gradient.

    Only kernels decay: biases and normalisation have one axis.

    References:
      Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019.
    """

    def is_kernel(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    schedule = make_schedule(config, total_steps)
    if config.optimizer == "adamw":
        tx = optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_kernel)
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
