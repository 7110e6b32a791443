"""Tests of the limits of config fields, and of values that exclude each other."""

import math
import re

import jax
import pytest

from pneumojax.config import (
    AugmentConfig,
    ModelConfig,
    config_fields,
    config_from_dict,
    config_to_dict,
)
from pneumojax.errors import UserError
from pneumojax.steps import make_abstract_variables


def test_views_without_augmentation_are_refused(make_config):
    still = dict.fromkeys(("rotate_degrees", "shift", "zoom", "brightness", "contrast", "gamma"), 0.0)
    with pytest.raises(UserError, match="test_time_views=4 needs an augmentation range"):
        make_config(**still, crop_min_area=1.0, test_time_views=4)
    for varied in ({"flip": True}, {"stretch": 0.1}, {"tone": 0.1}, {"sharpness": 0.1}, {"noise": 0.1}):
        assert make_config(**still, crop_min_area=1.0, test_time_views=4, **varied).augment.test_time_views == 4


EVERY_FIELD = pytest.mark.parametrize("field", config_fields(), ids=lambda field: field.name)


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
        # batch_norm=local contradicts the default of parallel, progressive_px=16 that of image_px, and folds_by=series
        # that of folds.
        fitting = {"parallel": "shard_map", "image_px": 16, "folds": 2} if field.name != "selection_split" else {}
        config = config_to_dict(config_from_dict(fitting | {field.name: given}))
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


@pytest.mark.parametrize(
    "model",
    [
        *("cnn", "vgg16", "resnet9", "resnet18"),
        *(pytest.param(model, marks=pytest.mark.slow) for model in ("resnet34", "resnet50")),
    ],
)
def test_the_weights_of_the_other_networks_fit_every_size(model):
    assert config_from_dict({"model": model, "progressive_px": (32, 64)}).data.progressive_px == (32, 64)
    small = {"resnet_width": 4, "vgg_width": 4, "vgg_dense_widths": (8,), "cnn_widths": (4, 8), "model": model}
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, make_abstract_variables(config_from_dict(small | {"image_px": px})))
        for px in (32, 64)
    ]
    assert shapes[0] == shapes[1]


def test_the_strength_of_augmentation_keeps_every_range_within_its_limits():
    with pytest.raises(UserError, match=r"^augment_strength times rotate_degrees must be at most 180\.0, not 200\.0\."):
        AugmentConfig(rotate_degrees=100.0, augment_strength=2.0)
    with pytest.raises(UserError, match=r"^augment_strength times sharpness must be at most 1\.0, not 2\.0\."):
        AugmentConfig(sharpness=1.0, augment_strength=2.0)
    with pytest.raises(UserError, match=r"^1 - augment_strength times \(1 - crop_min_area\) must be greater than 0"):
        AugmentConfig(crop_min_area=0.5, augment_strength=2.0)


def test_mixup_is_refused():
    with pytest.raises(UserError, match="mixup blends images: use --mixup_alpha=0"):
        config_from_dict({"cached_views": 1, "mixup_alpha": 0.2})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"folds": 1}, "folds must be at least 2, not 1"),
        ({"folds": 3, "fold": 3}, "fold is 3 and folds is 3"),
        ({"folds_by": "series"}, "folds_by=series needs folds"),
        ({"fold": 1}, "fold is 1 and folds is 1"),
    ],
)
def test_a_fold_that_is_not_there_is_told(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        config_from_dict(fields)


def test_the_held_out_fold_does_not_choose():
    with pytest.raises(UserError, match="nothing may be chosen on the test split"):
        config_from_dict({"folds": 3, "selection_split": "test"})
