"""The compiled functions: everything that runs on the devices, and every jit."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pneumojax.augment import keep_pneumonia, make_augment, mixup, shrink
from pneumojax.config import CLASS_NAMES, Config
from pneumojax.losses import as_class_logits, compute_cross_entropy, make_targets
from pneumojax.models import make_model, split_frozen
from pneumojax.pretrained import load_pretrained
from pneumojax.sharding import AXIS, put, replicated
from pneumojax.state import TrainState

# Radiographs have a mean near 0.5 and a standard deviation near 0.25 of their range. Constants, not statistics of the
# training split: a network needs nothing but its weights to be used on an image.
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25


def scale_pixels(images: jax.Array) -> jax.Array:
    """[B, H, W] uint8 0..255 -> float32 0..1."""
    return images.astype(jnp.float32) / 255


def normalise(images: jax.Array) -> jax.Array:
    """[B, H, W] float32 0..1 -> [B, H, W, 1] float32 -2..2, what a network takes."""
    return ((images - PIXEL_MEAN) / PIXEL_STD)[..., None]


def make_graph(config: Config) -> nnx.GraphDef:
    """The network without its arrays. Batch statistics are averaged over the mapped axis where there is one."""
    mapped = config.train.parallel != "jit" and config.train.batch_norm == "global"
    return nnx.graphdef(_make_abstract_model(config, AXIS if mapped else None))


def make_abstract_variables(config: Config) -> dict:
    """{"params", "batch_stats"} of the network: shapes and types without arrays."""
    model = _make_abstract_model(config)
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in kinds.items()}


def _make_abstract_model(config: Config, axis_name: str | None = None) -> nnx.Module:
    return nnx.eval_shape(lambda: make_model(config.model, config.data.image_px, jax.random.key(0), axis_name))


def init_state(config: Config, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """A fresh state on every device, a function of the config's seed."""

    def init(key):
        model = make_model(config.model, config.data.image_px, key)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        ema = {"params": params, "batch_stats": batch_stats} if config.optimizer.ema_decay else {}
        # Copies: a donated state must not hold one buffer twice.
        opt_state = tx.init(split_frozen(params, config.model.frozen)[0])
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, jax.tree.map(jnp.copy, ema))

    return jax.jit(init, out_shardings=replicated(mesh))(jax.random.key(config.train.seed))


def make_key(config: Config, mesh: Mesh) -> jax.Array:
    """The one key of a run; each step folds its number into it, so there is no random state to save."""
    return jax.jit(lambda: jax.random.fold_in(jax.random.key(config.train.seed), 1), out_shardings=replicated(mesh))()


def start_pretrained(config: Config, state: TrainState, mesh: Mesh) -> TrainState:
    """A fresh state with the weights of the file that the config names.

    Raises:
      UserError: the file cannot be read or is of another network.
    """
    fresh = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
    loaded = load_pretrained(config.model.pretrained, config.model, fresh, PIXEL_MEAN, PIXEL_STD)
    # Copies: a donated state must not hold one buffer twice.
    arrays, average = (jax.tree.map(lambda leaf: put(np.array(leaf), mesh), loaded) for _ in range(2))
    return dataclasses.replace(state, **arrays, ema=average if state.ema else {})


def make_train_step(
    config: Config,
    graph: nnx.GraphDef,
    tx: optax.GradientTransformation,
    class_weights: np.ndarray,
    mapped: bool,
    image_px: int | None = None,
) -> Callable:
    """Builds one step of training.

    Args:
      config: the run.
      graph: from `make_graph`.
      tx: the optimizer.
      class_weights: [C] float32, weight of each class in the loss.
      mapped: whether the step runs under a mapped axis on its device's share of the batch, or on the whole batch.
      image_px: size that the images are shrunk to; None: the config's.

    Returns:
      `train_step(state, images, labels, index, key) -> (state, metrics)`: images [N, H, W] uint8, labels [N] int32,
      index [B] int32 (or the device's share of it), key the run's PRNG key. With loader=stream images and labels are
      those of the batch, and index counts them. Metrics are sums over the batch: `loss`, `correct`, `count`, float32.
    """
    augment = make_augment(config.augment)
    frozen = config.model.frozen
    normal_only = config.augment.augment_classes == "normal"
    classes = len(CLASS_NAMES[config.model.task])
    smoothing, alpha, ema_decay = (
        config.optimizer.label_smoothing,
        config.augment.mixup_alpha,
        config.optimizer.ema_decay,
    )

    streamed = config.train.loader == "stream"
    take = (lambda column, index: column) if streamed else (lambda column, index: column[index])
    shrinks = image_px is not None and image_px < config.data.image_px
    resize = (lambda images: shrink(images, image_px)) if shrinks else (lambda images: images)

    def compute_loss(params, kept_params, batch_stats, images, targets, keys):
        model = nnx.merge(graph, params | kept_params, batch_stats)
        logits = as_class_logits(model(normalise(images), train=True, keys=keys))
        losses = compute_cross_entropy(logits, targets, class_weights)
        return losses.mean(), (losses, logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    def train_step(state, images, labels, index, key):
        # A key for each image by its place in the global batch: the same whatever the number of devices.
        place = jnp.arange(len(index)) + (lax.axis_index(AXIS) * len(index) if mapped else 0)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, state.step), place)
        mixup_keys, augment_keys, dropout_keys = jax.vmap(jax.random.split, (0, None), 1)(keys, 3)

        batch, labels = resize(scale_pixels(take(images, index))), take(labels, index)
        targets = make_targets(labels, classes, smoothing)
        if alpha:
            batch, targets = mixup(mixup_keys, alpha, (batch, targets), (next_place(batch), next_place(targets)))
        augmented = augment(augment_keys, batch)
        batch = keep_pneumonia(batch, augmented, labels) if normal_only else augmented
        # What is frozen takes no part in gradients, updates and means, each of which could change its last bit.
        params, kept_params = split_frozen(state.params, frozen)
        gradient = jax.value_and_grad(compute_loss, has_aux=True)
        (_, (losses, logits, batch_stats)), grads = gradient(
            params, kept_params, state.batch_stats, batch, targets, dropout_keys
        )
        batch_stats, kept_stats = split_frozen(batch_stats, frozen)
        if mapped:
            grads, batch_stats = lax.pmean((grads, batch_stats), AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        params, batch_stats = optax.apply_updates(params, updates) | kept_params, batch_stats | kept_stats

        correct = logits.argmax(-1) == labels
        metrics = {"loss": losses.sum(), "correct": correct.sum(dtype=jnp.float32), "count": jnp.float32(len(index))}
        if mapped:
            metrics = lax.psum(metrics, AXIS)
        ema = average(state.ema, {"params": params, "batch_stats": batch_stats}, state.step) if ema_decay else {}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    def next_place(rows):
        """For each row of the global batch the one after it."""
        if not mapped:
            return jnp.roll(rows, -1, axis=0)
        devices = lax.axis_size(AXIS)
        first_of_next = lax.ppermute(rows[:1], AXIS, [((d + 1) % devices, d) for d in range(devices)])
        return jnp.concatenate([rows[1:], first_of_next])

    def average(ema, variables, step):
        # Young averages forget faster, else the random start would stay in them for 1 / (1 - decay) steps.
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        # In this form the average of what does not change is bitwise the same.
        return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, variables)

    return train_step


def make_train_chunk(
    config: Config,
    graph: nnx.GraphDef,
    tx: optax.GradientTransformation,
    class_weights: np.ndarray,
    mesh: Mesh,
    image_px: int | None = None,
) -> Callable:
    """Compiles many steps as one call, spread over the devices in the config's way.

    Returns:
      `train_chunk(state, images, labels, batches, key) -> (state, metrics)`: batches from `put_batches`, metrics [S]
      float32 each, all else as in `make_train_step`. The state's memory is taken over by the new state. With
      loader=stream `train_chunk(state, images, labels, key)`: the chunk's own images [S, B, H, W] and labels [S, B],
      cut along B as `shape_batches` says.
    """
    train_step = make_train_step(config, graph, tx, class_weights, config.train.parallel != "jit", image_px)

    def train_resident(state, images, labels, batches, key):
        return lax.scan(lambda state, index: train_step(state, images, labels, index, key), state, batches)

    def train_streamed(state, images, labels, key):
        index = jnp.arange(labels.shape[1])
        return lax.scan(lambda state, batch: train_step(state, *batch, index, key), state, (images, labels))

    streamed = config.train.loader == "stream"
    train_chunk = train_streamed if streamed else train_resident
    is_cut = (False, True, True, False) if streamed else (False, False, False, True, False)
    if config.train.parallel == "pmap":
        in_axes = tuple(1 if cut else None for cut in is_cut)
        return jax.pmap(train_chunk, AXIS, in_axes=in_axes, out_axes=(None, None), donate_argnums=(0,))
    specs = tuple(PartitionSpec(None, AXIS) if cut else PartitionSpec() for cut in is_cut)
    if config.train.parallel == "shard_map":
        # With the check on, the mean of gradients comes out as their sum (jax 0.10 to 0.12).
        train_chunk = jax.shard_map(train_chunk, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    in_shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    return jax.jit(train_chunk, in_shardings=in_shardings, out_shardings=replicated(mesh), donate_argnums=(0,))


def shape_batches(batches: np.ndarray, config: Config, mesh: Mesh) -> np.ndarray:
    """Index batches [S, B] as `train_chunk` takes them; pmap wants the devices as an axis: [S, D, B / D]."""
    return batches.reshape(len(batches), mesh.size, -1) if config.train.parallel == "pmap" else batches


def put_batches(batches: np.ndarray, config: Config, mesh: Mesh) -> jax.Array:
    """Puts index batches [S, B] int32 on the devices, cut along B, as `train_chunk` takes them."""
    return put(shape_batches(batches, config, mesh), mesh, axis=1)


def make_predict(graph: nnx.GraphDef, mesh: Mesh, streamed: bool = False) -> Callable:
    """Compiles prediction over many batches as one call.

    Args:
      graph: from `make_graph`.
      mesh: the devices.
      streamed: whether the images come batch by batch.

    Returns:
      `predict(variables, images, batches) -> logits`: variables {"params", "batch_stats"}, images [N, H, W] uint8,
      batches [S, B] int32 indices cut along B; returns [S, B, C] float32 class logits, on every device. Streamed:
      `predict(variables, images)`, images [S, B, H, W] uint8 cut along B.
    """

    def predict(variables, images, *batches):
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])

        def predict_batch(images):
            return as_class_logits(model(normalise(scale_pixels(images)), train=False))

        return lax.map(predict_batch, images) if streamed else lax.map(lambda i: predict_batch(images[i]), *batches)

    copies, cut = replicated(mesh), NamedSharding(mesh, PartitionSpec(None, AXIS))
    in_shardings = (copies, cut) if streamed else (copies, copies, cut)
    return jax.jit(predict, in_shardings=in_shardings, out_shardings=copies)
