"""Tests of the network of the flatiron project."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from pneumojax.config import ModelConfig
from pneumojax.models import make_model


def make_flatiron(image_px, dropout=0.3, **fields):
    return make_model(ModelConfig(model="flatiron", dropout=dropout, **fields), image_px, jax.random.key(0))


def test_parameter_count_is_that_of_the_published_layers():
    conv1 = 3 * 3 * 1 * 32 + 32  # 224 -> 222, pooled 111
    conv2 = 4 * 4 * 32 * 32 + 32  # 111 -> 108, pooled 54, pooled 27
    dense1 = 27 * 27 * 32 * 128 + 128
    dense2 = 128 * 64 + 64
    dense3 = 64 * 1 + 1
    assert (conv1, conv2, dense1, dense2, dense3) == (320, 16_416, 2_986_112, 8_256, 65)
    model = nnx.eval_shape(lambda: make_flatiron(224))
    counts = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert counts == conv1 + conv2 + dense1 + dense2 + dense3 == 3_011_169


@pytest.mark.parametrize("image_px", [64, 65, 67])
def test_it_computes_the_published_layers(image_px):
    @jax.jit
    def compute(images):
        model = make_flatiron(image_px)

        def convolve(x, conv):
            kernel = conv.kernel[...]
            x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return x + conv.bias[...]

        # Biases start at zero, which would hide a bias that is not used.
        model.conv1.bias[...] = jnp.linspace(-1, 1, 32)
        model.conv2.bias[...] = jnp.linspace(1, -1, 32)
        x = nnx.max_pool(jnp.tanh(convolve(images, model.conv1)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(convolve(x, model.conv2)), (2, 2), (2, 2), "SAME")
        x = nnx.max_pool(nnx.leaky_relu(x, 0.3), (2, 2), (2, 2), "SAME")
        x = nnx.relu(model.dense1(x.reshape(2, -1)))
        return model(images, train=False), model.head.linear(nnx.relu(model.dense2(x)))

    ours, expected = compute(jax.random.normal(jax.random.key(1), (2, image_px, image_px, 1)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_training_drops_places_by_each_images_own_key():
    images = jnp.tile(jax.random.normal(jax.random.key(1), (1, 32, 32, 1)), (3, 1, 1, 1))
    keys = jax.random.split(jax.random.key(2), 2)[jnp.array([0, 1, 0])]
    train = jax.jit(lambda images, keys: make_flatiron(32)(images, train=True, keys=keys))
    first, other, same = train(images, keys)
    np.testing.assert_allclose(first, same, rtol=1e-5)
    assert abs(first - other) > 1e-3
