"""The table of predicted files, as CSV or JSON lines: its rows as text, and its reading when a command resumes."""

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from pneumojax.errors import UserError
from pneumojax.files import write_bytes

# The formats of a prediction table, by the suffix of its file.
SUFFIXES = (".csv", ".jsonl")


@dataclasses.dataclass
class Counts:
    """Numbers of files in a table, and how many of them were predicted, are uncertain, are flagged or failed."""

    files: int = 0
    predicted: int = 0
    pneumonia: int = 0
    uncertain: int = 0
    flagged: int = 0
    failed: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """Counts a row, with its values or with the text of its cells. It has no decision if the file failed."""
        self.files += 1
        self.predicted += bool(row["decision"])
        self.failed += not row["decision"]
        self.pneumonia += row["decision"] == "PNEUMONIA"
        self.uncertain += row["uncertain"] in (True, "true")
        self.flagged += bool(row["flags"])

    def remove_failed(self) -> None:
        """Removes the row of a file that failed, before the file is counted again."""
        self.files -= 1
        self.failed -= 1


def format_header(columns: list[str], suffix: str) -> str:
    """Formats the first line of a table. JSON lines have none."""
    return _format_csv([columns]) if suffix == ".csv" else ""


def format_rows(rows: list[dict[str, Any]], columns: list[str], suffix: str) -> str:
    """Formats rows, each with a value for each column, as lines of a .csv or .jsonl table."""
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


def read_table(path: pathlib.Path, columns: list[str], model: str) -> tuple[set[str], set[str], Counts]:
    """Reads the names and numbers of the rows of a table, and removes an incomplete row at its end.

    A file has a second row if it failed and was then predicted again. The second row then takes the place of the first.

    Args:
      path: the table. It need not exist.
      columns: the columns that it must have.
      model: the fingerprint that each row must have in the column model.

    Returns:
      (predicted, failed, counts): the names of the files in the table that were predicted and that failed, and their
      numbers.

    Raises:
      UserError: the file has another suffix, other columns, or rows of another model.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out={path} must end in {' or '.join(SUFFIXES)}.")
    rows: dict[
        str | None, tuple[int, int]
    ] = {}  # {file: (start, end) of its last row}, in the order of the first rows.
    failed: set[str] = set()
    counts = Counts()
    if not path.exists():
        return set(), failed, counts
    end, has_second_rows = 0, False
    with path.open("rb") as file:
        try:
            for row, position in (_read_csv if path.suffix == ".csv" else _read_json_lines)(file, columns):
                start, end = end, position
                if row is None:
                    rows[None] = (start, end)  # The header stays the first line.
                    continue
                if row["model"] != model:
                    raise UserError(
                        f"{path} holds predictions of another model ({row['model']}, this one is {model}). "
                        "Use another --out."
                    )
                if row["file"] in failed:
                    has_second_rows = True
                    counts.remove_failed()
                    failed.remove(row["file"])
                if not row["decision"]:
                    failed.add(row["file"])
                rows[row["file"]] = (start, end)
                counts.add(row)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise UserError(f"{path} is not a table of predictions ({error}). Use another --out.") from error
    if has_second_rows:
        content = path.read_bytes()
        write_bytes(path, b"".join(content[start:end] for start, end in rows.values()))
    elif end < path.stat().st_size:
        os.truncate(path, end)
    return {name for name in rows if name is not None and name not in failed}, failed, counts


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
