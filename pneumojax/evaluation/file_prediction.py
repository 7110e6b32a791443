"""Predicts any number of image files in bounded memory, and writes a row of a table for each."""

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pneumojax.data.decoder_process import Decoders
from pneumojax.data.dicom import HEADER_FLAGS
from pneumojax.data.image_sources import ImageSource
from pneumojax.evaluation.classifier import Classifier, Square
from pneumojax.evaluation.prediction_table import Counts, format_header, format_rows, read_table

# The flag of a file in colour.
COLOUR = "colour"

# Longest text of an error in the table, in characters.
LONGEST_ERROR = 300


def predict_files(
    classifier: Classifier,
    sources: Iterable[ImageSource],
    out: pathlib.Path,
    report: Callable[[Counts], None] = lambda counts: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Counts:
    """Predicts files and appends a row for each to a table, in the order of the files.

    A table that exists is continued: the files that it has predictions of are skipped. Files that failed are tried
    again, and their new rows take the place of the old ones. The table is complete after each batch. A file that is
    named twice is predicted once. The table itself is not predicted.

    Args:
      classifier: the run or ensemble.
      sources: the files.
      out: the table, a .csv or .jsonl file. Missing folders are made.
      report: called after each batch.
      is_stopped: asked after each batch whether to end early.

    Returns:
      The numbers of files in the whole table.

    Raises:
      UserError: `out` has another suffix, is not a table of predictions, or has rows of another model.
      OSError: `out` cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    done, failed, counts = read_table(out, classifier.columns, classifier.model)
    is_repeated = False
    own_path = os.path.realpath(out)

    def choose_new() -> Iterator[ImageSource]:
        for source in sources:
            if source.name not in done and os.path.realpath(source.name) != own_path:
                done.add(source.name)
                yield source

    with out.open("ab") as file:
        if file.tell() == 0:
            file.write(format_header(classifier.columns, out.suffix).encode())
        for rows in predict_stream(classifier, choose_new()):
            file.write(format_rows(rows, classifier.columns, out.suffix).encode())
            file.flush()
            for row in rows:
                if row["file"] in failed:
                    is_repeated = True
                    counts.remove_failed()
                counts.add(row)
            report(counts)
            if is_stopped():
                break
    if is_repeated:
        read_table(out, classifier.columns, classifier.model)  # It removes the first rows of these files.
    return counts


def predict_stream(classifier: Classifier, sources: Iterable[ImageSource]) -> Iterator[list[dict[str, Any]]]:
    """Predicts files. Threads read and decode up to two batches ahead.

    Args:
      classifier: the run or ensemble.
      sources: the files. They may be generated while they are read.

    Yields:
      The rows of a batch, in the order of the files: {column: value}. Values that do not exist are None. The notices
      are a list.
    """
    sources, squares = iter(sources), classifier.squares
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    pool, decoders = concurrent.futures.ThreadPoolExecutor(os.cpu_count()), Decoders()
    try:
        while True:
            while len(pending) < 2 * classifier.batch_size and (source := next(sources, None)):
                pending.append(pool.submit(_read, source, squares, decoders))
            if not pending:
                return
            batch = [pending.popleft().result() for _ in range(min(len(pending), classifier.batch_size))]
            yield _predict_batch(classifier, batch)
    finally:
        decoders.close()  # First, because the pool waits for what is being read.
        pool.shutdown(cancel_futures=True)


def _read(
    source: ImageSource, squares: list[Square], decoders: Decoders
) -> tuple[dict[str, Any], dict[Square, np.ndarray]]:
    """Reads a file. Returns the columns that are known without the network, and its pixels, if it has any."""
    row: dict[str, Any] = {"file": source.name, "notices": [], "error": None}
    try:
        images = decoders.read(source.read(), [(square.image_px, square.resize) for square in squares])
    except OSError as error:
        return row | {"error": _shorten(error.strerror or str(error) or type(error).__name__)}, {}
    notices = dict.fromkeys(notice for image in images for notice in image.notices)
    flags = [COLOUR] if any(image.is_colour for image in images) else []
    flags += [flag for start, flag in HEADER_FLAGS.items() if any(notice.startswith(start) for notice in notices)]
    pixels = {square: image.pixels for square, image in zip(squares, images, strict=True)}
    return row | {"notices": list(notices), "flags": flags}, pixels


def _shorten(reason: str) -> str:
    """Makes one line of a reason, which may contain text of a damaged file."""
    return " ".join(reason.split())[:LONGEST_ERROR].encode(errors="replace").decode()


def _predict_batch(classifier: Classifier, batch: list[tuple[dict, dict[Square, np.ndarray]]]) -> list[dict[str, Any]]:
    readable = [pixels for _, pixels in batch if pixels]
    images = {square: np.stack([pixels[square] for pixels in readable]) for square in classifier.squares if readable}
    predicted = iter(classifier.predict(images) if readable else ())
    empty = dict.fromkeys(classifier.columns) | {"model": classifier.model}
    return [empty | (_join_flags(row, next(predicted)) if pixels else row) for row, pixels in batch]


def _join_flags(row: dict[str, Any], predicted: dict[str, Any]) -> dict[str, Any]:
    """Joins the columns from the file with those from the network. Both have flags."""
    return row | predicted | {"flags": row["flags"] + predicted["flags"]}
