"""Self-contained HTML pages: text, tables and pictures in one file that can be mailed, printed and read on a phone."""

import base64
import dataclasses
import pathlib
import re
from collections.abc import Sequence

from pneumojax.reporting.tables import Table

TEMPLATE = pathlib.Path(__file__).with_name("page.html")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG or SVG picture that is embedded in the page.

    Attributes:
      content: the file's bytes.
      alt: what it shows, for readers who cannot see it.
      caption: a sentence below the picture, or nothing.
      wide: the picture takes the whole width. Other pictures that follow each other are placed side by side.
      small: the picture is one of many, such as X-rays: it is scaled so that four or more fit side by side.
    """

    content: bytes
    alt: str
    caption: str = ""
    wide: bool = False
    small: bool = False
    kind: str = dataclasses.field(default="picture", init=False)

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        media = "image/png" if self.content.startswith(b"\x89PNG") else "image/svg+xml"
        return f"data:{media};base64,{base64.b64encode(self.content).decode()}"


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
      heading: its heading.
      text: paragraphs below the heading, as plain text.
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
      caption: a sentence below it.
      wide: the picture takes the whole width.

    Raises:
      OSError: the file cannot be read.
    """
    return Picture(pathlib.Path(path).read_bytes(), alt, caption, wide)


def render_page(title: str, lead: Sequence[str], sections: Sequence[Section], warning: str = "") -> str:
    """Returns the HTML text of a page. All text is escaped.

    Args:
      title: heading of the page and of the browser's tab.
      lead: paragraphs before the first section: what matters most.
      sections: the sections, in order. More than three are listed at the top.
      warning: sentences that must not be overlooked, in a frame. Each line is a paragraph.

    Returns:
      One file that refers to no other: style and pictures are embedded.
    """
    import jinja2  # Here, because a training imports this module but renders no page.

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["keep_intervals"] = _keep_intervals
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(title=title, lead=lead, sections=sections, warning=warning)


def _keep_intervals(text: str) -> str:
    """Joins "0.951 to 0.980" and "0.967 ± 0.004" by no-break spaces, so that a narrow column does not split them."""
    return re.sub(r"(?<=\d) (to|±) (?=[-+\d])", "\u00a0\\1\u00a0", text)
