"""Runs a command: parses the flags, shows the log, and prints errors that the user can correct as one sentence."""

import errno
import logging
import os
import sys
from collections.abc import Callable

from absl import app
from absl import logging as absl_logging

from pneumojax.errors import LostProcessError, UserError

# Errors for a path that cannot be written. EEXIST means that there is a file where a folder is needed.
UNWRITABLE = (
    errno.ENOSPC,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)


def run(main: Callable[..., int | None], arguments: tuple[str, ...] = ()) -> None:
    """Parses the flags and runs `main`, whose return value is the exit code.

    An error that the user can correct is printed to standard error as one sentence without a traceback, and the exit
    code is 1. Such errors are a UserError, a full disk, and a path that cannot be written. For unknown flags and wrong
    values, absl prints its own message and the exit code is 1.

    Args:
      main: a function of the positional arguments, which are strings.
      arguments: names of the positional arguments, for the message. A name in brackets is optional. If the last name
        ends in "...", more arguments may follow.
    """

    def guarded(argv: list[str]) -> int | None:
        if not arguments and argv[1:]:
            return fail(f"unexpected argument {argv[1]}: flags are written --name=value.")
        repeats = bool(arguments) and arguments[-1].rstrip("]").endswith("...")
        required = [name for name in arguments if not name.startswith("[")]
        if len(argv) - 1 < len(required) or (len(argv) - 1 > len(arguments) and not repeats):
            return fail(f"needs {' '.join(arguments)}, but got {' '.join(argv[1:]) or 'nothing'}. See --help.")
        _show_log()
        try:
            return main(*argv[1:])
        except LostProcessError as error:
            os._exit(fail(str(error)))  # At a normal exit, JAX would wait for the lost process and then abort.
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


def fail(sentence: str, code: int = 1) -> int:
    """Prints an error message to standard error, and returns the exit code."""
    print(f"{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr)
    return code


def _show_log() -> None:
    """Shows the log messages of this project. Of Orbax and TFDS, which log every step, only errors are shown."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("pneumojax", "experiments"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
