"""Tests of the presets of published systems: each has a description and builds its network."""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from experiments import flags
from pneumojax.config import AugmentConfig, config_to_dict
from pneumojax.data.augment import keep_pneumonia, make_augment
from pneumojax.models import make_model

PRESETS = pathlib.Path(__file__).parents[2] / "experiments" / "presets"
SYSTEMS = ("a1", "a2", "a3", "b1", "c1", "d1", "d2", "d3", "e1", "e2", "e3")
EVERY_SYSTEM = pytest.mark.parametrize("name", SYSTEMS)


def read_preset(name):
    return flags.read_preset(PRESETS / f"{name}.flags")


@EVERY_SYSTEM
def test_a_preset_says_what_is_published_what_is_assumed_and_what_it_costs(name):
    text = (PRESETS / f"{name}.flags").read_text()
    assert text.startswith(f"# {name}: ")
    assert "\n# Published" in text
    assert "\n# Our reading" in text
    assert re.search(r"^# \d+ px, .*(seconds|minutes?) on two CPU cores", text, re.MULTILINE)


@EVERY_SYSTEM
def test_a_system_builds_its_network_at_its_size(name):
    config = read_preset(name)
    size = config.data.image_px
    model = nnx.eval_shape(lambda: make_model(config.model, size, jax.random.key(0)))
    assert (model.head.linear.bias.shape[0]) == (3 if name == "a3" else 1)
    assert f"# {size} px, " in (PRESETS / f"{name}.flags").read_text()


def test_a2_is_a1_with_another_threshold_rule():
    a1, a2 = read_preset("a1"), read_preset("a2")
    assert dataclasses.replace(a1, threshold=a2.threshold) == a2
    assert 0.98 <= a2.threshold.target_sensitivity <= 0.99
    assert a2.threshold.threshold_rule == "target_sensitivity"


@pytest.mark.parametrize("name", ["b1", "d1", "e1"])
def test_systems_without_augmentation_change_no_image(name):
    keys = jax.random.split(jax.random.key(0), 2)
    images = np.random.default_rng(0).random((2, 8, 8), np.float32)
    np.testing.assert_array_equal(make_augment(read_preset(name).augment)(keys, images), images)


def test_augmenting_normal_only_leaves_pneumonia_bitwise_as_it_is():
    augment = jax.jit(make_augment(AugmentConfig(flip=True, erase_probability=1.0)))
    keys = jax.random.split(jax.random.key(0), 4)
    images = np.random.default_rng(0).random((4, 16, 16), np.float32)
    labels = np.array([0, 1, 2, 0])
    augmented = augment(keys, images)
    assert np.abs(augmented - images).max((1, 2)).min() > 0.1
    kept = keep_pneumonia(images, augmented, labels)
    np.testing.assert_array_equal(kept[1:3], images[1:3])
    np.testing.assert_array_equal(kept[::3], augmented[::3])


def test_the_ensemble_is_five_of_the_small_flagship():
    small, ensemble = read_preset("flagship_small"), read_preset("flagship_ensemble")
    assert dataclasses.replace(ensemble, train=small.train) == small
    assert dataclasses.replace(small.train, replicas=5) == ensemble.train


def test_the_flagship_is_the_small_one_but_larger_and_longer():
    small, large = (config_to_dict(read_preset(name)) for name in ("flagship_small", "flagship"))
    larger = {name for name in small if small[name] != large[name]}
    assert larger == {"resnet_width", "image_px", "progressive_px", "epochs"}
    assert all(large[name] > small[name] for name in ("resnet_width", "image_px", "epochs"))


@pytest.mark.parametrize("name", ["flagship", "flagship_small"])
def test_the_flagship_hides_aspect_exposure_and_contrast_and_trusts_no_single_epoch(name):
    config = read_preset(name)
    assert config.data.pixel_scaling == "image" and config.augment.stretch > 0 and config.augment.crop_max_aspect >= 2
    assert config.train.select_by == "last" and config.data.selection_images == "shift"
    assert config.data.selection_split == "validation"
