"""Tests of configs: their fields, and the way to a dict and back."""

import dataclasses
import json

import pytest

from pneumojax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ThresholdConfig,
    TrainConfig,
    config_fields,
    config_from_dict,
    config_to_dict,
    replace_fields,
)
from pneumojax.errors import UserError
from pneumojax.models import MODELS


def test_field_names_are_unique_over_all_groups():
    names = [field.name for field in config_fields()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("field", config_fields(), ids=lambda field: field.name)
def test_every_field_has_a_help_text_and_frozen_default(field):
    assert field.metadata["help"].strip()
    assert field.default is not dataclasses.MISSING
    hash(field.default)


def test_choices_of_model_are_the_networks_there_are():
    fields = {field.name: field for field in config_fields()}
    assert fields["model"].metadata["choices"] == tuple(MODELS)


def test_a_config_survives_the_way_through_json():
    config = Config(
        data=DataConfig(dataset="kermany", data_dir="somewhere", image_px=96),
        model=ModelConfig(model="cnn", task="three_class", cnn_widths=(4, 8), dropout=0.25),
        augment=AugmentConfig(flip=True, crop_min_area=0.5),
        optimizer=OptimizerConfig(optimizer="sgd", ema_decay=0.99),
        train=TrainConfig(chunk_steps=5, parallel="pmap", batch_norm="local"),
        threshold=ThresholdConfig(threshold_rule="youden"),
    )
    values = json.loads(json.dumps(config_to_dict(config)))
    assert config_from_dict(values) == config
    assert set(values) == {field.name for field in config_fields()}


def test_missing_fields_take_their_defaults_and_the_given_dict_is_not_changed():
    values = {"epochs": 3}
    assert config_from_dict(values) == Config(train=TrainConfig(epochs=3))
    assert values == {"epochs": 3}


def test_unknown_fields_are_named():
    with pytest.raises(UserError, match=r"unknown config fields: colour, epoch\."):
        config_from_dict({"epoch": 3, "epochs": 3, "colour": "red"})


def test_a_config_cannot_be_changed_after_its_check():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = -1


def test_a_field_that_does_not_exist_is_not_replaced():
    config = config_from_dict({})
    assert replace_fields(config, {"epochs": 3}).train.epochs == 3
    with pytest.raises(UserError, match="unknown config fields: epoch"):
        replace_fields(config, {"epoch": 3})
