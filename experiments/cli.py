"""Runs a command: parses the flags, shows the log, and turns errors that a user can mend into one sentence."""

import errno
import logging
import os
import sys
from collections.abc import Callable

from absl import app
from absl import logging as absl_logging

from pneumojax.errors import LostProcessError, UserError

# Errors of a path that cannot be written. EEXIST: there is a file where a folder is needed.
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

    Errors that a user can mend end in one sentence on standard error and exit code 1, without a traceback: a UserError,
    a full disk, a path that cannot be written. Unknown flags and wrong values end with absl's own message and exit
    code 1.

    Args:
      main: takes as many strings as there are arguments.
      arguments: names of the positional arguments, for the message. All of them are required.
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
            os._exit(fail(str(error)))  # A normal exit would let JAX wait for the lost process, and abort.
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
    """Prints to standard error why the command ends, and returns the exit code."""
    print(f"{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr)
    return code


def _show_log() -> None:
    """Shows the messages of this project. Orbax and TFDS log each step of theirs, so only their errors are shown."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("pneumojax", "experiments"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
