"""The common style of all figures: colours, layout, headings, text, and writing of the file."""

import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumojax.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

# Okabe and Ito, Color universal design, 2008: colours that colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#767676", "#222222"

# The same palette, in the order in which curves use it.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")

BAND: dict[str, Any] = {"color": BLUE, "alpha": 0.18, "linewidth": 0}
REFERENCE: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3))}

STYLE: "dict[RcKeyType, Any]" = {
    "font.family": "DejaVu Sans",  # Ships with matplotlib, so a figure looks the same everywhere.
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.w_pad": 0.12,  # Inches of white around each figure.
    "figure.constrained_layout.h_pad": 0.12,
    "savefig.dpi": 150,
}


def use_style() -> AbstractContextManager:
    """Returns a context in which matplotlib uses STYLE."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def make_figure(width_inches: float, height_inches: float) -> "Figure":
    """Returns an empty figure. Its layout is adjusted automatically, so that texts and axes do not overlap."""
    # Figures of pyplot would have to be closed, and pyplot would look for a window system.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def make_unit_square(heading: str, x_label: str, y_label: str) -> tuple["Figure", "Axes"]:
    """Returns a figure and its axes, which are a square from 0 to 1 in both directions."""
    figure = make_figure(4.8, 5.0)
    axes = figure.add_subplot()
    # A small margin, because the curves of good models run along the edges.
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    axes.set_title(heading)
    return figure, axes


def write_lines(axes: "Axes", lines: list[tuple[str, str]], x: float, bottom: float, align: str) -> None:
    """Writes coloured lines of text into the axes.

    Args:
      axes: the axes.
      lines: (colour, text) of each line, from top to bottom.
      x: horizontal position in axes coordinates, 0..1.
      bottom: position of the last line in axes coordinates, 0..1.
      align: "left", "center" or "right".
    """
    for i, (colour, text) in enumerate(reversed(lines)):
        axes.text(
            x,
            bottom + 0.052 * i,
            text,
            color=colour,
            ha=align,
            va="bottom",
            transform=axes.transAxes,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1},
        )


def join_heading(what: str, title: str) -> str:
    """Returns a heading of two lines: the name of the figure and, below, the description of its data."""
    return f"{what}\n{title}" if title else what


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a PNG file. If this fails or is killed, an earlier file is kept: see `files.write_bytes`."""
    file = io.BytesIO()
    # Without the software's version in the file, equal numbers give equal files.
    figure.savefig(file, format="png", metadata={"Software": None})
    write_bytes(Path(path), file.getvalue())


def save_reason(path: str | Path, heading: str, metric: Mapping) -> None:
    """Writes a figure that shows the "reason" of a metric, because there is nothing to plot."""
    with use_style():
        figure = make_figure(4.8, 1.6)
        figure.text(0.04, 0.9, heading, size=10, va="top")
        figure.text(0.04, 0.5, f"Not drawn. {metric['reason']}", color=GREY, va="top", wrap=True)
        save_figure(figure, path)
