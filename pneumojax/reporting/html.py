"""Self-contained HTML pages: text, tables and pictures in one file that can be mailed, printed and read on a phone."""

import base64
import dataclasses
import pathlib
from collections.abc import Sequence

TEMPLATE = pathlib.Path(__file__).with_name("page.html")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; a column whose cells after the first row are numbers reads best when they are formatted alike.

    Attributes:
      columns: headings.
      rows: cells as text, one row each; the first cell of a row is its heading.
      caption: a sentence under the table, or none.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = dataclasses.field(default="table", init=False)

    def format_text(self) -> str:
        """The table in aligned columns, for a terminal; what ends a row may be of any length."""
        rows = [[*row] for row in (self.columns, *self.rows)]
        for row in rows:
            while row and not row[-1]:
                row.pop()
        inner = [[len(row[i]) for row in rows if len(row) > i + 1] for i in range(len(self.columns))]
        widths = [max(lengths, default=0) + 3 for lengths in inner]
        lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=False)] for row in rows]
        return "\n".join("".join(line).rstrip() for line in lines)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG or SVG picture, kept inside the page.

    Attributes:
      content: the file's bytes.
      alt: what it shows, for those who can't see it.
      caption: a sentence under the picture, or none.
      wide: takes the whole width; else pictures that follow each other stand side by side where there is room.
      small: one of many, as X-rays are: enlarged or reduced to a small place, four and more side by side.
    """

    content: bytes
    alt: str
    caption: str = ""
    wide: bool = False
    small: bool = False
    kind: str = dataclasses.field(default="picture", init=False)

    @property
    def uri(self) -> str:
        """The picture as a data: address."""
        media = "image/png" if self.content.startswith(b"\x89PNG") else "image/svg+xml"
        return f"data:{media};base64,{base64.b64encode(self.content).decode()}"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
      heading: of the part.
      text: paragraphs under it, as plain text.
      blocks: tables and pictures, in order.
    """

    heading: str
    text: Sequence[str] = ()
    blocks: Sequence[Table | Picture] = ()


def load_picture(path: str | pathlib.Path, alt: str, caption: str = "", wide: bool = False) -> Picture:
    """Reads a PNG file for a page.

    Args:
      path: the file.
      alt: what it shows.
      caption: a sentence under it.
      wide: takes the whole width.

    Raises:
      OSError: the file cannot be read.
    """
    return Picture(pathlib.Path(path).read_bytes(), alt, caption, wide)


def render_page(title: str, lead: Sequence[str], sections: Sequence[Section], warning: str = "") -> str:
    """The HTML text of a page; all text is escaped.

    Args:
      title: heading of the page and of the browser's tab.
      lead: paragraphs before the first section: what matters most.
      sections: the parts, in order; more than three are listed at the top.
      warning: sentences that must not be overlooked, in a frame; each line is a paragraph of it.

    Returns:
      One file without links to others: style and pictures are inside.
    """
    import jinja2  # Training does not wait for it.

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(title=title, lead=lead, sections=sections, warning=warning)
