"""Formats tables as aligned text for a terminal, as Markdown and as CSV."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose cells are text.

    Attributes:
      columns: headings of the columns.
      rows: the cells of each row. The first cell is the heading of the row. A row may have fewer cells than columns.
      caption: a sentence below the table; "" for none.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = dataclasses.field(default="table", init=False)

    def format_text(self) -> str:
        """Formats the table as text with aligned columns.

        The last cell of a row does not widen its column, so a long sentence there does not move the other cells.
        """
        rows = [[*row] for row in (self.columns, *self.rows)]
        for row in rows:
            while row and not row[-1]:
                row.pop()
        inner = [[len(row[i]) for row in rows if len(row) > i + 1] for i in range(len(self.columns))]
        widths = [max(lengths, default=0) + 3 for lengths in inner]
        lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows]
        return "\n".join("".join(line).rstrip() for line in lines)

    def format_markdown(self) -> str:
        """Formats the table as Markdown."""
        rows = (self.columns, ["---"] * len(self.columns), *self.rows)
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def format_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Formats rows as CSV text with a header.

    Args:
      columns: headings of the columns.
      rows: the cells of each row. None is written as an empty cell. Floats are not rounded.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
