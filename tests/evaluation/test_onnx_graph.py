"""Tests of the conversion to ONNX, with onnxruntime as the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx
from jax import lax
from random_networks import NETWORKS, make_network

from pneumojax.errors import UserError
from pneumojax.evaluation.onnx_graph import OPSET, convert
from pneumojax.exported_program import OUTPUTS, make_function
from pneumojax.ops.xla import algorithms

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32), np.uint8)
CALIBRATION = {"temperature": 2.0, "biases": [0.0, 0.5, -0.25]}


def run(model, outputs, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {"images": images})


# resnet50 has blocks of another kind, and each stem has its own padding.
CASES = [(name, {}) for name in NETWORKS] + [
    ("resnet18", {"resnet_stem": "small", "resnet_width": 4}),
    ("flatiron", {"image_px": 33}),  # Pooling drops a row and a column.
    pytest.param("resnet50", {"resnet_width": 4}, marks=pytest.mark.slow),
    pytest.param("vgg16", {"vgg_dense_widths": []}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_every_network_has_the_same_outputs_in_onnxruntime_for_any_number_of_images(name, fields):
    config, variables = make_network(name, "three_class", **fields)
    function, px = make_function(config, variables, CALIBRATION), config.data.image_px
    images = np.random.default_rng(0).integers(0, 256, (5, px, px), np.uint8)
    with algorithms("xla"):
        model = convert(function, px, OUTPUTS, {"classes": "NORMAL,BACTERIA,VIRUS"})
        expected = jax.jit(function)(images)
    assert model.opset_import[0].version == OPSET
    assert {entry.key: entry.value for entry in model.metadata_props} == {"classes": "NORMAL,BACTERIA,VIRUS"}
    for number in (5, 1):
        for found, wanted in zip(run(model, OUTPUTS, images[:number]), expected, strict=True):
            np.testing.assert_allclose(found, wanted[:number], rtol=1e-4, atol=1e-4)


def pick(images, row):
    """Returns one row of each image."""
    return lax.squeeze(lax.slice_in_dim(images, row, row + 1, axis=1), (1,))


OPERATIONS = {
    "no axis": lambda x: pick(x, 0).sum(()),
    "powers": lambda x: pick(x, 0) ** 3 + lax.rsqrt(1 + pick(x, 1)) + jnp.square(pick(x, 2)),
    "broadcasts": lambda x: pick(x, 0) * jnp.arange(32.0) + jnp.broadcast_to(x.mean((1, 2))[:, None], pick(x, 0).shape),
    "slices": lambda x: lax.slice_in_dim(x, 3, 20, 2, axis=1),
    "selection": lambda x: jnp.where(pick(x, 0) > 100, pick(x, 1), -pick(x, 2)),
    "product": lambda x: jnp.einsum("bhw,wk->bhk", x, jnp.eye(32)[:, :4]),
    "pooling": lambda x: nnx.max_pool(x[..., None], (3, 3), (2, 2), ((1, 1), (0, 1))),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_the_same_result(name):
    def function(images):
        return (OPERATIONS[name](images.astype(jnp.float32)),)

    (expected,) = function(IMAGES)
    (found,) = run(convert(function, 32, ("result",), {}), ("result",), IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


def test_an_operation_without_translation_is_named():
    with pytest.raises(UserError, match="operation erf_inv, which has no translation to ONNX. Use --noonnx"):
        convert(lambda images: (jax.scipy.special.erfinv(images / 256),), 32, ("result",), {})
