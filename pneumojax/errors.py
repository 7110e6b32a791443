"""The errors that are written for the user."""


class UserError(Exception):
    """Something the user can mend: its text is a full sentence that names the file or the field and what to do.

    The scripts print that sentence without a traceback and exit with code 1.
    """


class Diverged(UserError):
    """A training left the finite numbers: a fault of its config, not of the place it runs in."""


class LostProcessError(UserError):
    """Another process of the run is gone. The program is to end at once: JAX's own exit would wait for it."""
