"""Tests of the cascading randomisation: its steps go from the output to the input, and the last one leaves nothing."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from random_networks import NETWORKS, make_network

from pneumojax.attribution import make_attribute
from pneumojax.evaluation.explanation_quality import correlate_ranks
from pneumojax.evaluation.randomisation import MAX_STEPS, group_layers, randomise_in_steps
from pneumojax.evaluation.run import Run, open_run
from pneumojax.models import make_model
from pneumojax.preprocessing import normalise, scale_pixels

STAGES = {
    "cnn": ["conv1", "conv2", "head"],
    "flatiron": ["conv1", "conv2", "dense1", "dense2", "head"],
    "vgg16": ["stage1", "stage2", "stage3", "stage4", "stage5", "dense1", "dense2", "head"],
    "resnet9": ["stem", "stage1", "stage2", "stage3", "head"],
    "resnet18": ["stem", "stage1", "stage2", "stage3", "stage4", "head"],
    "mlp": ["hidden1", "head"],
}


def make_random_run(name, **fields):
    config, variables = make_network(name, **fields)
    return Run(None, {}, config, jax.device_get(variables), 1, "best")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_in_a_stage_by_depth_and_becomes_new_once(name):
    run = make_random_run(name)
    model = make_model(run.config.model, 32, jax.random.key(1))
    stages = group_layers(model)
    assert list(stages) == STAGES[name]
    assert sorted(itertools.chain(*stages.values())) == sorted(run.variables["params"])
    steps = randomise_in_steps(run)
    assert list(steps) == STAGES[name][::-1]
    for i, (stage, variables) in enumerate(steps.items()):
        kept = {layer for other in STAGES[name][: len(STAGES[name]) - 1 - i] for layer in stages[other]}
        assert variables.keys() == run.variables.keys(), stage
        for kind, layers in variables.items():
            assert layers.keys() == run.variables[kind].keys()
            for layer, leaves in layers.items():
                assert (leaves is run.variables[kind][layer]) == (layer in kept), (stage, layer)


def test_the_last_step_is_a_network_that_was_never_trained(workdir):
    run = open_run(workdir)
    *_, last = randomise_in_steps(run, seed=3).values()
    model = make_model(run.config.model, run.config.data.image_px, jax.random.key(4))
    for kind, variable in (("params", nnx.Param), ("batch_stats", nnx.BatchStat)):
        ours, theirs = last[kind], nnx.to_pure_dict(nnx.state(model, variable))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_many_layers_share_the_steps_in_order():
    model = make_model(make_random_run("mlp", mlp_widths=[4] * 10).config.model, 32, jax.random.key(0))
    stages = group_layers(model)
    assert len(stages) == MAX_STEPS
    assert [*itertools.chain(*stages.values())] == [*(f"hidden{i + 1}" for i in range(10)), "head"]


def test_the_maps_of_a_linear_network_correlate_as_its_weights_times_the_image():
    run = make_random_run("mlp", mlp_widths=[])
    images, sign = np.random.default_rng(0).integers(0, 256, (2, 32, 32), np.uint8), np.ones(2, np.float32)
    attribute = make_attribute(run.config, "integrated_gradients")
    (random,) = randomise_in_steps(run, seed=4).values()
    maps = np.asarray(attribute(run.variables, images, sign))
    np.testing.assert_allclose(correlate_ranks(maps, np.asarray(attribute(run.variables, images, sign))), 1)
    measured = correlate_ranks(maps, np.asarray(attribute(random, images, sign)))
    other = make_model(run.config.model, 32, jax.random.key(5)).head.linear.kernel[...]
    weights = [np.reshape(one, (32, 32)) for one in (run.variables["params"]["head"]["linear"]["kernel"], other)]
    batch = np.asarray(normalise(scale_pixels(images), run.config.data.pixel_scaling))[..., 0]
    expected = correlate_ranks(weights[0] * batch, weights[1] * batch)
    np.testing.assert_allclose(measured, expected, atol=1e-3)
    assert (measured < 0.9).all()
