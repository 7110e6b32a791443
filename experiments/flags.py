"""Converts the config to absl flags, with one flag for each field, and flags to a config."""

import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from pneumojax.config import Config, config_fields, config_from_dict, config_to_dict, replace_fields
from pneumojax.errors import UserError

flags.disclaim_key_flags()  # The flags belong to the script that defines them, so that its --help lists them.

DEFINE_FLAG: dict[type, Callable[..., flags.FlagHolder]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_config_flags(
    flag_values: flags.FlagValues = flags.FLAGS, fields: Sequence[dataclasses.Field] | None = None
) -> None:
    """Defines a flag for each field of the config, with the field's default, help and type.

    Args:
      flag_values: the object in which the flags are defined.
      fields: the fields that get a flag; None: all.
    """
    for field in fields or config_fields():
        default: Any = field.default
        help_text = field.metadata["help"]
        kinds = [kind for kind in (field.type, *typing.get_args(field.type)) if kind in (bool, int, float, str)]
        if field.metadata["choices"]:
            flags.DEFINE_enum(field.name, default, field.metadata["choices"], help_text, flag_values)
        elif typing.get_origin(field.type) is tuple:
            default, help_text = [str(value) for value in default], f"{help_text}, separated by commas"
            flags.DEFINE_list(field.name, default, help_text, flag_values)
        else:
            DEFINE_FLAG[kinds[0]](field.name, default, help_text, flag_values=flag_values)


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS, **fixed: Any) -> Config:
    """Builds the config from the flags.

    Args:
      flag_values: the parsed flags.
      **fixed: values of fields that have no flag. Other fields without a flag keep their default.

    Raises:
      UserError: a value is outside its limits, or two values contradict each other.
    """
    fields = [field for field in config_fields() if field.name in flag_values]
    values: dict[str, Any] = {field.name: flag_values[field.name].value for field in fields}
    for field in fields:
        if typing.get_origin(field.type) is tuple:
            try:
                kind = typing.get_args(field.type)[0]
                values[field.name] = [kind(word) for word in values[field.name]]
            except ValueError as error:
                raise UserError(f"{field.name} must be whole numbers separated by commas: {error}.") from error
    return config_from_dict(values | fixed)


def parse_config(words: Sequence[str]) -> Config:
    """Builds a config from arguments of a command line, such as "--model=mlp" or "--flagfile=FILE".

    Raises:
      UserError: a flag is unknown, its value is outside its limits, or a flagfile cannot be read.
    """
    values = flags.FlagValues()
    define_config_flags(values)
    try:
        values([sys.argv[0], *words])
    except flags.Error as error:
        raise UserError(f"{str(error).rstrip('.')}.") from error
    return config_from_flags(values)


def read_preset(path: str | os.PathLike, **fields: Any) -> Config:
    """Reads the config of a flagfile.

    Args:
      path: the flagfile.
      **fields: values that replace the values in the file.

    Raises:
      UserError: the file cannot be read, or a flag in it is unknown or outside its limits.
    """
    try:
        config = parse_config([f"--flagfile={path}"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return replace_fields(config, fields)


def find_changed_fields(config: Config, *, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """Returns {field: value} for the fields that are not at their default, except for the ignored ones."""
    values, defaults = config_to_dict(config), config_to_dict(Config())
    return {name: value for name, value in values.items() if value != defaults[name] and name not in ignore}


def format_value(value: Any) -> str:
    """Formats a value as the text of a flag. The values of a list are separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def format_flags(values: Mapping[str, Any]) -> list[str]:
    """Formats flags as arguments of a command line. A flag with the value None is left out."""
    return [_format_flag(name, value) for name, value in values.items() if value is not None]


def format_flagfile(config: Config) -> str:
    """Formats the fields that are not at their default as a flagfile, with one flag in each line."""
    return "".join(f"{word}\n" for word in format_flags(find_changed_fields(config)))


def _format_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={format_value(value)}"
