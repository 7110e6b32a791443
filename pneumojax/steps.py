"""The compiled steps of training: from a batch of pixels to the updated state.

A step is a pure function of the state, the data, a batch and the run's key. A chunk is a `lax.scan` of steps, jitted
by `parallel.py`. `pretrain_steps.py`, `replica_steps.py`, `inference.py`, `attribution.py` and `exported_program.py`
hold the other jitted functions; no other module calls `jax.jit`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from pneumojax.config import Config, ModelConfig
from pneumojax.losses import as_class_logits, compute_cross_entropy
from pneumojax.models import Network, make_model, split_frozen
from pneumojax.parallel import make_chunk
from pneumojax.preprocessing import gather, make_prepare, make_prepare_features
from pneumojax.sharding import AXIS, replicated
from pneumojax.state import StepResult, TrainState


def make_graph(config: Config, make: Callable[..., Network] = make_model) -> nnx.GraphDef:
    """Makes the network's graph definition, which holds no arrays.

    With parallel=shard_map or pmap and batch_norm=global, the network averages batch statistics over the devices.

    Args:
      config: the run.
      make: `make_model` or `make_pretraining_model`.
    """
    mapped = config.train.parallel != "jit" and config.train.batch_norm == "global"
    return nnx.graphdef(_make_abstract_model(config.model, config.data.image_px, AXIS if mapped else None, make))


def make_abstract_variables(config: Config) -> dict:
    """Returns the shapes and dtypes of the network's {"params", "batch_stats"}."""
    model = _make_abstract_model(config.model, config.data.image_px)
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in kinds.items()}


@functools.lru_cache(8)  # A training asks four times, and each call would trace the initialisation of every layer.
def _make_abstract_model(
    config: ModelConfig, image_px: int, axis_name: str | None = None, make: Callable[..., Network] = make_model
) -> Network:
    return nnx.eval_shape(lambda: make(config, image_px, jax.random.key(0), axis_name))


def init_state(
    config: Config, tx: optax.GradientTransformation, mesh: Mesh, make: Callable[..., Network] = make_model
) -> TrainState:
    """Initialises the state from the config's seed, replicated over the devices. See `make_graph` for `make`."""
    return make_init(config, tx, mesh, make)(jax.random.key(config.train.seed))


def make_init(
    config: Config, tx: optax.GradientTransformation, mesh: Mesh, make: Callable[..., Network] = make_model
) -> Callable[[jax.Array], TrainState]:
    """Compiles `init(key) -> state`. The state is replicated over the devices. Arguments as in `init_state`."""

    def init(key: jax.Array) -> TrainState:
        model = make(config.model, config.data.image_px, key)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        ema = {"params": params, "batch_stats": batch_stats} if config.optimizer.ema_decay else {}
        opt_state = tx.init(split_frozen(params, config.model.frozen)[0])
        # A copy, as a donated state must not contain a buffer twice.
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, jax.tree.map(jnp.copy, ema))

    return jax.jit(init, out_shardings=replicated(mesh))


def make_key(config: Config, mesh: Mesh) -> jax.Array:
    """Makes the PRNG key of the training steps. Each step folds its number into it, so a checkpoint stores no key."""
    # jit caches by function. `derive_key` is one function for all seeds, so another seed is not compiled again.
    return jax.jit(derive_key, out_shardings=replicated(mesh))(config.train.seed)


def derive_key(seed: jax.Array) -> jax.Array:
    """Computes the PRNG key of a run from the seed of the run, [] int32."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def make_train_step(
    config: Config,
    graph: nnx.GraphDef,
    tx: optax.GradientTransformation,
    class_weights: np.ndarray,
    mapped: bool,
    image_px: int | None = None,
) -> Callable[..., StepResult]:
    """Makes a training step.

    Args:
      config: the run.
      graph: from `make_graph`.
      tx: the optimizer.
      class_weights: [C] float32, weight of each class in the loss.
      mapped: whether the step runs under a mapped axis, where each device has a shard of the batch.
      image_px: size to which the images are shrunk; None: the config's.

    Returns:
      `train_step(state, images, labels, index, key) -> (state, metrics)`: images [N, H, W] uint8, labels [N] int32,
      index [B] int32 (a shard of it if mapped), key the PRNG key of the run. With loader=stream, images
      [S, B, H, W] and labels [S, B] belong to a chunk of S steps, and index [] int32 is the number of the step in the
      chunk. With `cached_views`, images are features [N, K, ...] from `make_extract`. The
      metrics `loss`, `correct` and `count` are float32 sums over the batch.
    """
    prepare = (make_prepare_features if config.model.cached_views else make_prepare)(config, mapped, image_px)

    def compute_loss(
        params: dict[str, Any],
        batch_stats: dict[str, Any],
        batch: jax.Array,
        targets: jax.Array,
        labels: jax.Array,
        keys: jax.Array,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], dict[str, Any]]]:
        model = nnx.merge(graph, params, batch_stats)
        logits = as_class_logits((model.classify if config.model.cached_views else model)(batch, train=True, keys=keys))
        losses = compute_cross_entropy(logits, targets, class_weights)
        correct = (logits.argmax(-1) == labels).sum(dtype=jnp.float32)
        metrics = {"loss": losses.sum(), "correct": correct, "count": jnp.float32(len(labels))}
        return losses.mean(), (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    update = make_update(config, compute_loss, tx, mapped)

    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array, index: jax.Array, key: jax.Array
    ) -> StepResult:
        labels = gather(labels, index)
        keys = fold_in_positions(key, state.step, len(labels), mapped)
        mixup_keys, augment_keys, dropout_keys = jax.vmap(jax.random.split, (0, None), 1)(keys, 3)
        batch, targets = prepare(images, labels, index, mixup_keys, augment_keys)
        return update(state, batch, targets, labels, dropout_keys)

    return train_step


def fold_in_positions(key: jax.Array, step: jax.Array, size: int, mapped: bool) -> jax.Array:
    """Makes a PRNG key for each of `size` images, from the run's key, the step and the position in the global batch."""
    position = jnp.arange(size) + (lax.axis_index(AXIS) * size if mapped else 0)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), position)


def make_update(config: Config, compute_loss: Callable, tx: optax.GradientTransformation, mapped: bool) -> Callable:
    """Makes the update of a state by the gradients of a loss.

    Args:
      config: the run.
      compute_loss: `compute_loss(params, batch_stats, *batch) -> (loss, (metrics, batch_stats))`.
      tx: the optimizer.
      mapped: as in `make_train_step`.

    Returns:
      `update(state, *batch) -> (state, metrics)`.
    """
    frozen, ema_decay = config.model.frozen, config.optimizer.ema_decay

    def update(state: TrainState, *batch: jax.Array) -> StepResult:
        # Frozen arrays are kept out of gradients, updates and means, each of which could change their last bit.
        params, kept_params = split_frozen(state.params, frozen)
        gradient = jax.grad(lambda p: compute_loss(p | kept_params, state.batch_stats, *batch), has_aux=True)
        grads, (metrics, batch_stats) = gradient(params)
        batch_stats, kept_stats = split_frozen(batch_stats, frozen)
        if mapped:
            grads, batch_stats = lax.pmean((grads, batch_stats), AXIS)
            metrics = lax.psum(metrics, AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        params, batch_stats = optax.apply_updates(params, updates) | kept_params, batch_stats | kept_stats
        variables = {"params": params, "batch_stats": batch_stats}
        ema = average(state.ema, variables, state.step, ema_decay) if ema_decay else {}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    def average(ema: dict[str, Any], variables: dict[str, Any], step: jax.Array, ema_decay: float) -> dict[str, Any]:
        # The decay starts low, so that the random initialisation does not stay for 1 / (1 - decay) steps.
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        # Written so that the average of a constant is bitwise that constant.
        return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, variables)

    return update


def make_train_chunk(
    config: Config,
    graph: nnx.GraphDef,
    tx: optax.GradientTransformation,
    class_weights: np.ndarray,
    mesh: Mesh,
    image_px: int | None = None,
) -> jax.stages.Wrapped:
    """Compiles a chunk of training steps, parallelised over the devices as the config specifies.

    Args:
      config: the run.
      graph: from `make_graph`.
      tx: the optimizer.
      class_weights: [C] float32, weight of each class in the loss.
      mesh: the devices.
      image_px: as in `make_train_step`.

    Returns:
      `train_chunk(state, images, labels, batches, key) -> (state, metrics)`: batches [S, B] from
      `parallel.put_batches`, metrics [S] float32 each, other arguments as in `make_train_step`. The state is donated.
      With loader=stream, it is `train_chunk(state, images, labels, key)`, where the images [S, B, H, W] and the labels
      [S, B] of the chunk are sharded along B, in the shape that `parallel.shape_batches` gives.
    """
    train_step = make_train_step(config, graph, tx, class_weights, config.train.parallel != "jit", image_px)
    return make_chunk(train_step, 2, config, mesh)
