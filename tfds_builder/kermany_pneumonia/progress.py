"""Runs long loops over images in threads, and shows their progress."""

import concurrent.futures
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")
LINE_EVERY_SECONDS = 10.0


def show_progress(items: Sequence[Item], doing: str) -> Iterator[Item]:
    """Yields the items and shows the progress: a bar on a terminal, otherwise a line on stderr every ten seconds.

    Args:
        items: the items of the loop.
        doing: description of the work, such as "reading images".
    """
    if sys.stderr.isatty():
        yield from tqdm.tqdm(items, desc=doing, leave=False)
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last > LINE_EVERY_SECONDS:
            last = time.monotonic()
            print(f"{doing}: {done} of {len(items)}", file=sys.stderr, flush=True)
        yield item


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], doing: str) -> Iterator[Result]:
    """Yields function(item) for each item, in order. The calls run in threads on all cores.

    Threads suffice because numpy and Pillow release the GIL.

    Args:
        function: the work for one item.
        items: the items.
        doing: description of the work, such as "reading images".
    """
    executor = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        for _, result in zip(show_progress(items, doing), executor.map(function, items), strict=True):
            yield result
    finally:
        executor.shutdown(cancel_futures=True)  # After an error or a signal, calls that have not started are dropped.
