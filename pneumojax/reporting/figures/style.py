"""The look that all pictures share: palette, figures, headings, text, and how a file is written."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, Color universal design, 2008: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#767676", "#222222"

# The same palette, in the order in which curves take them.
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")

BAND = {"color": BLUE, "alpha": 0.18, "linewidth": 0}
REFERENCE = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3))}

STYLE = {
    "font.family": "DejaVu Sans",  # Ships with matplotlib, so a picture looks the same everywhere.
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
    "figure.constrained_layout.w_pad": 0.12,  # Inches of white around everything.
    "figure.constrained_layout.h_pad": 0.12,
    "savefig.dpi": 150,
}


def use_style() -> AbstractContextManager:
    """A `with` block in which matplotlib draws in STYLE."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def make_figure(width_inches: float, height_inches: float) -> "Figure":
    """An empty figure that fits its axes and texts into its size."""
    # Its own, not pyplot's: nothing to close, and no window system is asked for.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def make_unit_square(heading: str, x_label: str, y_label: str) -> tuple["Figure", "Axes"]:
    """A figure with one square pair of axes from 0 to 1."""
    figure = make_figure(4.8, 5.0)
    axes = figure.add_subplot()
    # A little room around: curves of good models run along the edges.
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    axes.set_title(heading)
    return figure, axes


def write_lines(axes: "Axes", lines: list[tuple[str, str]], x: float, bottom: float, align: str) -> None:
    """Writes coloured lines of text into a corner that the curve leaves free; the last line stands at bottom."""
    for i, (colour, text) in enumerate(reversed(lines)):
        axes.text(
            x,
            bottom + 0.052 * i,
            text,
            color=colour,
            ha=align,
            va="bottom",
            transform=axes.transAxes,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def join_heading(what: str, title: str) -> str:
    """The heading: what is drawn and, below, of what."""
    return f"{what}\n{title}" if title else what


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a PNG file in one go; what stood there stays where that fails."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Without the software's version in it, equal numbers make equal files.
        figure.savefig(unfinished, format="png", metadata={"Software": None})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_reason(path: str | Path, heading: str, metric: Mapping) -> None:
    """Draws why there is no picture: the metric's "reason"."""
    with use_style():
        figure = make_figure(4.8, 1.6)
        figure.text(0.04, 0.9, heading, size=10, va="top")
        figure.text(0.04, 0.5, f"Not drawn. {metric['reason']}", color=GREY, va="top", wrap=True)
        save_figure(figure, path)
