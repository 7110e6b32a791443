"""Tests of the compiled programs: communication between devices and with the host, and operations for accelerators.

JAX can lower a program to StableHLO, before XLA's optimisations, for a platform that the machine does not have.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainer import CLASS_WEIGHTS, PLAIN, RANDOM, Trainer, draw_batches, make_mesh

from pneumojax import steps
from pneumojax.config import AugmentConfig, config_from_dict
from pneumojax.data.augment import make_augment
from pneumojax.inference import make_predict
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import put

# Operations that would wait for the host, or gather sharded arrays.
LEAVING = ("infeed", "outfeed", "callback", " send(", " recv(", "all-gather(", "all-to-all(")


def count_all_reduces(parallel, batch_norm, norms):
    """Returns the number of sums over devices in a step of the small CNN with this number of normalisations."""
    if batch_norm == "local":
        return 2  # Gradients and running statistics are summed together, the metrics separately.
    if parallel == "jit":
        # Each normalisation has a sum in the forward and one in the backward pass. The last of these is combined with
        # everything that is ready by then, which is all but the gradient of the first kernel.
        return 2 * norms + 1
    return 2 * norms + 2


@pytest.mark.parametrize(
    ("parallel", "batch_norm", "widths"),
    [
        ("jit", "global", (4, 8)),
        pytest.param("jit", "global", (4, 4, 4), marks=pytest.mark.slow),
        pytest.param("shard_map", "global", (4, 4, 4), marks=pytest.mark.slow),
        ("shard_map", "local", (4, 8)),
        pytest.param("pmap", "global", (4, 8), marks=pytest.mark.slow),
        ("pmap", "local", (4, 8)),
    ],
)
def test_a_chunk_stays_on_the_devices_takes_over_its_state_and_adds_up_no_more_than_it_must(
    parallel, batch_norm, widths
):
    trainer = Trainer(8, parallel=parallel, batch_norm=batch_norm, cnn_widths=widths, ema_decay=0.9)
    text = trainer.chunk.lower(*trainer.arguments(draw_batches(2))).compile().as_text()
    assert text.count(" all-reduce(") == count_all_reduces(parallel, batch_norm, len(widths))
    assert not [word for word in LEAVING if word in text]
    assert find_taken_over(text) == set(range(len(jax.tree.leaves(trainer.state))))


def find_taken_over(text):
    """Returns the indices of the donated arguments."""
    return {int(number) for number in re.findall(r"\{\d*\}: \((\d+), \{\}, \w+-alias\)", text.splitlines()[0])}


def write_program(monkeypatch, platform, **fields):
    """Returns (StableHLO of a training chunk for a platform, shapes of its state, shapes of its results)."""
    monkeypatch.setattr(jax, "default_backend", lambda: {"cuda": "gpu"}.get(platform, platform))
    config = config_from_dict(PLAIN | RANDOM | {"vgg_width": 4, "vgg_dense_widths": ()} | fields)
    mesh, tx, kind = make_mesh(1), make_optimizer(config.optimizer, 10), jax.ShapeDtypeStruct
    chunk = steps.make_train_chunk(config, steps.make_graph(config), tx, CLASS_WEIGHTS, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(steps.make_init(config, tx, mesh), key)
    data = kind((64, 32, 32), np.uint8), kind((64,), np.int32), kind((2, 16), np.int32)
    traced = chunk.trace(state, *data, key)
    return traced.lower(lowering_platforms=(platform,)).as_text(), state, traced.out_info


def find_shapes(text, operation):
    """Lists the types of operands and result of each operation of a kind, such as ["16x32x32x1xbf16", ...]."""
    lines = [line for line in text.splitlines() if re.search(rf"stablehlo\.{operation}\b", line) and " -> " in line]
    return [re.findall(r"tensor<([^>]*)>", line[line.rindex(" : ") :]) for line in lines]


@pytest.mark.parametrize(
    ("model", "platform", "xla_pools"),
    [
        ("cnn", "tpu", 2),
        ("resnet18", "cuda", 0),
        pytest.param("vgg16", "cuda", 0, marks=pytest.mark.slow),
        ("flatiron", "cuda", 0),
    ],
)
def test_an_accelerator_gets_plain_convolutions_in_the_compute_type_and_the_rest_in_float32(
    monkeypatch, model, platform, xla_pools
):
    text, state, (new_state, sums) = write_program(monkeypatch, platform, model=model, dtype="bfloat16")
    kernels = [leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim == 4]
    convolutions = find_shapes(text, "convolution")
    # Each convolution has one forward and two gradients, but the gradient of the input images is not needed.
    assert len(convolutions) == 3 * len(kernels) - 1
    assert {shape.split("x")[-1] for shapes in convolutions for shape in shapes} == {"bf16"}
    # The layout of the images does not change, also in the gradients.
    assert not [shapes for shapes in find_shapes(text, "transpose") if shapes[0].count("x") >= 4]
    # A TPU gets XLA's own pooling, and no barrier against fusion. A GPU gets the pooling that stores positions.
    assert text.count('"stablehlo.reduce_window"') == text.count('"stablehlo.select_and_scatter"') == xla_pools
    assert platform == "cuda" or "optimization_barrier" not in text
    assert "callback" not in text and not [word for word in ("infeed", "outfeed", ".send", ".recv") if word in text]
    # These are in float32: sums over positions or images, powers, roots, logarithms, the state and the metric sums.
    for operation in ("exponential", "log", "log_plus_one", "rsqrt", "sqrt", "power"):
        assert not [line for line in text.splitlines() if f"stablehlo.{operation} " in line and "bf16" in line]
    added = [line for line in text.splitlines() if "stablehlo.reduce(" in line and "applies stablehlo.add" in line]
    assert not [line for line in added if re.search(r"\(tensor<\d+x\d+x\d+x\d+xbf16>", line)]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(new_state)} == {"float32", "int32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves((new_state.params, new_state.batch_stats, sums))} == {"float32"}


def test_what_a_cpu_gets_is_not_what_an_accelerator_gets():
    config, mesh = config_from_dict(PLAIN), make_mesh(1)
    tx, arguments = make_optimizer(config.optimizer, 10), Trainer(1).arguments(draw_batches(2))
    chunk = steps.make_train_chunk(config, steps.make_graph(config), tx, CLASS_WEIGHTS, mesh)
    text = chunk.lower(*arguments).as_text()
    assert "optimization_barrier" in text and "select_and_scatter" not in text


GEOMETRY = {"rotate_degrees": 10.0, "shift": 0.1, "zoom": 0.1, "crop_min_area": 0.5, "flip": True}


@pytest.mark.parametrize("names", [("flip",), tuple(GEOMETRY)], ids=["one change", "all changes"])
def test_all_geometry_takes_one_resampling(names):
    config = AugmentConfig(**dict.fromkeys(GEOMETRY, 0.0) | {"crop_min_area": 1.0} | {n: GEOMETRY[n] for n in names})
    keys = jax.random.split(jax.random.key(0), 4)
    text = jax.jit(make_augment(config)).lower(keys, jnp.zeros((4, 16, 16))).as_text()
    # Each pixel is interpolated from its four neighbours once.
    assert [shapes[-1] for shapes in find_shapes(text, "gather")] == ["4x16x16xf32"] * 4


def test_predictions_in_between_and_a_restored_state_need_no_other_program():
    trainer, batches = Trainer(8, ema_decay=0.9), draw_batches(2)
    predict = make_predict(steps.make_graph(trainer.config), trainer.mesh)
    images = trainer.constants[0]
    rows = put(draw_batches(1), trainer.mesh, axis=1)
    for _ in range(2):
        trainer.train(batches)
        predict(trainer.state.eval_variables(), images, rows)
        trainer.state = jax.tree.map(lambda leaf: put(np.asarray(leaf), trainer.mesh), trainer.state)
    assert (trainer.chunk._cache_size(), predict._cache_size()) == (1, 1)
