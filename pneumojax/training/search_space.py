"""Reads a search space: a TOML file with the config fields that a search varies and their values.

    [learning_rate]
    low = 1e-4
    high = 1e-2
    log = true                       # sample uniformly on a log scale

    [model]
    choices = ["cnn", "resnet18"]

A range of an integer field contains integers only. If a field holds several values, each of its choices is a list.
"""

import dataclasses
import difflib
import pathlib
import tomllib
import typing
from typing import Any

from pneumojax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    config_fields,
    replace_fields,
)
from pneumojax.errors import UserError

# A search varies how a network is built and trained, but not the data, the task, the seed or how images are loaded.
GROUPS = (DataConfig, ModelConfig, AugmentConfig, OptimizerConfig, TrainConfig)
FIXED = {field.name for field in dataclasses.fields(DataConfig)} - {"image_px"}
FIXED |= {"task", "seed", "loader", "multihost"}


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of numbers. Both ends are included.

    Attributes:
      low: the smallest value, with the field's type (int or float).
      high: the largest value, with the same type.
      log: whether values are sampled uniformly on a log scale.
    """

    low: int | float
    high: int | float
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Choices:
    """A list of values to choose from.

    Attributes:
      values: the values, each with the field's type. If the field holds several values, each choice is a tuple.
    """

    values: tuple


def read_space(path: str | pathlib.Path, base: Config) -> dict[str, Range | Choices]:
    """Reads a search space and checks each of its values.

    Args:
      path: TOML file with a table for each field.
      base: the config whose fields are varied.

    Returns:
      {field: its range or choices}.

    Raises:
      UserError: the file cannot be read, a field is unknown or cannot be searched, or a value is invalid for its field.
    """
    path = pathlib.Path(path).expanduser()
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Name a search space, a TOML file.") from error
    except ValueError as error:
        raise UserError(f"{path} is not TOML: {error}.") from error
    if not tables:
        raise UserError(f"{path} names no field to search over.")
    space = {}
    for name, table in tables.items():
        try:
            space[name] = _read_field(name, table, base)
        except UserError as error:
            raise UserError(f"{path}: [{name}]: {error}") from error
    return space


def _read_field(name: str, table: Any, base: Config) -> Range | Choices:
    fields = {field.name: field for field in config_fields()}
    searched = {field.name for group in GROUPS for field in dataclasses.fields(group)} - FIXED
    if name not in fields:
        near = difflib.get_close_matches(name, searched, n=1)
        raise UserError("there is no such field." + (f" Did you mean {near[0]}?" if near else ""))
    if name not in searched:
        raise UserError("this field cannot be searched. A search varies only how a network is built and trained.")
    if not isinstance(table, dict):
        raise UserError("write it as a table, with low and high, or with choices.")
    keys = set(table)
    if keys not in ({"low", "high"}, {"low", "high", "log"}, {"choices"}):
        raise UserError(
            f"give low and high (and optionally log), or only choices. The table has {', '.join(sorted(keys))}."
        )
    several = typing.get_origin(fields[name].type) is tuple
    kinds = typing.get_args(fields[name].type) or (fields[name].type,)
    kind = next(kind for kind in kinds if kind in (bool, int, float, str))
    found: Range | Choices
    values: tuple
    if "choices" in keys:
        found = Choices(_read_choices(table["choices"], kind, several))
        values = found.values
    else:
        found = _read_range(table, kind, several)
        values = (found.low, found.high)
    for value in values:
        replace_fields(base, {name: value})
    return found


def _read_choices(choices: Any, kind: type, several: bool) -> tuple:
    if not isinstance(choices, list) or not choices:
        raise UserError("choices must be a list of values.")
    if several:
        if not all(isinstance(choice, list) for choice in choices):
            raise UserError("each of the choices must be a list, because the field holds several values.")
        values = tuple(tuple(_convert(one, kind) for one in choice) for choice in choices)
    else:
        values = tuple(_convert(choice, kind) for choice in choices)
    if len(set(values)) < len(values):
        raise UserError("the same choice is listed twice.")
    return values


def _read_range(table: dict, kind: type, several: bool) -> Range:
    if several or kind not in (int, float):
        raise UserError("low and high are only for numbers. Give choices for this field.")
    low, high = _convert(table["low"], kind), _convert(table["high"], kind)
    log = _convert(table.get("log", False), bool)
    if not low < high:
        raise UserError(f"low must be less than high; they are {low} and {high}.")
    if log and low <= 0:
        raise UserError(f"log = true needs low > 0, but low is {low}.")
    return Range(low, high, log)


def _convert(value: Any, kind: type) -> Any:
    """Returns the value with the field's type. An integer is accepted for a float."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}[kind]
        raise UserError(f"{value!r} must be {words}.")
    return value
