"""Errors whose message is shown to the user."""


class UserError(Exception):
    """An error that the user can correct.

    Its message is a full sentence that names the file or the field and says what to do. The commands print the message
    without a traceback and exit with code 1.
    """


class Diverged(UserError):
    """The loss or the weights of a training are NaN or infinite. The cause is the config, not the machine."""


class LostProcessError(UserError):
    """Another process of the run has ended. The program must end at once, because JAX's exit would wait for it."""
