"""What a chunk costs, by its closed form, and how long the devices waited, on a made-up clock."""

import json
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from pneumojax import steps
from pneumojax.config import config_from_dict
from pneumojax.ops import convolution
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import AXIS, put
from pneumojax.training import compile_cost
from pneumojax.training import fit as fit_module
from pneumojax.training.compile_cost import Watch, compile_chunk, find_peak_flops, watch

PX, UNITS, DEVICES = 32, 64, 4
PLAIN = dict.fromkeys(("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma", "warmup"), 0.0)


def compile_mlp(chunk_steps, batch_size, parallel):
    """(jit function, its arguments, compiled, costs) of a network of one hidden layer."""
    fields = {"model": "mlp", "mlp_widths": [UNITS], "image_px": PX, "batch_size": batch_size, "parallel": parallel}
    config = config_from_dict(PLAIN | fields)
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), (AXIS,))
    tx = make_optimizer(config.optimizer, 10)
    chunk = steps.make_train_chunk(config, steps.make_graph(config), tx, np.ones(2, np.float32), mesh)
    images = np.random.default_rng(0).integers(0, 256, (batch_size, PX, PX)).astype(np.uint8)
    batches = np.tile(np.arange(batch_size, dtype=np.int32), (chunk_steps, 1))
    batches = steps.put_batches(batches, config, mesh)
    labels = put(np.arange(batch_size, dtype=np.int32) % 2, mesh)
    arguments = (steps.init_state(config, tx, mesh), put(images, mesh), labels, batches, steps.make_key(config, mesh))
    return chunk, arguments, *compile_chunk(chunk, arguments, DEVICES, parallel != "jit")


@pytest.mark.parametrize("parallel", ["jit", "shard_map", "pmap"])
def test_flops_are_those_of_one_step_of_all_devices(parallel):
    of_batch = {size: compile_mlp(1, size, parallel)[3]["perf/flops_per_step"] for size in (32, 64)}
    # What the batch does not change, as Adam, falls out of the difference.
    for_image = (of_batch[64] - of_batch[32]) / 32
    # A product forward, one for the kernel's gradient; the images need none. The head has one for its input too.
    products = 2 * 2 * PX**2 * UNITS + 3 * 2 * UNITS
    np.testing.assert_allclose(for_image, products, rtol=0.05)
    _, _, _, costs = compile_mlp(3, 32, parallel)
    np.testing.assert_allclose(costs["perf/flops_per_step"], of_batch[32], rtol=1e-3)


# Winograd's form, turns of the kernel's gradient, phases of the images' gradient, grey images, products by tap.
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
    _, costs = compile_chunk(pull_back, arguments, 1, False)
    # One product for the gradient of the images, one for that of the kernel.
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


def test_peaks_are_of_known_chips_in_types_that_they_compute_in():
    assert find_peak_flops("NVIDIA H200", "bfloat16") == 989.4e12
    assert find_peak_flops("Tesla T4", "float32") == 8.1e12
    assert find_peak_flops("Tesla T4", "bfloat16") is None
    assert find_peak_flops(jax.devices()[0].device_kind, "float32") is None
    # No chip is faster in the longer type, and a product needs more FLOP than bytes to reach the peak.
    for chip in compile_cost.CHIPS.values():
        assert chip.flops["float32"] <= chip.flops.get("bfloat16", np.inf)
        assert 10 < chip.flops["float32"] / chip.bytes_per_second < 1000


def test_the_end_is_noted_without_waiting_even_of_what_fails():
    class Slow:
        def block_until_ready(self):
            time.sleep(0.05)

    class Failing:
        def block_until_ready(self):
            raise RuntimeError

    started = time.perf_counter()
    slow = watch([Slow()])
    assert started <= slow.dispatched <= time.perf_counter() < started + 0.05
    assert slow.wait_end() >= started + 0.05
    assert watch([Failing()]).wait_end() >= started


def test_the_host_costs_what_the_devices_wait(tmp_path, monkeypatch):
    moments = []
    monkeypatch.setattr(fit_module.time, "perf_counter", lambda: moments.pop(0))
    monkeypatch.setattr(fit_module, "find_peak_flops", lambda kind, dtype: 50.0)
    log = fit_module.Log(tmp_path, config_from_dict({}), 4, 8, lambda row, total: None)
    log.costs = {"perf/flops_per_step": 40.0, "perf/compile_seconds": 9.0}
    sums = {name: np.ones(2, np.float32) for name in ("loss", "correct")} | {"count": np.full(2, 16.0, np.float32)}
    # (the loop is at training, the chunk is dispatched, the devices are done): in time, late by 3, in time, and after
    # a validation, which does not count, late by 1.
    for step, (started, dispatched, ended) in enumerate([(0, 1, 11), (2, 14, 21), (15, 16, 31), (40, 41, 45)]):
        moments[:] = [started]
        log.start_chunk()
        log.end_chunk(2 * step + 2, sums, Watch(dispatched, lambda ended=ended: ended))
    log.flush()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {name: rows[0][name] for name in log.costs} == log.costs
    assert "perf/host_share" not in rows[0]
    assert [row["perf/host_share"] for row in rows[1:]] == [0.3, 0, 0.2]
    np.testing.assert_allclose([row["perf/images_per_second"] for row in rows[1:]], [3.2, 3.2, 6.4])
    # Two steps of 40 FLOP in 10 and in 5 seconds, of 8 devices with 50 FLOP/s each.
    np.testing.assert_allclose([row["perf/model_flop_utilisation"] for row in rows[1:]], [0.02, 0.02, 0.04])
    assert not any(name in row for row in rows[1:] for name in log.costs)
