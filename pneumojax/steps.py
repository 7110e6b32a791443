"""The compiled functions: everything that runs on the devices, and every jit."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pneumojax.config import CLASS_NAMES, AugmentConfig, Config, ModelConfig, replace_fields
from pneumojax.data.augment import keep_pneumonia, make_augment, mixup, shrink
from pneumojax.losses import as_class_logits, compute_contrastive, compute_cross_entropy, make_targets
from pneumojax.models import make_model, split_frozen
from pneumojax.models.weight_import import load_pretrained
from pneumojax.ops.convolution import uses_xla_algorithms
from pneumojax.ops.fusion import compute_unfused
from pneumojax.optimizer import make_optimizer
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


def make_graph(config: Config, make: Callable = make_model) -> nnx.GraphDef:
    """The network without its arrays. Batch statistics are averaged over the mapped axis where there is one.

    Args:
      config: the run.
      make: `make_model`, or `make_pretraining_model`.
    """
    mapped = config.train.parallel != "jit" and config.train.batch_norm == "global"
    return nnx.graphdef(_make_abstract_model(config.model, config.data.image_px, AXIS if mapped else None, make))


def make_abstract_variables(config: Config) -> dict:
    """{"params", "batch_stats"} of the network: shapes and types without arrays."""
    model = _make_abstract_model(config.model, config.data.image_px)
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in kinds.items()}


@functools.lru_cache(8)  # One training asks four times, and each would trace the random start of every layer.
def _make_abstract_model(
    config: ModelConfig, image_px: int, axis_name: str | None = None, make: Callable = make_model
) -> nnx.Module:
    return nnx.eval_shape(lambda: make(config, image_px, jax.random.key(0), axis_name))


def init_state(config: Config, tx: optax.GradientTransformation, mesh: Mesh, make: Callable = make_model) -> TrainState:
    """A fresh state on every device, a function of the config's seed. `make` as in `make_graph`."""
    return make_init(config, tx, mesh, make)(jax.random.key(config.train.seed))


def make_init(config: Config, tx: optax.GradientTransformation, mesh: Mesh, make: Callable = make_model) -> Callable:
    """Compiles `init(key) -> state`: a fresh state on every device. `make` as in `make_graph`."""

    def init(key):
        model = make(config.model, config.data.image_px, key)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        batch_stats = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        ema = {"params": params, "batch_stats": batch_stats} if config.optimizer.ema_decay else {}
        # Copies: a donated state must not hold one buffer twice.
        opt_state = tx.init(split_frozen(params, config.model.frozen)[0])
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, jax.tree.map(jnp.copy, ema))

    return jax.jit(init, out_shardings=replicated(mesh))


def make_key(config: Config, mesh: Mesh) -> jax.Array:
    """The one key of a run; each step folds its number into it, so there is no random state to save."""
    # Of a function that stays, so that another seed compiles nothing.
    return jax.jit(_derive_key, out_shardings=replicated(mesh))(config.train.seed)


def _derive_key(seed: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), 1)


def make_replica_keys(seeds: np.ndarray, mesh: Mesh) -> jax.Array:
    """[R] keys: those of `make_key` for [R] int32 seeds, each where its replica is."""
    make = jax.vmap(_derive_key)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS) if shared_out(len(seeds), mesh) else PartitionSpec())
    return jax.jit(make, out_shardings=sharding)(seeds)


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
      index [B] int32 (or the device's share of it), key the run's PRNG key. With `cached_views` images are features
      [N, K, ...] from `make_extract`. With loader=stream images [S, B, H, W] and labels [S, B] are those of a chunk,
      and index [] int32 is the batch's number in it. Metrics are sums over the batch: `loss`, `correct`, `count`,
      float32.
    """
    augment = _make_augment(config)
    views, alpha = config.model.cached_views, config.augment.mixup_alpha
    classes, smoothing = len(CLASS_NAMES[config.model.task]), config.optimizer.label_smoothing

    shrinks = image_px is not None and image_px < config.data.image_px
    resize = (lambda images: shrink(images, image_px)) if shrinks else (lambda images: images)

    def prepare(images, labels, index, mixup_keys, augment_keys):
        batch = resize(scale_pixels(_gather(images, index)))
        targets = make_targets(labels, classes, smoothing)
        if alpha:
            batch, targets = mixup(mixup_keys, alpha, (batch, targets), (next_place(batch), next_place(targets)))
        return normalise(augment(augment_keys, batch, labels)), targets, labels

    def prepare_features(features, labels, index, mixup_keys, augment_keys):
        del mixup_keys
        view = jax.vmap(lambda key: jax.random.randint(key, (), 0, views))(augment_keys)
        return features[index, view], make_targets(labels, classes, smoothing), labels

    def compute_loss(params, batch_stats, batch, targets, labels, keys):
        model = nnx.merge(graph, params, batch_stats)
        logits = as_class_logits((model.classify if views else model)(batch, train=True, keys=keys))
        losses = compute_cross_entropy(logits, targets, class_weights)
        correct = (logits.argmax(-1) == labels).sum(dtype=jnp.float32)
        metrics = {"loss": losses.sum(), "correct": correct, "count": jnp.float32(len(labels))}
        return losses.mean(), (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    descend = _make_descend(config, compute_loss, tx, mapped)

    def train_step(state, images, labels, index, key):
        labels = _gather(labels, index)
        keys = _draw_keys(key, state.step, len(labels), mapped)
        mixup_keys, augment_keys, dropout_keys = jax.vmap(jax.random.split, (0, None), 1)(keys, 3)
        prepared = (prepare_features if views else prepare)(images, labels, index, mixup_keys, augment_keys)
        return descend(state, *prepared, dropout_keys)

    def next_place(rows):
        """For each row of the global batch the one after it."""
        if not mapped:
            return jnp.roll(rows, -1, axis=0)
        devices = lax.axis_size(AXIS)
        first_of_next = lax.ppermute(rows[:1], AXIS, [((d + 1) % devices, d) for d in range(devices)])
        return jnp.concatenate([rows[1:], first_of_next])

    return train_step


def make_pretrain_step(config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformation) -> Callable:
    """Builds one step of pretraining without labels: two augmented views of each image are to find each other.

    Args:
      config: the run; it is spread over the devices by jit, whose loss sees the global batch.
      graph: from `make_graph`, of a network with a projector.
      tx: the optimizer.

    Returns:
      `pretrain_step(state, images, index, key) -> (state, metrics)`: as in `make_train_step`; `correct` counts the
      images whose views are nearest to each other.
    """
    augment = make_augment(config.augment)

    def compute_loss(params, batch_stats, views):
        model = nnx.merge(graph, params, batch_stats)
        embeddings = model(normalise(views), train=True)
        losses, correct = compute_contrastive(embeddings.reshape(-1, 2, embeddings.shape[-1]))
        # Sums over images, as for training with labels: each has two views.
        metrics = {"loss": losses.sum() / 2, "correct": correct.sum() / 2, "count": jnp.float32(len(views) // 2)}
        return losses.mean(), (metrics, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    descend = _make_descend(config, compute_loss, tx, mapped=False)

    def pretrain_step(state, images, index, key):
        batch = jnp.repeat(_gather(images, index), 2, axis=0)  # Both views side by side: they stay on one device.
        keys = _draw_keys(key, state.step, len(batch), mapped=False)
        return descend(state, augment(keys, scale_pixels(batch)))

    return pretrain_step


def _make_augment(config: Config) -> Callable:
    """Returns `augment(keys, images, labels)`, which leaves the images of pneumonia alone where the config says so."""
    augment = make_augment(config.augment)
    if config.augment.augment_classes == "normal":
        return lambda keys, images, labels: keep_pneumonia(images, augment(keys, images), labels)
    return lambda keys, images, labels: augment(keys, images)


def _gather(column: jax.Array, index: jax.Array) -> jax.Array:
    """The rows of a batch: index is [B] row numbers of a resident column, or the [] batch number of a streamed one."""
    # XLA would fuse each loader's own indexing into the step, and sums would then be rounded in different orders.
    return compute_unfused(lambda column, index: column[index], column, index)


def _draw_keys(key: jax.Array, step: jax.Array, size: int, mapped: bool) -> jax.Array:
    """[size] keys, one for each image by its place in the global batch: the same whatever the number of devices."""
    place = jnp.arange(size) + (lax.axis_index(AXIS) * size if mapped else 0)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), place)


def _make_descend(config: Config, compute_loss: Callable, tx: optax.GradientTransformation, mapped: bool) -> Callable:
    """Builds a step down the gradient.

    Args:
      config: the run.
      compute_loss: `compute_loss(params, batch_stats, *batch) -> (loss, (metrics, batch_stats))`.
      tx: the optimizer.
      mapped: as in `make_train_step`.

    Returns:
      `descend(state, *batch) -> (state, metrics)`.
    """
    frozen, ema_decay = config.model.frozen, config.optimizer.ema_decay

    def descend(state, *batch):
        # What is frozen takes no part in gradients, updates and means, each of which could change its last bit.
        params, kept_params = split_frozen(state.params, frozen)
        gradient = jax.grad(lambda p: compute_loss(p | kept_params, state.batch_stats, *batch), has_aux=True)
        grads, (metrics, batch_stats) = gradient(params)
        batch_stats, kept_stats = split_frozen(batch_stats, frozen)
        if mapped:
            grads, batch_stats = lax.pmean((grads, batch_stats), AXIS)
            metrics = lax.psum(metrics, AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, params)
        params, batch_stats = optax.apply_updates(params, updates) | kept_params, batch_stats | kept_stats
        ema = average(state.ema, {"params": params, "batch_stats": batch_stats}, state.step) if ema_decay else {}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    def average(ema, variables, step):
        # Young averages forget faster, else the random start would stay in them for 1 / (1 - decay) steps.
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        # In this form the average of what does not change is bitwise the same.
        return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, variables)

    return descend


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
    return _compile_chunk(train_step, 2, config, mesh)


def make_pretrain_chunk(config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformation, mesh: Mesh) -> Callable:
    """Compiles many steps of pretraining as one call.

    Args:
      config: the run, with parallel=jit: the loss compares the views of the whole batch.
      graph: from `make_graph`, of a network with a projector.
      tx: the optimizer.
      mesh: the devices.

    Returns:
      `pretrain_chunk(state, images, batches, key) -> (state, metrics)`, as in `make_train_chunk`; with loader=stream
      `pretrain_chunk(state, images, key)`.
    """
    return _compile_chunk(make_pretrain_step(config, graph, tx), 1, config, mesh)


def _compile_chunk(step: Callable, arrays: int, config: Config, mesh: Mesh) -> Callable:
    """Compiles `step(state, *arrays, index, key)` as `chunk(state, *arrays, batches, key)`.

    With loader=stream the arrays are the chunk's own rows, cut over the devices, and there are no batches of indices.
    """

    def chunk_resident(state, *rest):
        *resident, batches, key = rest
        return lax.scan(lambda state, index: step(state, *resident, index, key), state, batches)

    def chunk_streamed(state, *rest):
        *rows, key = rest
        return lax.scan(lambda state, number: step(state, *rows, number, key), state, jnp.arange(len(rows[0])))

    streamed = config.train.loader == "stream"
    chunk = chunk_streamed if streamed else chunk_resident
    is_cut = (False, *[True] * arrays, False) if streamed else (False, *[False] * arrays, True, False)
    if config.train.parallel == "pmap":
        in_axes = tuple(1 if cut else None for cut in is_cut)
        return jax.pmap(chunk, AXIS, in_axes=in_axes, out_axes=(None, None), donate_argnums=(0,))
    specs = tuple(PartitionSpec(None, AXIS) if cut else PartitionSpec() for cut in is_cut)
    if config.train.parallel == "shard_map":
        # With the check on, the mean of gradients comes out as their sum (jax 0.10 to 0.12).
        chunk = jax.shard_map(chunk, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    in_shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    return jax.jit(chunk, in_shardings=in_shardings, out_shardings=replicated(mesh), donate_argnums=(0,))


def make_replicas_chunk(
    config: Config,
    graph: nnx.GraphDef,
    total_steps: int,
    class_weights: np.ndarray,
    mesh: Mesh,
    image_px: int | None = None,
) -> Callable:
    """Compiles many steps of several replicas as one call.

    Args:
      config: the run; its `replicas` R is the length of each replica's own axis.
      graph: from `make_graph`.
      total_steps: of the whole run.
      class_weights: [C] float32, weight of each class in the loss.
      mesh: the devices. Each takes as many replicas as the others, or, where they do not come out even, all replicas
        and its share of each batch.
      image_px: as in `make_train_step`.

    Returns:
      `train_chunk(state, images, labels, batches, key, swept) -> (state, metrics)`: as in `make_train_chunk`, but each
      array of state, key and metrics, and batches [R, S, B], have an axis of replicas before the others. swept
      {field: [R] float32} holds what stands in each replica for the config's own value.
    """

    def train_chunk(state, images, labels, batches, key, swept):
        def train_replica(own):
            state, batches, key, values = own
            replica = replace_fields(config, values)
            tx = make_optimizer(replica.optimizer, total_steps)
            train_step = make_train_step(replica, graph, tx, class_weights, False, image_px)
            return lax.scan(lambda state, index: train_step(state, images, labels, index, key), state, batches)

        return _for_each_replica(train_replica, (state, batches, key, swept))

    if shared_out(config.train.replicas, mesh):
        own, batches = PartitionSpec(AXIS), PartitionSpec(AXIS)
    else:
        own, batches = PartitionSpec(), PartitionSpec(None, None, AXIS)
    in_specs = (own, PartitionSpec(), PartitionSpec(), batches, own, own)
    return _compile_replicas(train_chunk, in_specs, own, mesh, donate_argnums=(0,))


def make_replicas_predict(config: Config, graph: nnx.GraphDef, mesh: Mesh) -> Callable:
    """Compiles prediction by several replicas as one call.

    Returns:
      `predict(variables, images, batches) -> logits`: as in `make_predict`, but variables and logits [R, S, B, C] have
      an axis of replicas before the others, and batches are cut along B only where devices share each batch.
    """
    predict_alone = _make_predict(graph)

    def predict(variables, images, batches):
        return _for_each_replica(lambda own: predict_alone(own, images, batches), variables)

    if shared_out(config.train.replicas, mesh):
        own, batches = PartitionSpec(AXIS), PartitionSpec()
    else:
        own, batches = PartitionSpec(), PartitionSpec(None, AXIS)
    return _compile_replicas(predict, (own, PartitionSpec(), batches), own, mesh)


def shared_out(replicas: int, mesh: Mesh) -> bool:
    """Whether each device takes as many whole replicas as the others; else it takes its share of every batch."""
    return replicas % mesh.size == 0


def _for_each_replica(function: Callable, own):
    """`function` of each replica's arrays, which lie along the first axis of `own`."""
    if not uses_xla_algorithms():
        # On CPU convolutions with a kernel for each replica take twice as long side by side as one after the other.
        # Unfused with the loop over replicas, each replica runs the same program, to the last bit, as a run alone.
        return lax.map(lambda own: compute_unfused(function, own), own)
    return jax.vmap(function)(own)


def _compile_replicas(function: Callable, in_specs: tuple, own: PartitionSpec, mesh: Mesh, **options) -> Callable:
    if own == PartitionSpec(AXIS):
        # Each device by itself: nothing for the compiler to spread, nothing to wait for.
        function = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=own, check_vma=False)
    in_shardings = tuple(NamedSharding(mesh, spec) for spec in in_specs)
    return jax.jit(function, in_shardings=in_shardings, out_shardings=NamedSharding(mesh, own), **options)


def estimate_memory(
    config: Config, graph: nnx.GraphDef, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[int, int]:
    """Estimates, without compiling, how much memory a step of training takes on a device.

    A step takes the gradients and all that the forward pass keeps for the backward one; the compiler may need less.

    Returns:
      (bytes for each replica that the device has, bytes that all of them share).
    """
    sharers = 1 if shared_out(config.train.replicas, mesh) else mesh.size
    size, px = config.train.batch_size // sharers, config.data.image_px
    state = jax.eval_shape(make_init(config, tx, mesh), jax.random.key(0))
    images, keys = jax.eval_shape(lambda: (jnp.zeros((size, px, px)), jax.random.split(jax.random.key(0), size)))

    def keep(params, batch_stats, images, keys):
        def forward(params):
            return nnx.merge(graph, params, batch_stats)(normalise(images), train=True, keys=keys)

        return jax.vjp(forward, params)[1]

    def count(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    step = count(state.params) + count(jax.eval_shape(keep, state.params, state.batch_stats, images, keys))
    return (count(state), step) if jax.default_backend() == "cpu" else (count(state) + step, 0)


def put_replicas(arrays, config: Config, mesh: Mesh):
    """Puts host arrays whose first axis is that of the replicas on the devices, as the compiled functions take them."""
    axis = 0 if shared_out(config.train.replicas, mesh) else None
    return jax.tree.map(lambda array: put(array, mesh, axis), arrays)


def put_replica_batches(batches: np.ndarray, config: Config, mesh: Mesh) -> jax.Array:
    """Puts index batches [R, S, B] int32 on the devices, as `make_replicas_chunk`'s function takes them."""
    return put(batches, mesh, axis=0 if shared_out(config.train.replicas, mesh) else 2)


def shape_batches(batches: np.ndarray, config: Config, mesh: Mesh) -> np.ndarray:
    """Index batches [S, B] as `train_chunk` takes them; pmap wants the devices as an axis: [S, D, B / D]."""
    return batches.reshape(len(batches), mesh.size, -1) if config.train.parallel == "pmap" else batches


def put_batches(batches: np.ndarray, config: Config, mesh: Mesh) -> jax.Array:
    """Puts index batches [S, B] int32 on the devices, cut along B, as `train_chunk` takes them."""
    return put(shape_batches(batches, config, mesh), mesh, axis=1)


def make_extract(config: Config, graph: nnx.GraphDef, mesh: Mesh) -> Callable:
    """Compiles the backbone over a batch.

    Returns:
      `extract(variables, images, labels, index, view, key) -> features`: variables {"params", "batch_stats"}, images
      [N, H, W] uint8, labels [N] int32, index [B] int32 cut over the devices, view [] int32: 0 is the image itself, any
      other one augmented, with a key of its own for each view of each image. Returns [B, ...] on every device.
    """
    augment = _make_augment(config)

    def extract(variables, images, labels, index, view, key):
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])
        batch = scale_pixels(images[index])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, view), index)
        batch = jnp.where(view == 0, batch, augment(keys, batch, labels[index]))
        return model.extract(normalise(batch), train=False)

    copies = replicated(mesh)
    in_shardings = (copies, copies, copies, NamedSharding(mesh, PartitionSpec(AXIS)), copies, copies)
    return jax.jit(extract, in_shardings=in_shardings, out_shardings=copies)


def make_predict(
    graph: nnx.GraphDef,
    mesh: Mesh,
    views: AugmentConfig | None = None,
    cached: bool = False,
    streamed: bool = False,
) -> Callable:
    """Compiles prediction over many batches as one call.

    Args:
      graph: from `make_graph`.
      mesh: the devices.
      views: how many views of an image are averaged, and the ranges of their changes; None: the image itself. The
        views are the same for every image, so its logits do not depend on the images beside it.
      cached: images are features [N, K, ...] from `make_extract`, of which the first view is classified.
      streamed: whether the images come batch by batch.

    Returns:
      `predict(variables, images, batches) -> logits`: variables {"params", "batch_stats"}, images [N, H, W] uint8,
      batches [S, B] int32 indices cut along B; returns [S, B, C] float32 class logits, on every device. Of several
      views they are the logarithms of the mean probabilities. Streamed: `predict(variables, images)`, images
      [S, B, H, W] uint8 cut along B.
    """
    copies, cut = replicated(mesh), NamedSharding(mesh, PartitionSpec(None, AXIS))
    in_shardings = (copies, cut) if streamed else (copies, copies, cut)
    return jax.jit(_make_predict(graph, views, cached, streamed), in_shardings=in_shardings, out_shardings=copies)


def _make_predict(
    graph: nnx.GraphDef, views: AugmentConfig | None = None, cached: bool = False, streamed: bool = False
) -> Callable:
    """`predict` of `make_predict`, not compiled."""
    others = views.test_time_views - 1 if views else 0

    def predict(variables, images, *batches):
        model = nnx.merge(graph, variables["params"], variables["batch_stats"])

        def classify(batch):
            return as_class_logits(model(normalise(batch), train=False))

        def predict_batch(batch):
            if cached:
                return as_class_logits(model.classify(batch[:, 0], train=False))
            batch = scale_pixels(batch)
            return average_views(classify, batch) if others else classify(batch)

        return lax.map(predict_batch, images) if streamed else lax.map(lambda i: predict_batch(images[i]), *batches)

    def average_views(classify, batch):
        augment = make_augment(dataclasses.replace(views, erase_probability=0.0))

        def view(key):
            return jax.nn.log_softmax(classify(augment(jnp.broadcast_to(key, len(batch)), batch)))

        # One after the other: the memory of a single view.
        logits = lax.map(view, jax.random.split(jax.random.key(0), others))
        logits = jnp.concatenate([jax.nn.log_softmax(classify(batch))[None], logits])
        return jax.nn.logsumexp(logits, axis=0) - math.log(1 + others)

    return predict
