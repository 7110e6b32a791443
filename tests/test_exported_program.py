"""Tests of exported programs: every network, any number of images, and the answers of the network itself."""

import jax
import numpy as np
import pytest
from flax import nnx
from random_networks import LARGE, NETWORKS, make_network

from pneumojax.exported_program import PLATFORMS, make_function, open_program, serialize
from pneumojax.losses import as_class_logits
from pneumojax.preprocessing import normalise, scale_pixels
from pneumojax.steps import make_graph

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32), np.uint8)
CALIBRATION = {"temperature": 2.0, "biases": [0.0, 0.5, -0.25]}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in NETWORKS])
def test_a_program_answers_as_the_network_does_for_any_number_of_images(name, tmp_path):
    config, variables = make_network(name, "three_class")
    path = tmp_path / "model.stablehlo"
    path.write_bytes(serialize(make_function(config, variables, CALIBRATION), 32))
    predict = open_program(path)

    @jax.jit
    def apply(images):
        model = nnx.merge(make_graph(config), variables["params"], variables["batch_stats"])
        return as_class_logits(model(normalise(scale_pixels(images), config.data.pixel_scaling), train=False))

    logits = np.asarray(apply(IMAGES))
    calibrated = np.exp(logits / 2 + CALIBRATION["biases"])
    calibrated /= calibrated.sum(1, keepdims=True)
    for number in (5, 1):
        found = predict(IMAGES[:number])
        np.testing.assert_allclose(found[0], calibrated[:number], atol=1e-5)
        np.testing.assert_allclose(found[1], logits[:number], atol=1e-4)
        assert found[2].shape[0] == number and found[2].ndim == 2 and found[2].dtype == np.float32


def test_a_program_is_for_all_platforms_and_has_no_algorithm_for_one_of_them():
    config, variables = make_network("resnet18")
    exported = jax.export.deserialize(
        bytearray(serialize(make_function(config, variables, CALIBRATION | {"biases": [0.0, 0.0]}), 32))
    )
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
    # JAX has a lowering of convolutions for each platform, and stores them all.
    assert text.count("stablehlo.convolution(") == len(PLATFORMS) * len(kernels)
    assert "optimization_barrier" not in text
