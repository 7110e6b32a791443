"""Tests of the flags of the config fields, and of presets."""

import json
import pathlib
import subprocess
import sys
import tempfile
import typing

import hypothesis
import pytest
from hypothesis import strategies

from experiments.flags import find_changed_fields, format_flagfile, format_flags, parse_config, read_preset
from pneumojax.config import Config, config_fields, config_from_dict, config_to_dict
from pneumojax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
PRESETS = sorted((ROOT / "experiments" / "presets").glob("*.flags"))

# absl's global flags can be defined only once in a process, so each parse has its own flag values.
PARSE = """
import json
from absl import flags
from experiments.cli import run
from experiments.flags import define_config_flags, config_from_flags
from pneumojax.config import config_to_dict
own = set(flags.FLAGS)
define_config_flags()
names = sorted(set(flags.FLAGS) - own)
run(lambda: print(json.dumps({"names": names, "config": config_to_dict(config_from_flags())})))
"""


def parse(*arguments):
    done = subprocess.run([sys.executable, "-c", PARSE, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_field_has_one_flag_with_the_same_default():
    parsed = parse()
    assert parsed["names"] == sorted(field.name for field in config_fields())
    assert parsed["config"] == config_to_dict(Config())


def test_flags_of_every_type_reach_the_config():
    given = {
        "data_dir": "some folder",  # str | None
        "task": "three_class",
        "epochs": 3,
        "chunk_steps": 7,
        "learning_rate": 0.25,
        "ema_decay": 0.5,  # float | None
        "flip": True,
        "cnn_widths": [4, 8],
        "mlp_widths": [16],
    }
    words = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in given.items()}
    assert parse(*[f"--{name}={word}" for name, word in words.items()])["config"] == config_to_dict(Config()) | given


def test_a_negated_bool_and_a_repeated_flag():
    assert not parse("--flip", "--noflip")["config"]["flip"]
    assert parse("--epochs=3", "--epochs=4")["config"]["epochs"] == 4


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_parses_and_changes_the_defaults_where_it_says(preset):
    config, defaults = parse(f"--flagfile={preset}")["config"], config_to_dict(Config())
    lines = [line.strip() for line in preset.read_text().splitlines()]
    named = [line[2:].split("=")[0] for line in lines if line.startswith("--")]
    assert {name for name in defaults if config[name] != defaults[name]} <= set(named)
    assert len(named) == len(set(named)), "a flag is set twice"


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--epochs=-1", "train.py: epochs must be at least 1, not -1."),
        ("--learning_rate=nan", "train.py: learning_rate must be a finite number, not nan."),
        ("--cnn_widths=a", "train.py: cnn_widths must be whole numbers separated by commas: "),
        ("--cnn_widths=8,0", "train.py: cnn_widths must be at least 1, not 0."),
        ("--batch_norm=local", "train.py: batch_norm=local needs parallel="),
        ("epochs=3", "train.py: unexpected argument epochs=3: flags are written --name=value."),
        (
            "--model=foo",
            "flag --model=foo: value should be one of <mlp|cnn|flatiron|vgg16|resnet9|resnet18|resnet34|resnet50>",
        ),
        ("--epochs=3.5", "flag --epochs=3.5"),
        ("--epoch=3", "Unknown command line flag 'epoch'. Did you mean: epochs"),
        ("--flagfile=no/such.flags", "Unable to open flagfile"),
    ],
)
def test_a_bad_argument_ends_in_a_sentence_and_code_1(argument, sentence, tmp_path):
    script = ROOT / "experiments" / "train.py"
    done = subprocess.run([sys.executable, script, argument], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_changed_fields_are_flags_that_give_the_same_config():
    given = {"epochs": 3, "flip": True, "test_time_views": 2, "cnn_widths": [4, 8], "data_dir": "a folder"}
    config = config_from_dict(given)
    assert find_changed_fields(config) == given
    assert find_changed_fields(config, ignore=("epochs", "data_dir")).keys() == given.keys() - {"epochs", "data_dir"}
    words = format_flags(given | {"ema_decay": None, "flip": False})
    assert words == ["--epochs=3", "--noflip", "--test_time_views=2", "--cnn_widths=4,8", "--data_dir=a folder"]
    assert parse_config(format_flagfile(config).splitlines()) == config


def draw_values(field):
    """Generates values within the limits of a field that can be written as a flag."""
    limits = field.metadata
    kinds = [kind for kind in (field.type, *typing.get_args(field.type)) if kind in (bool, int, float, str)]
    low = limits["above"] if limits["at_least"] is None else limits["at_least"]
    high = limits["below"] if limits["at_most"] is None else limits["at_most"]
    if limits["choices"]:
        values = strategies.sampled_from(limits["choices"])
    elif kinds[0] is bool:
        values = strategies.booleans()
    elif kinds[0] is int:
        values = strategies.integers(low, high)
    elif kinds[0] is float:
        open_ends = {"exclude_min": limits["above"] is not None, "exclude_max": limits["below"] is not None}
        values = strategies.floats(low, high, allow_nan=False, allow_infinity=False, **open_ends)
    else:
        # absl strips the white space at the ends of the lines of a flagfile.
        values = strategies.text(strategies.characters(codec="utf-8", exclude_categories=["C", "Z"]))
    if typing.get_origin(field.type) is tuple:
        # A flag separates names and numbers by commas.
        values = strategies.from_regex("[a-z0-9_]+", fullmatch=True) if kinds[0] is str else values
        return strategies.lists(values, max_size=3)
    return values | strategies.none() if type(None) in typing.get_args(field.type) else values


@hypothesis.settings(max_examples=100, deadline=None, suppress_health_check=[hypothesis.HealthCheck.filter_too_much])
@hypothesis.given(
    strategies.lists(strategies.sampled_from(config_fields()), max_size=6, unique_by=lambda field: field.name).flatmap(
        lambda fields: strategies.fixed_dictionaries({field.name: draw_values(field) for field in fields})
    )
)
def test_any_config_comes_back_from_its_flags(values):
    try:
        config = config_from_dict(values)
    except UserError:  # The values of the fields contradict each other.
        hypothesis.reject()
    assert parse_config(format_flags(config_to_dict(config))) == config
    assert parse_config(format_flags(find_changed_fields(config))) == config
    assert config_from_dict(config_to_dict(config)) == config
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "preset.flags"
        path.write_text(format_flagfile(config), encoding="utf-8")
        assert read_preset(path) == config


def test_flags_are_read_back_as_they_were(make_config, tmp_path):
    fields = {"flip": True, "ema_decay": 0.5, "vgg_dense_widths": (), "frozen": ("stem",), "learning_rate": 1e-4 / 3}
    config = config_from_dict(config_to_dict(make_config()) | fields)
    (tmp_path / "some.flags").write_text(format_flagfile(config))
    assert read_preset(tmp_path / "some.flags") == config
    assert format_flagfile(config_from_dict({})) == ""
