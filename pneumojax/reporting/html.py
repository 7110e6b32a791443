"""Makes self-contained HTML pages: one file with text, tables and pictures."""

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
      content: the bytes of the file.
      alt: description of the picture, for readers who cannot see it.
      caption: a sentence below the picture; "" for none.
      wide: whether the picture has the full width of the page. Consecutive pictures without it are placed side by side.
      small: whether the picture is one of many, which are scaled so that four or more fit side by side.
      overlay: the bytes of the same picture with a map on it, which is shown to the right of it; b"" for none.
    """

    content: bytes
    alt: str
    caption: str = ""
    wide: bool = False
    small: bool = False
    overlay: bytes = b""
    kind: str = dataclasses.field(default="picture", init=False)

    @property
    def embedded(self) -> list[tuple[str, str]]:
        """The data URI and the description of the picture, and of its overlay."""
        contents = [(self.content, self.alt)] + ([(self.overlay, f"Map on {self.alt}")] if self.overlay else [])
        return [(_make_uri(content), alt) for content, alt in contents]


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a page.

    Attributes:
      heading: the heading.
      text: paragraphs of plain text below the heading.
      blocks: tables and pictures, in order.
    """

    heading: str
    text: Sequence[str] = ()
    blocks: Sequence[Table | Picture] = ()


def load_picture(path: str | pathlib.Path, alt: str, caption: str = "", wide: bool = False) -> Picture:
    """Reads a PNG file for a page.

    Args:
      path: the PNG file.
      alt: description of the picture.
      caption: a sentence below the picture; "" for none.
      wide: whether the picture has the full width of the page.

    Raises:
      OSError: the file cannot be read.
    """
    return Picture(pathlib.Path(path).read_bytes(), alt, caption, wide)


def render_page(title: str, lead: Sequence[str], sections: Sequence[Section], warning: str = "") -> str:
    """Returns the HTML text of a page. All text is escaped.

    Args:
      title: title of the page.
      lead: paragraphs before the first section, with the main results.
      sections: the sections, in order. If there are more than three, the page starts with a table of contents.
      warning: a warning that is shown in a frame. Each line is a paragraph.

    Returns:
      The text of the HTML file. Styles and pictures are embedded, so it needs no other file.
    """
    import jinja2  # Imported here because a training imports this module but renders no page.

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["keep_intervals"] = _keep_intervals
    template = environment.from_string(TEMPLATE.read_text())
    return template.render(title=title, lead=lead, sections=sections, warning=warning)


def _make_uri(content: bytes) -> str:
    media = "image/png" if content.startswith(b"\x89PNG") else "image/svg+xml"
    return f"data:{media};base64,{base64.b64encode(content).decode()}"


def _keep_intervals(text: str) -> str:
    """Puts no-break spaces into "0.951 to 0.980" and "0.967 ± 0.004", so that a narrow column does not split them."""
    return re.sub(r"(?<=\d) (to|±) (?=[-+\d])", "\u00a0\\1\u00a0", text)
