"""Tests of trainings that start from a file of weights."""

import dataclasses

import jax
import numpy as np
import pytest

from pneumojax import steps
from pneumojax.models import make_pretraining_model
from pneumojax.models.weight_import import save_backbone
from pneumojax.training.initial_weights import load_initial_weights
from pneumojax.training.plan import make_plan


@pytest.fixture
def make_backbone(make_config, tmp_path):
    """`make_backbone(fingerprint)`: writes a random backbone. Returns (path, its parameters)."""

    def make(fingerprint):
        plan = make_plan(make_config(seed=7), make_pretraining_model)
        state = jax.device_get(steps.init_state(plan.config, plan.tx, plan.mesh, make_pretraining_model))
        path = tmp_path / "backbone.safetensors"
        save_backbone(path, plan.config.model, state.eval_variables(), fingerprint)
        return path, state.params

    return make


def list_buffers(arrays):
    """Returns the addresses of the memory of all arrays on all devices."""
    shards = [shard for leaf in jax.tree.leaves(arrays) for shard in leaf.addressable_shards]
    return {shard.data.unsafe_buffer_pointer() for shard in shards}


def test_the_backbone_is_replaced_and_the_classifier_and_the_optimizer_are_kept(make_config, make_backbone, caplog):
    fingerprint = make_plan(make_config()).data.fingerprint
    path, params = make_backbone(fingerprint)
    plan = make_plan(make_config(pretrained=str(path)))
    fresh = [steps.init_state(plan.config, plan.tx, plan.mesh)]
    fresh.append(dataclasses.replace(fresh[0], ema={}))
    kept = jax.device_get(fresh[0])
    states = load_initial_weights(plan, fresh)
    assert not caplog.records
    for state in states:
        loaded = jax.device_get(state.params)
        np.testing.assert_array_equal(loaded["conv2"]["kernel"], params["conv2"]["kernel"])
        assert np.abs(loaded["conv2"]["kernel"] - kept.params["conv2"]["kernel"]).max() > 1e-3
        jax.tree.map(np.testing.assert_array_equal, loaded["head"], kept.params["head"])
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.opt_state), kept.opt_state)
    average, params = states[0].ema["params"], states[0].params
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((average, params)))
    assert states[1].ema == {}
    # A training step donates the state, which must not contain a buffer twice.
    assert not list_buffers(average) & list_buffers(params)


def test_a_backbone_of_other_images_has_a_warning(make_config, make_backbone, caplog):
    path, _ = make_backbone("another")
    plan = make_plan(make_config(pretrained=str(path)))
    load_initial_weights(plan, [steps.init_state(plan.config, plan.tx, plan.mesh)])
    assert "was pretrained on another training split" in caplog.text
