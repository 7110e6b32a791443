"""Tests of the plan of a training."""

import dataclasses

import numpy as np
import pytest

from pneumojax.data.dataset import load_split
from pneumojax.errors import UserError
from pneumojax.training import plan
from pneumojax.training.fit import fit


def test_batches_that_do_not_fit_are_refused_before_anything_is_written(make_config, tmp_path):
    with pytest.raises(UserError, match="batch_size 4096 is larger than the training split of"):
        fit(make_config(batch_size=4096), tmp_path / "run")
    with pytest.raises(UserError, match="batch_size 20 is not divisible by the 8 devices"):
        fit(make_config(batch_size=20), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_schedule_of_steps_and_sizes(make_config):
    made = plan.make_plan(make_config(epochs=4, chunk_steps=2, progressive_px=(16, 24, 32)))
    images = len(load_split(made.config.data, "train"))
    assert made.steps_per_epoch == images // 16 // 2 * 2
    assert made.total_steps == 4 * made.steps_per_epoch
    assert made.image_sizes == (16, 24, 32)
    # Each of the three sizes gets a third of the four epochs, rounded to whole epochs.
    first_steps = [epoch * made.steps_per_epoch for epoch in range(4)]
    assert [made.find_size_index(step) for step in first_steps] == [0, 0, 1, 2]
    assert made.find_size_index(first_steps[2] - 1) == 0
    plain = plan.make_plan(make_config())
    assert plain.image_sizes == (32,) and plain.find_size_index(plain.total_steps - 1) == 0


@pytest.mark.parametrize(
    ("fields", "mapped"),
    [({}, False), ({"parallel": "shard_map"}, True), ({"replicas": 8}, True), ({"replicas": 3}, False)],
)
def test_a_chunk_is_mapped_where_each_device_has_its_own_part(make_config, fields, mapped):
    assert plan.make_plan(make_config(**fields)).mapped == mapped


def test_labels_and_class_weights_are_those_of_the_training_split(make_config):
    made = plan.make_plan(make_config(class_weights="balanced", task="three_class"))
    subtypes = load_split(made.config.data, "train").subtypes
    np.testing.assert_array_equal(made.labels(), subtypes)
    weights = made.class_weights()
    counts = np.bincount(subtypes)
    np.testing.assert_allclose(weights * counts, np.full(3, len(subtypes) / 3), rtol=1e-5)


def test_a_selection_split_of_one_class_is_refused(make_config, monkeypatch):
    def load_one_class(config, name):
        split = load_split(config, name)
        return dataclasses.replace(split, subtypes=np.zeros_like(split.subtypes))

    monkeypatch.setattr(plan, "load_split", load_one_class)
    with pytest.raises(UserError, match="the validation split has one class only, so no model can be selected"):
        plan.load_selection_split(make_config())
