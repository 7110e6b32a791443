"""Compares the fused 1x1 convolution and batch normalisation with the two operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pneumojax.ops.pointwise import convolve_and_normalise

EPSILON = 1e-5


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def draw_arguments(adds):
    """Returns images, kernel, scale, bias, and a shortcut or None."""
    images, kernel = jax.nn.relu(draw(8, 3, 5, 6) + 0.5), 0.4 * draw(6, 12, seed=1)
    shortcut = draw(8, 3, 5, 12, seed=4) if adds else None
    return images, kernel, 1 + 0.3 * draw(12, seed=2), 0.3 * draw(12, seed=3), shortcut


def apply_both(images, kernel, scale, bias, shortcut, relu):
    """The convolution, batch normalisation by its definition, the shortcut and the ReLU."""
    convolved = jnp.einsum("bhwi,io->bhwo", images, kernel, precision="highest")
    mean, variance = convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))
    result = (convolved - mean) / jnp.sqrt(variance + EPSILON) * scale + bias
    result = result if shortcut is None else result + shortcut
    return (jax.nn.relu(result) if relu else result), mean, variance


def differentiate(function, arguments):
    """Returns the results of a function, and the gradient of a weighted sum of the first result by each argument."""
    weights = draw(8, 3, 5, 12, seed=5)
    present = tuple(i for i, one in enumerate(arguments) if one is not None)

    def sum_weighted(*arguments):
        results = function(*arguments)
        return (weights * results[0]).sum(), results

    (_, results), grads = jax.value_and_grad(sum_weighted, present, has_aux=True)(*arguments)
    return results, grads


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_results_and_gradients_are_those_of_the_two_operations(relu, adds):
    arguments = draw_arguments(adds)
    ours = differentiate(lambda *args: convolve_and_normalise(*args, relu, EPSILON, None), arguments)
    plain = differentiate(lambda *args: apply_both(*args, relu), arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, plain)


def test_half_precision_keeps_its_dtype_and_comes_near():
    images, kernel, scale, bias, shortcut = draw_arguments(adds=True)
    halves = images.astype("bfloat16"), kernel, scale, bias, shortcut.astype("bfloat16")
    (result, *_), grads = differentiate(lambda *args: convolve_and_normalise(*args, True, EPSILON, None), halves)
    assert [one.dtype.name for one in (result, *grads)] == ["bfloat16"] * 2 + ["float32"] * 3 + ["bfloat16"]
    _, plain = differentiate(lambda *args: apply_both(*args, True), draw_arguments(adds=True))
    for ours, expected in zip(grads, plain, strict=True):
        assert jnp.abs(ours - expected).mean() < 0.04 * jnp.abs(expected).mean()


@pytest.mark.slow
def test_devices_of_a_mapped_axis_normalise_their_whole_batch():
    arguments = draw_arguments(adds=True)
    mesh, sharded, replicated = Mesh(np.array(jax.devices()[:4]), ("d",)), PartitionSpec("d"), PartitionSpec()
    mapped = jax.shard_map(
        lambda *args: convolve_and_normalise(*args, True, EPSILON, "d"),
        mesh=mesh,
        in_specs=(sharded, replicated, replicated, replicated, sharded),
        out_specs=(sharded, replicated, replicated),
        check_vma=False,
    )
    ours, plain = differentiate(mapped, arguments), differentiate(lambda *args: apply_both(*args, True), arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, plain)
