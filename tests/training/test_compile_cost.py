"""Compares the cost of a chunk with its closed form."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from pneumojax import steps
from pneumojax.config import config_from_dict
from pneumojax.ops import convolution
from pneumojax.optimizer import make_optimizer
from pneumojax.parallel import put_batches
from pneumojax.sharding import AXIS, put
from pneumojax.training.compile_cost import compile_chunk, count_step_flops

PX, UNITS, DEVICES = 32, 64, 4
PLAIN = dict.fromkeys(("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma", "warmup"), 0.0)


def compile_mlp(chunk_steps, batch_size, parallel):
    """Returns (jit function, its arguments, compiled, costs) for a network with one hidden layer."""
    fields = {"model": "mlp", "mlp_widths": [UNITS], "image_px": PX, "batch_size": batch_size, "parallel": parallel}
    config = config_from_dict(PLAIN | fields)
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), (AXIS,))
    tx = make_optimizer(config.optimizer, 10)
    chunk = steps.make_train_chunk(config, steps.make_graph(config), tx, np.ones(2, np.float32), mesh)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, PX, PX)).astype(np.uint8)
    batches = np.tile(np.arange(batch_size, dtype=np.int32), (chunk_steps, 1))
    batches = put_batches(batches, config, mesh)
    labels = put(np.arange(batch_size, dtype=np.int32) % 2, mesh)
    arguments = (steps.init_state(config, tx, mesh), put(images, mesh), labels, batches, steps.make_key(config, mesh))
    compiled, costs = compile_chunk(chunk, arguments)
    return chunk, arguments, compiled, costs | count_step_flops(chunk, arguments, DEVICES, parallel != "jit")


@pytest.mark.parametrize(
    "parallel", ["jit", pytest.param("shard_map", marks=pytest.mark.slow), pytest.param("pmap", marks=pytest.mark.slow)]
)
def test_flops_are_those_of_one_step_of_all_devices(parallel):
    of_batch = {size: compile_mlp(1, size, parallel)[3]["perf/flops_per_step"] for size in (32, 64)}
    # Work that does not depend on the batch, such as Adam, cancels in the difference.
    for_image = (of_batch[64] - of_batch[32]) / 32
    # There is a product in the forward pass and one for the kernel's gradient. The head also has one for its input.
    products = 2 * 2 * PX**2 * UNITS + 3 * 2 * UNITS
    np.testing.assert_allclose(for_image, products, rtol=0.05)
    _, _, _, costs = compile_mlp(3, 32, parallel)
    np.testing.assert_allclose(costs["perf/flops_per_step"], of_batch[32], rtol=1e-3)


# Winograd's algorithm, batch tiles of the kernel gradient, phases of the image gradient, grey images, products by tap.
@pytest.mark.parametrize(
    ("px", "size", "stride", "channels", "features"),
    [(28, 3, 1, 48, 48), (30, 4, 1, 8, 16), (29, 3, 2, 16, 16), (64, 3, 1, 1, 16), (4, 3, 1, 32, 32)],
)
def test_flops_of_a_convolution_are_those_of_its_closed_form(px, size, stride, channels, features):
    batch = 64

    @jax.jit
    def pull_back(images, kernel, grads):
        return jax.vjp(lambda images, kernel: convolution.convolve(images, kernel, stride, pad=0), images, kernel)[1](
            grads
        )

    out = (px - size) // stride + 1
    shapes = [(batch, px, px, channels), (size, size, channels, features), (batch, out, out, features)]
    arguments = tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    _, costs = compile_chunk(pull_back, arguments)
    costs |= count_step_flops(pull_back, arguments, 1, False)
    # There is one product for the image gradient and one for the kernel gradient.
    products = 2 * 2 * batch * out**2 * size**2 * channels * features
    np.testing.assert_allclose(costs["perf/flops_per_step"], products, rtol=0.02)
    assert jax.default_backend() != "cpu" or "perf/bytes_per_step" not in costs


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_a_chunk_compiled_ahead_is_the_chunk_and_its_memory_holds_the_state(parallel):
    chunk, arguments, compiled, costs = compile_mlp(2, 32, parallel)
    state = arguments[0]
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert weights < costs["perf/peak_memory_bytes"] < 20 * weights
    assert 0 < costs["perf/compile_seconds"] < 60
    copy = jax.tree.map(lambda leaf: put(np.asarray(leaf), leaf.sharding.mesh), state)
    ours, theirs = compiled(*arguments), chunk(copy, *arguments[1:])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(theirs))
