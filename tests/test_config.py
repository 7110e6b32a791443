import dataclasses
import json
import math
import re

import jax
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
)
from pneumojax.errors import UserError
from pneumojax.models import MODELS
from pneumojax.steps import make_abstract_variables
from pneumojax.training.sweep import plan_replicas

EVERY_FIELD = pytest.mark.parametrize("field", config_fields(), ids=lambda field: field.name)


def test_field_names_are_unique_over_all_groups():
    names = [field.name for field in config_fields()]
    assert len(names) == len(set(names))


@EVERY_FIELD
def test_every_field_has_a_help_text_and_frozen_default(field):
    assert field.metadata["help"].strip()
    assert field.default is not dataclasses.MISSING
    hash(field.default)


@EVERY_FIELD
def test_a_value_just_outside_a_limit_is_refused_and_the_sentence_names_the_field_and_the_limit(field):
    limits = {name: field.metadata[name] for name in ("choices", "at_least", "above", "at_most", "below")}
    step = 1 if "int" in str(field.type) else 1e-6
    outside = {
        "choices": lambda choices: "nonsense",
        "at_least": lambda limit: limit - step,
        "above": lambda limit: limit,
        "at_most": lambda limit: limit + step,
        "below": lambda limit: limit,
    }
    for name, limit in limits.items():
        if limit is None:
            continue
        value = outside[name](limit)
        given = [value] if isinstance(field.default, tuple) else value
        with pytest.raises(UserError, match=rf"^{field.name} must be .* not {value}\.$"):
            config_from_dict({field.name: given})


@EVERY_FIELD
def test_a_value_on_an_inclusive_limit_is_taken(field):
    values = [field.metadata[name] for name in ("at_least", "at_most") if field.metadata[name] is not None]
    for value in [*values, *(field.metadata["choices"] or ())]:
        given = [value] if isinstance(field.default, tuple) else value
        # batch_norm=local contradicts the default of parallel, and progressive_px=16 that of image_px.
        config = config_to_dict(config_from_dict({"parallel": "shard_map", "image_px": 16, field.name: given}))
        assert config[field.name] == given


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "field", [field for field in config_fields() if "float" in str(field.type)], ids=lambda f: f.name
)
def test_a_number_that_is_not_finite_is_refused(field, value):
    with pytest.raises(UserError, match=f"^{field.name} must be a finite number"):
        config_from_dict({field.name: value})


def test_each_number_of_a_list_is_checked():
    with pytest.raises(UserError, match=r"cnn_widths must be at least 1, not 0\."):
        ModelConfig(cnn_widths=(8, 0))


def test_choices_of_model_are_the_networks_there_are():
    fields = {field.name: field for field in config_fields()}
    assert fields["model"].metadata["choices"] == tuple(MODELS)


def test_fields_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="^batch_norm=local needs parallel="):
        config_from_dict({"batch_norm": "local"})
    with pytest.raises(UserError, match="^multihost needs parallel="):
        config_from_dict({"multihost": True, "parallel": "pmap"})
    for parallel in ("shard_map", "pmap"):
        assert config_from_dict({"batch_norm": "local", "parallel": parallel}).train.batch_norm == "local"
    for parallel in ("jit", "shard_map"):
        assert config_from_dict({"multihost": True, "parallel": parallel}).train.multihost


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"progressive_px": (32, 48)}, "progressive_px must be ascending and end with image_px 64, not be 32, 48."),
        (
            {"progressive_px": (48, 32, 64)},
            "progressive_px must be ascending and end with image_px 64, not be 48, 32",
        ),
        (
            {"progressive_px": (32, 32, 64)},
            "progressive_px must be ascending and end with image_px 64, not be 32, 32",
        ),
        ({"progressive_px": (32, 48, 64), "epochs": 2}, "progressive_px has 3 sizes: epochs must be at least 3."),
        ({"progressive_px": (32, 64), "model": "mlp"}, "progressive_px cannot be used with mlp: its weights fit one"),
        ({"progressive_px": (32, 64), "model": "flatiron"}, "progressive_px cannot be used with flatiron: its weights"),
        ({"progressive_px": (32, 64), "cached_views": 2}, "cached_views stores features of one image size"),
        ({"loader": "stream", "cached_views": 2}, "cached_views keeps all features on the devices: use --loader=res"),
        ({"loader": "stream", "replicas": 2}, "loader=stream reads the batches of one run: use --loader=resident, or"),
    ],
)
def test_sizes_and_loaders_that_do_not_fit_the_rest_are_refused(fields, sentence):
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        config_from_dict(fields)


@pytest.mark.parametrize("model", [model for model in MODELS if model not in ("mlp", "flatiron")])
def test_the_weights_of_the_other_networks_fit_every_size(model):
    assert config_from_dict({"model": model, "progressive_px": (32, 64)}).data.progressive_px == (32, 64)
    small = {"resnet_width": 4, "vgg_width": 4, "vgg_dense_widths": (8,), "cnn_widths": (4, 8), "model": model}
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, make_abstract_variables(config_from_dict(small | {"image_px": px})))
        for px in (32, 64)
    ]
    assert shapes[0] == shapes[1]


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


def test_replicas_are_runs_with_seeds_in_a_row_and_the_values_of_the_sweep(tmp_path):
    plain = config_from_dict({"seed": 5, "epochs": 7})
    assert plan_replicas(plain) == [plain]
    assert plan_replicas(config_from_dict({"seed": 5, "epochs": 7, "replicas": 3})) == [
        config_from_dict({"seed": seed, "epochs": 7}) for seed in (5, 6, 7)
    ]
    path = tmp_path / "sweep.toml"
    path.write_text("learning_rate = [1e-3, 1]\nweight_decay = [0, 0.5]\nseed = [2, 2]\naugment_strength = [0, 1.5]")
    assert plan_replicas(config_from_dict({"replicas": 2, "sweep": str(path)})) == [
        config_from_dict({"seed": 2, "learning_rate": 1e-3, "weight_decay": 0.0, "augment_strength": 0.0}),
        config_from_dict({"seed": 2, "learning_rate": 1.0, "weight_decay": 0.5, "augment_strength": 1.5}),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"sweep: .*sweep\.toml cannot be read as TOML \(.*No such file"),
        ("learning_rate = [", r"sweep: .*sweep\.toml cannot be read as TOML"),
        ("epochs = [1, 2]", r"sweep: .* lists epochs, which cannot be swept. These fields can: seed, learning_rate, "),
        ("learning_rate = [1e-3]", r"sweep: .* has 1 values for learning_rate; replicas=2 needs a list of 2\."),
        ("learning_rate = 1e-3", r"sweep: .* has no list for learning_rate; replicas=2 needs a list of 2\."),
        ("learning_rate = [1e-3, true]", r"sweep: .* has True for learning_rate, which must be a number\."),
        ("seed = [1, 1.5]", r"sweep: .* has 1\.5 for seed, which must be a whole number\."),
        ("learning_rate = [1e-3, 0]", r"sweep\.toml, replica 1: learning_rate must be greater than 0\.0, not 0\.0\."),
        ("augment_strength = [1, 11]", r"replica 1: augment_strength times zoom must be less than 1\.0, not 1\.1"),
    ],
)
def test_a_bad_sweep_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "sweep.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        plan_replicas(config_from_dict({"replicas": 2, "sweep": str(path)}))


def test_replicas_need_seeds_that_there_are_and_their_own_way_to_spread():
    with pytest.raises(UserError, match="^replica 1: seed must be at most"):
        plan_replicas(config_from_dict({"replicas": 2, "seed": 2**31 - 1}))
    for fields in ({"parallel": "pmap"}, {"parallel": "shard_map"}, {"multihost": True}):
        with pytest.raises(UserError, match="^replicas=2 needs parallel=jit and no multihost"):
            config_from_dict({"replicas": 2, **fields})
    with pytest.raises(UserError, match="^cached_views stores the features of one network"):
        config_from_dict({"replicas": 2, "cached_views": 1, "mixup_alpha": 0.0})
    with pytest.raises(UserError, match="^sweep needs replicas"):
        config_from_dict({"sweep": "sweep.toml"})


def test_the_strength_of_augmentation_keeps_every_range_within_its_limits():
    with pytest.raises(UserError, match=r"^augment_strength times rotate_degrees must be at most 180\.0, not 200\.0\."):
        AugmentConfig(rotate_degrees=100.0, augment_strength=2.0)
    with pytest.raises(UserError, match=r"^1 - augment_strength times \(1 - crop_min_area\) must be greater than 0"):
        AugmentConfig(crop_min_area=0.5, augment_strength=2.0)
