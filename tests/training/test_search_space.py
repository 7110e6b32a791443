"""Tests of search spaces: valid files, and the message for each mistake."""

import pathlib
import re

import pytest

from experiments.flags import read_preset
from pneumojax.config import Config, config_fields, config_from_dict, replace_fields
from pneumojax.errors import UserError
from pneumojax.training.search_space import FIXED, Choices, Range, read_space

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def read(tmp_path, text, base=None):
    path = tmp_path / "space.toml"
    path.write_text(text)
    return read_space(path, base or Config())


def test_each_value_has_its_fields_own_type(tmp_path):
    space = read(
        tmp_path,
        """
        weight_decay = {low = 1, high = 2}  # an integer is accepted for a float
        batch_size = {low = 8, high = 64, log = true}
        ema_decay = {choices = [0.99, 0.999]}
        flip = {choices = [true, false]}
        cnn_widths = {choices = [[8, 16], [32]]}
        frozen = {choices = [[], ["stem", "stage1"]]}
        """,
    )
    assert space == {
        "weight_decay": Range(1.0, 2.0),
        "batch_size": Range(8, 64, log=True),
        "ema_decay": Choices((0.99, 0.999)),
        "flip": Choices((True, False)),
        "cnn_widths": Choices(((8, 16), (32,))),
        "frozen": Choices(((), ("stem", "stage1"))),
    }
    assert type(space["weight_decay"].low) is float
    assert type(space["batch_size"].low) is int


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no field"),
        ("[learning_rate", "is not TOML"),
        ("[learning_rat]\nlow=1\nhigh=2", r"\[learning_rat\]: there is no such field. Did you mean learning_rate\?"),
        ("[zzz]\nlow=1\nhigh=2", r"\[zzz\]: there is no such field\.$"),
        ("learning_rate = 0.1", r"\[learning_rate\]: write it as a table"),
        ("[learning_rate]\nlow = 1e-4", r"give low and high .* or only choices\. The table has low\."),
        ("[learning_rate]\nlow=1e-4\nhigh=1e-2\nchoices=[0.1]", "The table has choices, high, low"),
        ("[learning_rate]\nlow = 0.1\nhigh = 0.1", "low must be less than high; they are 0.1 and 0.1"),
        ("[learning_rate]\nlow = 0\nhigh = 0.1", "learning_rate must be greater than 0.0, not 0.0"),
        ("[weight_decay]\nlow = 0\nhigh = 0.1\nlog = true", "log = true needs low > 0, but low is 0.0"),
        ("[dropout]\nlow = 0\nhigh = 1", "dropout must be less than 1.0, not 1.0"),
        ("[dropout]\nlow = 0\nhigh = nan", "low must be less than high; they are 0.0 and nan"),
        ("[dropout]\nlow = 0\nhigh = inf", "dropout must be a finite number"),
        ("[dropout]\nlow = '0'\nhigh = 0.5", "'0' must be a number"),
        ("[dropout]\nlow = false\nhigh = 0.5", "False must be a number"),
        ("[epochs]\nlow = 1.5\nhigh = 3", "1.5 must be a whole number"),
        ("[epochs]\nlow = 1\nhigh = 3\nlog = 1", "1 must be true or false"),
        ("[model]\nlow = 1\nhigh = 3", "low and high are only for numbers. Give choices for this field"),
        ("[cnn_widths]\nlow = 1\nhigh = 3", "low and high are only for numbers. Give choices for this field"),
        ("[cnn_widths]\nchoices = [8, 16]", "each of the choices must be a list"),
        ("[cnn_widths]\nchoices = [[8], [0]]", "cnn_widths must be at least 1, not 0"),
        ("[model]\nchoices = ['cnn', 'foo']", "model must be one of mlp, cnn"),
        ("[model]\nchoices = 'cnn'", "choices must be a list of values"),
        ("[model]\nchoices = []", "choices must be a list of values"),
        ("[model]\nchoices = ['cnn', 'cnn']", "the same choice is listed twice"),
        ("[seed]\nlow = 0\nhigh = 9", r"\[seed\]: this field cannot be searched"),
        ("[folds]\nlow = 2\nhigh = 9", r"\[folds\]: this field cannot be searched"),
        ("[target_sensitivity]\nlow = 0.9\nhigh = 0.99", "this field cannot be searched"),
        ("[batch_norm]\nchoices = ['global', 'local']", "batch_norm=local needs parallel="),
    ],
)
def test_a_mistake_is_told_in_a_sentence_with_the_file(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "space.toml"))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml cannot be read: No such file"):
        read_space(tmp_path / "none.toml", Config())


def test_the_base_config_counts(tmp_path):
    base = config_from_dict({"parallel": "shard_map"})
    space = read(tmp_path, "[batch_norm]\nchoices = ['global', 'local']", base)
    assert replace_fields(base, {"batch_norm": "local"}).train.batch_norm == "local"
    assert space["batch_norm"] == Choices(("global", "local"))


def test_what_is_measured_is_not_searched_over():
    assert {"dataset", "data_dir", "train_share", "folds", "fold", "task", "seed"} <= FIXED
    assert not FIXED & {"image_px", "learning_rate"}
    assert {field.name for field in config_fields()} > FIXED


@pytest.mark.parametrize("path", sorted((EXPERIMENTS / "spaces").glob("*.toml")), ids=lambda path: path.name)
def test_an_example_fits_its_preset_with_its_commented_tables_too(tmp_path, path):
    base = read_preset(EXPERIMENTS / "presets" / f"{path.stem}.flags")
    space = read_space(path, base)
    commented = "\n".join(re.findall(r"^# (\[.*\]|\w+ = .*)$", path.read_text(), re.MULTILINE))
    assert read(tmp_path, path.read_text() + commented, base).keys() > space.keys()
