"""Tests of the first minutes on a GPU or TPU, compared with the CPU of the same machine.

    scripts/run pytest -n 0 -m gpu tests/test_accelerator.py

The other tests run on simulated CPU devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from trainer import BATCH, CLASS_WEIGHTS, PLAIN, SGD, Trainer, draw_batches, draw_images
from xla_reference import assert_near, compute_with_gradients

from pneumojax import checkpoint, parallel, steps
from pneumojax.config import config_from_dict
from pneumojax.models import MODELS
from pneumojax.ops import batch_norm, position_pooling
from pneumojax.ops.xla import algorithms
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import AXIS, put, replicated
from pneumojax.training.compile_cost import compile_chunk
from pneumojax.training.workdir import describe_run

pytestmark = pytest.mark.gpu

# XLA computes float32 convolutions with TF32 by default, which has the precision of float16.
EXACT = "highest"


@pytest.fixture(autouse=True)
def _skip_without_accelerator():
    if jax.default_backend() == "cpu":
        pytest.skip("there is no accelerator")


class Training:
    """A chunk of steps on one device, with initial weights that are the same on each kind of device."""

    def __init__(self, device, algorithm, **fields):
        self.config = config_from_dict({**PLAIN, **SGD, **fields})
        self.mesh, cpu = (Mesh(np.array([one]), (AXIS,)) for one in (device, jax.devices("cpu")[0]))
        tx, graph = make_optimizer(self.config.optimizer, 200), steps.make_graph(self.config)
        self.chunk = steps.make_train_chunk(self.config, graph, tx, CLASS_WEIGHTS, self.mesh)
        self.init = jax.device_get(steps.make_init(self.config, tx, cpu)(jax.random.key(0)))
        self.state = jax.device_put(self.init, replicated(self.mesh))
        self.algorithm, self.num_images = algorithm, 64
        images, labels = draw_images() if self.config.data.image_px == PLAIN["image_px"] else self.draw_noise()
        key = jax.device_put(jax.random.key(5), replicated(self.mesh))
        self.constants = put(images, self.mesh), put(labels, self.mesh), key

    def draw_noise(self):
        shape = (self.num_images, self.config.data.image_px, self.config.data.image_px)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8), np.arange(
            self.num_images, dtype=np.int32
        ) % 2

    def arguments(self, num_steps):
        images, labels, key = self.constants
        batches = draw_batches(num_steps, self.config.train.batch_size)
        return self.state, images, labels, parallel.put_batches(batches, self.config, self.mesh), key

    def train(self, num_steps):
        """Returns the mean loss of each step, and the change of all weights as a vector."""
        with algorithms(self.algorithm), jax.default_matmul_precision(EXACT):
            self.state, sums = self.chunk(*self.arguments(num_steps))
        before, after = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.params)])
            for state in (self.init, jax.device_get(self.state))
        )
        return np.asarray(sums["loss"]) / self.config.train.batch_size, after - before


def assert_same_training(ours, theirs, loss, angle):
    """Asserts that losses are finite and near, and that the weights changed in the same direction and as much."""
    (our_losses, our_change), (their_losses, their_change) = ours, theirs
    assert np.isfinite(our_losses).all()
    np.testing.assert_allclose(our_losses, their_losses, rtol=loss)
    lengths = np.linalg.norm(our_change), np.linalg.norm(their_change)
    assert our_change @ their_change / np.prod(lengths) > 1 - angle
    np.testing.assert_allclose(*lengths, rtol=20 * angle)


# Of the loss, relative; and of the direction of the change, 1 - cosine. bfloat16 has 3 significant digits, and batch
# normalisation of few pixels amplifies their rounding.
TOLERANCES = {"float32": (1e-3, 1e-3), "bfloat16": (0.03, 0.05)}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("model", sorted(MODELS))
def test_the_first_step_of_each_network_is_that_of_the_cpu(model, dtype):
    fields = {"model": model, "dtype": dtype, "batch_size": 32, "image_px": 64}
    ours = Training(jax.devices()[0], None, **fields).train(1)
    theirs = Training(jax.devices("cpu")[0], "xla", **fields).train(1)
    assert_same_training(ours, theirs, *TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("model", ["cnn", "resnet18", "resnet50"])
def test_our_algorithms_train_as_those_of_xla_on_the_device(model, dtype):
    fields = {"model": model, "dtype": dtype, "batch_size": 32, "image_px": 64}
    ours, theirs = (Training(jax.devices()[0], algorithm, **fields).train(1) for algorithm in (None, "xla"))
    assert_same_training(ours, theirs, *TOLERANCES[dtype])


@pytest.mark.parametrize("adds", [False, True])
def test_the_batch_normalisation_of_gpu_has_the_gradients_that_jax_derives(adds):
    draws = np.random.default_rng(0)
    images, shortcut = (draws.normal(size=(32, 14, 14, 64)).astype(np.float32) for _ in range(2))
    scale, bias = (draws.normal(1, 0.3, 64).astype(np.float32) for _ in range(2))

    def apply(function):
        def compute(images, scale, bias, shortcut):
            return function(images, scale, bias, shortcut if adds else None, True, 1e-5, None)[0]

        return compute_with_gradients(compute, images, scale, bias, shortcut)

    for ours, plain in zip(*map(apply, (batch_norm.normalise_on_gpu, batch_norm.normalise)), strict=True):
        if plain.any():  # Without a shortcut, its gradient is 0.
            assert_near(ours, plain, 1e-4)


@pytest.mark.parametrize("window", [2, 3])
def test_the_max_pooling_of_gpu_is_that_of_xla(window):
    images = np.random.default_rng(0).normal(size=(16, 57, 56, 32)).astype(np.float32)
    padding = "SAME" if window == 2 else ((1, 1), (1, 1))
    ours = compute_with_gradients(lambda i: position_pooling.max_pool(i, window), images)
    plain = compute_with_gradients(lambda i: nnx.max_pool(i, (window, window), (2, 2), padding), images)
    np.testing.assert_array_equal(ours[0], plain[0])
    assert_near(ours[1], plain[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_on_the_accelerator_learns_and_stays_there(dtype):
    training = Trainer(1, model="cnn", dtype=dtype, **SGD)
    losses = np.concatenate([training.train(draw_batches(4))["loss"] / BATCH for _ in range(10)])
    assert np.isfinite(losses).all() and losses[-4:].mean() < losses[:4].mean()
    platforms = {device.platform for leaf in jax.tree.leaves(training.state) for device in leaf.devices()}
    assert platforms == {jax.devices()[0].platform}


def test_a_chunk_copies_nothing_to_the_host_and_reuses_the_memory_of_its_state():
    training = Training(jax.devices()[0], None, model="resnet18")
    arguments = training.arguments(4)
    with jax.transfer_guard("disallow"):
        state, sums = training.chunk(*arguments)
        jax.block_until_ready(sums)
    donated = jax.tree.leaves(arguments[0].params)
    assert all(leaf.is_deleted() for leaf in donated) and not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_a_checkpoint_restores_the_state_of_the_device_to_the_last_bit(tmp_path):
    training = Training(jax.devices()[0], None, model="resnet18", dtype="bfloat16")
    training.train(2)
    run = describe_run(training.config)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoint.save_checkpoint(checkpoints, 2, training.state, run, auroc=0.5)
        checkpoint.wait_for_checkpoints(checkpoints)
        fresh = jax.device_put(training.init, replicated(training.mesh))
        restored = checkpoint.restore_state(checkpoints, 2, fresh, training.mesh)
    for ours, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(training.state), strict=True):
        assert ours.devices() == saved.devices() and ours.dtype == saved.dtype
        np.testing.assert_array_equal(*(np.asarray(jnp.asarray(leaf, jnp.float32)) for leaf in (ours, saved)))


def test_the_memory_that_the_compiler_states_is_what_a_chunk_uses():
    device = jax.devices()[0]
    if not device.memory_stats():
        pytest.skip(f"{device.device_kind} does not report its memory")
    training = Training(device, None, model="resnet50", resnet_width=64, image_px=224, batch_size=64)
    arguments = training.arguments(1)
    compiled, costs = compile_chunk(training.chunk, arguments)
    before = device.memory_stats()["bytes_in_use"] - sum(leaf.nbytes for leaf in jax.tree.leaves(arguments))
    jax.block_until_ready(compiled(*arguments))
    # The chunk is larger than those of the other tests, so the peak is its own, or that of choosing its convolutions.
    used = device.memory_stats()["peak_bytes_in_use"] - before
    assert 0.9 * costs["perf/peak_memory_bytes"] < used < 2 * costs["perf/peak_memory_bytes"]
