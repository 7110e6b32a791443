"""Handles requests to stop a training: catches signals, and makes several processes agree on when to stop."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

# Represents a stop request by `report` where otherwise the number of a signal is expected. SIGHUP has the same number,
# but only SIGTERM and SIGINT are caught.
STOP_REQUESTED = 1


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list, so that a training can stop after a whole chunk.

    A second SIGINT raises KeyboardInterrupt at once.

    Yields:
      The numbers of the signals received so far.
    """
    caught: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    earlier = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def max_over_processes(number: int) -> int:
    """Returns the largest `number` that any process passes. All processes must call this at the same step."""
    if jax.process_count() == 1:
        return number
    with jax.transfer_guard("allow"):
        return int(multihost_utils.process_allgather(np.array(number)).max())
