"""Compares batch normalisation with its own derivative with the derivative that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pneumojax.ops import batch_norm

EPSILON = 1e-5


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def draw_arguments(adds):
    """Returns images, scale, bias and a shortcut or None."""
    shortcut = draw(8, 3, 5, 4, seed=3) if adds else None
    return draw(8, 3, 5, 4) * 2 + 1, 1 + 0.3 * draw(4, seed=1), 0.3 * draw(4, seed=2), shortcut


def define(images, scale, bias, shortcut, relu):
    """Batch normalisation by its definition, with the shortcut and the ReLU."""
    mean, variance = images.mean((0, 1, 2)), images.var((0, 1, 2))
    result = (images - mean) / jnp.sqrt(variance + EPSILON) * scale + bias
    result = result if shortcut is None else result + shortcut
    return (jax.nn.relu(result) if relu else result), mean, variance


def differentiate(function, arguments):
    """Returns the results of a function, and the gradient of a weighted sum of the first result by each argument."""
    weights = draw(8, 3, 5, 4, seed=4)
    present = tuple(i for i, one in enumerate(arguments) if one is not None)

    def sum_weighted(*arguments):
        results = function(*arguments)
        return (weights * results[0]).sum(), results

    (_, results), grads = jax.value_and_grad(sum_weighted, present, has_aux=True)(*arguments)
    return results, grads


@pytest.mark.parametrize("function", [batch_norm.normalise, batch_norm.normalise_on_gpu])
@pytest.mark.parametrize(("relu", "adds"), [(False, False), (True, False), (True, True)])
def test_results_and_gradients_are_those_of_the_definition(function, relu, adds):
    arguments = draw_arguments(adds)
    ours = differentiate(lambda *args: function(*args, relu, EPSILON, None), arguments)
    plain = differentiate(lambda *args: define(*args, relu), arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, plain)


def test_half_precision_keeps_its_dtype_and_comes_near():
    images, scale, bias, shortcut = draw_arguments(adds=True)
    halves = images.astype("bfloat16"), scale, bias, shortcut.astype("bfloat16")
    (result, mean, variance), grads = differentiate(
        lambda *args: batch_norm.normalise_on_gpu(*args, True, EPSILON, None), halves
    )
    assert result.dtype == "bfloat16" and mean.dtype == variance.dtype == "float32"
    assert [grad.dtype.name for grad in grads] == ["bfloat16", "float32", "float32", "bfloat16"]
    _, plain = differentiate(lambda *args: define(*args, True), (images, scale, bias, shortcut))
    for ours, expected in zip(grads, plain, strict=True):
        assert jnp.abs(ours - expected).mean() < 0.03 * jnp.abs(expected).mean()


def test_a_constant_channel_has_finite_gradients():
    images = draw(8, 3, 5, 4).at[..., 1].set(7.0)
    results, grads = differentiate(
        lambda *args: batch_norm.normalise_on_gpu(*args, True, EPSILON, None), (images, *draw_arguments(False)[1:])
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((results, grads)))


def test_devices_of_a_mapped_axis_normalise_their_whole_batch():
    arguments = draw_arguments(adds=True)
    mesh, sharded, replicated = Mesh(np.array(jax.devices()[:4]), ("d",)), PartitionSpec("d"), PartitionSpec()
    mapped = jax.shard_map(
        lambda *args: batch_norm.normalise_on_gpu(*args, True, EPSILON, "d"),
        mesh=mesh,
        in_specs=(sharded, replicated, replicated, sharded),
        out_specs=(sharded, replicated, replicated),
        check_vma=False,
    )
    ours, plain = differentiate(mapped, arguments), differentiate(lambda *args: define(*args, True), arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, plain)
