"""One absl flag for each config field, and how a script ends."""

import dataclasses
import errno
import logging
import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from pneumojax.config import Config, config_fields, config_from_dict, config_to_dict
from pneumojax.errors import LostProcessError, UserError

flags.disclaim_key_flags()  # The flags belong to the script that calls: its --help lists them.

DEFINE_FLAG = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}

UNWRITABLE = (
    errno.ENOSPC,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,  # A file where a folder is wanted.
)


def define_config_flags(
    flag_values: flags.FlagValues = flags.FLAGS, fields: Sequence[dataclasses.Field] | None = None
) -> None:
    """Defines a flag for each of these fields of the config (default: all), with its default, help and type."""
    for field in fields or config_fields():
        help_text = field.metadata["help"]
        kinds = [kind for kind in (field.type, *typing.get_args(field.type)) if kind in (bool, int, float, str)]
        if field.metadata["choices"]:
            flags.DEFINE_enum(field.name, field.default, field.metadata["choices"], help_text, flag_values)
        elif typing.get_origin(field.type) is tuple:
            default, help_text = [str(value) for value in field.default], f"{help_text}, separated by commas"
            flags.DEFINE_list(field.name, default, help_text, flag_values)
        else:
            DEFINE_FLAG[kinds[0]](field.name, field.default, help_text, flag_values=flag_values)


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS, **fixed: Any) -> Config:
    """Rebuilds the config from the flags, by default those of this process.

    Args:
      flag_values: the flags.
      **fixed: fields without a flag; any other one keeps its default.

    Raises:
      UserError: a value is outside its limits, or two do not go together.
    """
    fields = [field for field in config_fields() if field.name in flag_values]
    values = {field.name: flag_values[field.name].value for field in fields}
    for field in fields:
        if typing.get_origin(field.type) is tuple:
            try:
                kind = typing.get_args(field.type)[0]
                values[field.name] = [kind(word) for word in values[field.name]]
            except ValueError as error:
                raise UserError(f"{field.name} must be whole numbers separated by commas: {error}.") from error
    return config_from_dict(values | fixed)


def read_preset(path: str | os.PathLike, **fields) -> Config:
    """The config of a flagfile, with some fields set otherwise.

    Raises:
      UserError: the file cannot be read, or a flag in it is unknown or its value outside its limits.
    """
    values = flags.FlagValues()
    define_config_flags(values)
    try:
        values([sys.argv[0], f"--flagfile={path}"])
    except flags.Error as error:
        raise UserError(f"{path}: {error}") from error
    return config_from_dict(config_to_dict(config_from_flags(values)) | fields)


def format_flags(config: Config) -> str:
    """The flags that differ from their defaults, one a line, as a flagfile has them."""
    values, defaults = config_to_dict(config), config_to_dict(Config())
    return "".join(f"{_format_flag(name, value)}\n" for name, value in values.items() if value != defaults[name])


def _format_flag(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def run(main: Callable[..., int | None], arguments: tuple[str, ...] = ()) -> None:
    """Parses the flags and runs `main` with the arguments, whose return value is the exit code.

    Args:
      main: takes as many strings as there are arguments.
      arguments: names, for the message, of what is written without a flag; all are needed.

    What the user can mend ends in one sentence and code 1, without a traceback: UserError, a full disk, a place that
    may not be written. Unknown flags and values end with absl's sentence and code 1.
    """

    def guarded(argv: list[str]) -> int | None:
        if not arguments and argv[1:]:
            return fail(f"unexpected argument {argv[1]}: flags are written --name=value.")
        if len(argv) - 1 != len(arguments):
            return fail(f"needs {' '.join(arguments)}, and got {' '.join(argv[1:]) or 'nothing'}. See --help.")
        _show_log()
        try:
            return main(*argv[1:])
        except LostProcessError as error:
            os._exit(fail(str(error)))  # JAX's own exit would wait for the process that is gone, and abort.
        except UserError as error:
            return fail(str(error))
        except KeyboardInterrupt:
            return fail("interrupted.", 130)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            where = error.filename or "a file"
            return fail(f"{where} cannot be written: {error.strerror}. Check the folders that the flags name.")

    app.run(guarded)


def _show_log() -> None:
    """Shows our own messages, and of Orbax and TFDS, who tell every step, only errors."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("pneumojax", "experiments"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def fail(sentence: str, code: int = 1) -> int:
    """Prints why the script ends to standard error; returns the exit code."""
    print(f"{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr)
    return code
