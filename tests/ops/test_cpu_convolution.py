"""Tests of the convolution on CPU: which algorithm is used, and batch tiles."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from xla_reference import assert_near, compute_with_gradients, plain_convolve

from pneumojax.ops import convolution, cpu_convolution, winograd

WINOGRAD_CHANNELS = 40, 44


def make_tiles_small(monkeypatch):
    for name in dir(cpu_convolution):
        if name.startswith("MIN_") and "_TILE_" in name:
            monkeypatch.setattr(cpu_convolution, name, 1)


# Outputs up to 7 px have another algorithm, so each kernel is tested with one size up to 7 px and one above.
USUAL = [(3, 1, px) for px in (4, 7, 9, 14)] + [(3, 0, 4), (3, 0, 9), (3, 2, 7), (3, 2, 14)]
USUAL += [(4, 1, 4), (4, 1, 14), (5, 2, 7), (5, 2, 9)]
ALL = itertools.product(((3, 1), (3, 0), (3, 2), (4, 1), (5, 2)), (4, 7, 9, 14))


@pytest.mark.parametrize(
    ("size", "pad", "px"),
    [
        case if case in USUAL else pytest.param(*case, marks=pytest.mark.slow)
        for case in ((*kernel, px) for kernel, px in ALL)
    ],
)
def test_winograds_algorithm_is_xlas_convolution_with_its_gradients(monkeypatch, px, size, pad):
    make_tiles_small(monkeypatch)
    calls = []
    for name in ("convolve", "compute_kernel_grads", "multiply_kernel_grads"):
        algorithm = getattr(winograd, name)
        monkeypatch.setattr(
            winograd, name, lambda *args, algorithm=algorithm, name=name: calls.append(name) or algorithm(*args)
        )
    rng = np.random.default_rng(px)
    channels, features = WINOGRAD_CHANNELS
    of_kernel = (
        {"multiply_kernel_grads"}
        if px <= cpu_convolution.MAX_FEW_PX
        else {"compute_kernel_grads"}
        if size == 3
        else set()
    )
    px += size - 1 - 2 * pad  # size of the images, for px of the result
    images = rng.normal(size=(2 * jax.device_count(), px, px + 1, channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels, features)).astype(np.float32)
    ours = compute_with_gradients(lambda i, k: convolution.convolve(i, k, 1, pad), images, kernel)
    plain = compute_with_gradients(lambda i, k: plain_convolve(i, k, 1, pad), images, kernel)
    assert set(calls) == {"convolve"} | of_kernel
    for mine, theirs in zip(ours, plain, strict=True):
        assert_near(mine, theirs)


def test_a_single_image_is_convolved_by_xla(monkeypatch):
    monkeypatch.setattr(winograd, "convolve", None)
    images, kernel = np.ones((1, 9, 9, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
    ours = compute_with_gradients(lambda i, k: convolution.convolve(i, k, 1), images, kernel)
    plain = compute_with_gradients(lambda i, k: plain_convolve(i, k, 1), images, kernel)
    for mine, theirs in zip(ours, plain, strict=True):
        assert_near(mine, theirs)


@pytest.mark.parametrize(
    ("rows", "size", "channels", "stride", "dtype", "taken"),
    [
        (56, 3, 64, 1, "float32", True),
        (4, 3, 512, 1, "float32", True),
        (3, 3, 512, 1, "float32", False),
        (56, 3, 32, 1, "float32", False),
        (56, 3, 64, 2, "float32", False),
        (56, 4, 32, 1, "float32", True),
        (56, 2, 64, 1, "float32", False),
        (56, 7, 64, 1, "float32", False),
        (56, 3, 64, 1, "bfloat16", False),
    ],
)
def test_winograds_algorithm_is_taken_where_it_pays_and_is_exact_enough(rows, size, channels, stride, dtype, taken):
    assert cpu_convolution._is_for_winograd(rows, (size, size, channels, channels), stride, jnp.dtype(dtype)) == taken


@pytest.mark.parametrize(("stride", "channels", "features"), [(2, 2, 4), (1, *WINOGRAD_CHANNELS)])
def test_batch_tiles_inside_a_loop_give_the_whole_batchs_result_and_stay_on_their_devices(
    monkeypatch, stride, channels, features
):
    make_tiles_small(monkeypatch)
    batch = 3 * jax.device_count()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, batch, 9, 10, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, features)).astype(np.float32)

    def train(convolve, kernel, images):
        def step(kernel, images):
            gradients = jax.grad(lambda k, i: (convolve(i, k, stride) ** 2).sum(), (0, 1))(kernel, images)
            return kernel - 1e-5 * gradients[0] + 1e-5 * gradients[1].mean(), None

        return lax.scan(step, kernel, images)[0]

    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    replicated, sharded = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "data"))
    ours = jax.jit(
        functools.partial(train, convolution.convolve), in_shardings=(replicated, sharded), out_shardings=replicated
    )
    text = ours.lower(kernel, images).compile().as_text()
    assert '"known_trip_count":{"n":"3"}' in text  # batch tiles
    assert not [word for word in ("all-gather", "all-to-all", "collective-permute") if f" {word}(" in text]
    assert_near(
        np.asarray(ours(kernel, images)), np.asarray(jax.jit(train, static_argnums=0)(plain_convolve, kernel, images))
    )


@pytest.mark.parametrize(
    ("devices", "batch", "positions", "min_images", "tiles"),
    [
        (8, 256, 224 * 224, 8, 4),
        (8, 32, 224 * 224, 1, 4),
        (8, 1024, 28 * 28, 8, 8),  # 16 images
        (8, 32, 8 * 8, 8, 1),
        (8, 20, 224 * 224, 1, 1),
        (1, 32, 56 * 56, 8, 4),
        (1, 32, 8 * 8, 8, 2),
        (1, 31, 8 * 8, 8, 1),
    ],
)
def test_batch_tiles_are_equal_and_give_each_device_enough_to_do(
    monkeypatch, devices, batch, positions, min_images, tiles
):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert cpu_convolution._count_batch_tiles(batch, positions, min_images, 12_500) == tiles


def test_convolve_compiles_to_the_fast_layout_inside_a_loop():
    # Regression test: gradients were folded into a layout for which XLA's CPU backend has only a slow loop nest.
    images, kernel = jnp.ones((2, 16, 16, 4)), jnp.ones((3, 3, 4, 8))

    def step(kernel, images):
        gradient = jax.grad(lambda k, i: (convolution.convolve(i, k, 1) ** 2).sum(), (0, 1))(kernel, images)
        return kernel - gradient[0] + gradient[1].mean(), None

    compiled = jax.jit(lambda k, batches: lax.scan(step, k, batches)).lower(kernel, jnp.stack([images] * 3)).compile()
    convolutions = [line for line in compiled.as_text().splitlines() if " convolution(" in line]
    assert len(convolutions) == 3
    assert all("dim_labels=b01f_01io->b01f" in line for line in convolutions), convolutions
