"""Predicts any number of image files in bounded memory, and writes a row of a table for each."""

import collections
import concurrent.futures
import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from pneumojax.data.image_files import read_image
from pneumojax.data.image_sources import ImageSource
from pneumojax.errors import UserError
from pneumojax.evaluation.classifier import Classifier, Square

# The formats of a prediction table, by the suffix of its file.
SUFFIXES = (".csv", ".jsonl")

# Longest text of an error in the table, in characters.
LONGEST_ERROR = 300


@dataclasses.dataclass
class Counts:
    """Numbers of files in a table, and how many of them were predicted, are uncertain or failed."""

    files: int = 0
    predicted: int = 0
    pneumonia: int = 0
    uncertain: int = 0
    failed: int = 0

    def add(self, decision: str, uncertain: bool) -> None:
        """Counts a row. Its decision is empty if the file was not predicted."""
        self.files += 1
        self.predicted += bool(decision)
        self.failed += not decision
        self.pneumonia += decision == "PNEUMONIA"
        self.uncertain += uncertain


def predict_files(
    classifier: Classifier,
    sources: Iterable[ImageSource],
    out: pathlib.Path,
    report: Callable[[Counts], None] = lambda counts: None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Counts:
    """Predicts files and appends a row for each to a table, in the order of the files.

    A table that exists is continued: its rows are kept and their files are skipped. The file is complete after each
    batch. A file that is named twice is predicted once. The table itself is not predicted.

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
    done, counts = _read_table(out, classifier)
    own_path = os.path.realpath(out)

    def choose_new() -> Iterator[ImageSource]:
        for source in sources:
            if source.name not in done and os.path.realpath(source.name) != own_path:
                done.add(source.name)
                yield source

    with out.open("ab") as file:
        if file.tell() == 0 and out.suffix == ".csv":
            file.write(_format_csv([classifier.columns]).encode())
        for rows in predict_stream(classifier, choose_new()):
            file.write(_format_rows(rows, classifier.columns, out.suffix).encode())
            file.flush()
            for row in rows:
                counts.add(row["decision"] or "", bool(row["uncertain"]))
            report(counts)
            if is_stopped():
                break
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
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        while True:
            while len(pending) < 2 * classifier.batch_size and (source := next(sources, None)):
                pending.append(pool.submit(_read, source, squares))
            if not pending:
                return
            batch = [pending.popleft().result() for _ in range(min(len(pending), classifier.batch_size))]
            yield _predict_batch(classifier, batch)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(source: ImageSource, squares: list[Square]) -> tuple[dict, dict[Square, np.ndarray]]:
    """Reads a file. Returns the columns that are known without the network, and its pixels, if it has any."""
    row: dict[str, Any] = {"file": source.name, "notices": [], "error": None}
    try:
        data = source.read()
        images = {square: read_image(data, square.image_px, square.resize) for square in squares}
    except OSError as error:
        return row | {"error": _shorten(error.strerror or str(error) or type(error).__name__)}, {}
    except Exception as error:  # A defect of a decoder must not end the prediction of the other files.
        return row | {"error": _shorten(f"it cannot be decoded ({error!r})")}, {}
    notices = dict.fromkeys(notice for image in images.values() for notice in image.notices)
    return row | {"notices": list(notices)}, {square: image.pixels for square, image in images.items()}


def _shorten(reason: str) -> str:
    """Makes one line of a reason, which may contain text of a damaged file."""
    return " ".join(reason.split())[:LONGEST_ERROR].encode(errors="replace").decode()


def _predict_batch(classifier: Classifier, batch: list[tuple[dict, dict[Square, np.ndarray]]]) -> list[dict[str, Any]]:
    readable = [pixels for _, pixels in batch if pixels]
    images = {square: np.stack([pixels[square] for pixels in readable]) for square in classifier.squares if readable}
    predicted = iter(classifier.predict(images) if readable else ())
    empty = dict.fromkeys(classifier.columns) | {"model": classifier.model}
    return [empty | row | (next(predicted) if pixels else {}) for row, pixels in batch]


def _format_rows(rows: list[dict], columns: list[str], suffix: str) -> str:
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    return _format_csv([[_format_cell(row[column]) for column in columns] for row in rows])


def _format_csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    # csv quotes a carriage return in a cell only if it is part of the line terminator.
    needs_quotes = any("\r" in cell for row in rows for cell in row)
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if needs_quotes else csv.QUOTE_MINIMAL).writerows(rows)
    return text.getvalue()


def _format_cell(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _read_table(path: pathlib.Path, classifier: Classifier) -> tuple[set[str], Counts]:
    """Reads the names and numbers of the rows of a table, and removes an incomplete row at its end.

    Raises:
      UserError: the file has another suffix, other columns, or rows of another model.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out={path} must end in {' or '.join(SUFFIXES)}.")
    done: set[str] = set()
    counts = Counts()
    if not path.exists():
        return done, counts
    end = 0
    with path.open("rb") as file:
        try:
            for row, position in (_read_csv if path.suffix == ".csv" else _read_json_lines)(file, classifier.columns):
                end = position
                if row is None:
                    continue
                if row["model"] != classifier.model:
                    raise UserError(
                        f"{path} holds predictions of another model ({row['model']}, this one is {classifier.model}). "
                        "Use another --out."
                    )
                done.add(row["file"])
                counts.add(row["decision"] or "", row["uncertain"] in (True, "true"))
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(f"{path} is not a table of predictions ({error}). Use another --out.") from error
    if end < path.stat().st_size:
        os.truncate(path, end)
    return done, counts


def _read_csv(file: io.BufferedReader, columns: list[str]) -> Iterator[tuple[dict | None, int]]:
    """Yields the complete rows of a table with the position of their ends. The header is None."""
    end, complete = 0, True

    def read_lines() -> Iterator[str]:
        nonlocal end, complete
        for line in file:
            end += len(line)
            complete = line.endswith(b"\n")
            yield line.decode(errors="strict" if complete else "replace")

    reader, is_header = csv.reader(read_lines(), strict=True), True
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            if file.peek(1):
                raise
            return  # The file ends inside a quoted cell.
        if cells is None or (not complete and (not is_header or ",".join(columns).startswith(",".join(cells)))):
            return
        if is_header and cells != columns:
            raise ValueError(f"its columns are {', '.join(cells)}, not {', '.join(columns)}")
        if len(cells) != len(columns):
            raise ValueError(f"a row has {len(cells)} of {len(columns)} cells")
        yield None if is_header else dict(zip(columns, cells, strict=True)), end
        is_header = False


def _read_json_lines(file: io.BufferedReader, columns: list[str]) -> Iterator[tuple[dict, int]]:
    """Yields the complete rows of a table with the position of their ends."""
    end = 0
    for line in file:
        end += len(line)
        if not line.endswith(b"\n") and line.startswith(b'{"file": '[: len(line)]):
            return
        row = json.loads(line)
        if list(row) != columns:
            raise ValueError(f"a row has other columns than {', '.join(columns)}")
        yield row, end
