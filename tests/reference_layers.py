"""The layers of a network by their definitions, and random weights, for the tests of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from xla_reference import plain_convolve


def draw_weights(make):
    """Makes a network, and replaces all its arrays by random numbers: variances and scales are positive.

    Args:
      make: function without arguments that makes the network.

    Returns:
      (model, weights): the network, and its parameters and batch statistics as nested dicts of numpy arrays.
    """
    model = nnx.eval_shape(make)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        numbers = rng.normal(size=leaf.shape).astype(np.float32)
        names = [getattr(key, "key", None) for key in path]
        positive = "var" in names or "scale" in names
        return 0.5 + np.abs(numbers) if positive else numbers / max(1, np.prod(leaf.shape[:-1])) ** 0.5

    weights = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(nnx.state(model)))
    nnx.update(model, jax.tree.map(jnp.array, weights))  # Training would change numpy arrays in place.
    return model, weights


def normalise(x, layer):
    """Batch normalisation with running statistics."""
    return (x - layer["mean"]) / np.sqrt(layer["var"] + 1e-5) * layer["scale"] + layer["bias"]


def convolve(x, layer, stride=1, pad=None):
    return np.asarray(plain_convolve(x, layer["kernel"], stride, pad)) + layer.get("bias", 0)


def relu(x):
    return np.maximum(x, 0)


def max_pool(x, size):
    """Max-pooling at stride 2: 2x2 windows, with a smaller one at an odd edge, or 3x3 windows around even pixels."""
    edge = ((0, 0), (size // 3, 1), (size // 3, 1), (0, 0))
    padded = np.pad(x, edge, constant_values=-np.inf)
    rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
    windows = [
        padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(size) for j in range(size)
    ]
    return np.max(windows, axis=0)


def apply_linear(x, layer):
    return x @ layer["kernel"] + layer.get("bias", 0)
