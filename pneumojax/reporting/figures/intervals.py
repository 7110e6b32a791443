"""Figures with a row for each number and its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pneumojax.reporting.figures.style import (
    BLUE,
    GREY,
    ORANGE,
    REFERENCE,
    join_heading,
    make_figure,
    save_figure,
    use_style,
)
from pneumojax.reporting.format import format_interval


def save_intervals(
    path: str | Path,
    groups: Mapping[str, Mapping[str, Mapping]],
    title: str = "",
    reference: tuple[float, str] = (0.5, "chance"),
) -> None:
    """Draws areas under the ROC curve as dots with their 95 % intervals, one below the other, and a reference line.

    Args:
      path: PNG file to write. Its folder must exist.
      groups: {heading: {row: {"value", "ci95"}}}, in order. A row whose value is None is listed without a dot.
      title: description of the evaluated data, such as "test, 624 images".
      reference: position and name of the line.

    Raises:
      OSError: the file cannot be written.
    """
    rows = [row for metrics in groups.values() for row in metrics.values() if row["value"] is not None]
    lowest = min([reference[0]] + [min([row["value"], *(row["ci95"] or ())]) for row in rows])
    with use_style():
        # A heading, the rows and a gap for each group, and the axis.
        figure = make_figure(6.2, 1.1 + 0.27 * sum(len(metrics) + 1.5 for metrics in groups.values()))
        axes = figure.add_subplot()
        axes.set_title(join_heading("AUROC, pneumonia against NORMAL", title))
        axes.axvline(reference[0], **REFERENCE)
        y = 0.0
        positions: list[float] = []
        names: list[str] = []
        for colour, (heading, metrics) in zip((BLUE, ORANGE), groups.items(), strict=True):
            margin = axes.get_yaxis_transform()
            axes.text(-0.02, y, heading, color=colour, ha="right", va="center", weight="bold", transform=margin)
            for name, row in metrics.items():
                y += 1
                positions, names = [*positions, y], [*names, name]
                axes.text(1.02, y, format_interval(row, missing="does not exist"), va="center", transform=margin)
                if row["value"] is not None:
                    reach = [[abs(row["value"] - bound)] for bound in row["ci95"] or ()] or None
                    axes.errorbar(row["value"], y, xerr=reach, fmt="o", markersize=5, color=colour, elinewidth=1.4)
            y += 1.5
        axes.text(reference[0], y - 1, f" {reference[1]}", color=GREY, va="center")
        axes.set_yticks(positions, names)
        margin = 0.04 * (1 - lowest)
        axes.set(xlim=(lowest - margin, 1 + margin / 2), ylim=(y - 0.5, -0.6), xlabel="AUROC, 95 % interval")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        save_figure(figure, path)


def save_reported(path: str | Path, rows: Sequence[Mapping], split: str) -> None:
    """Compares the metrics that other projects report with our metrics, in a row for each metric.

    Args:
      path: PNG file to write. Its folder must exist.
      rows: {"name", "reported": float, "ours": {"value", "ci95"}} for each metric, from top to bottom.
      split: the split on which our systems were evaluated.

    Raises:
      OSError: the file cannot be written.
    """
    with use_style():
        figure = make_figure(7.6, 1.3 + 0.27 * len(rows))
        axes = figure.add_subplot()
        heights = -np.arange(len(rows))
        for height, row in zip(heights, rows, strict=True):
            if row["ours"]["ci95"]:
                axes.plot(row["ours"]["ci95"], [height, height], color=BLUE, linewidth=1.6)
            if row["ours"]["value"] is not None:
                axes.plot(row["ours"]["value"], height, "o", color=BLUE, markersize=6)
            axes.plot(row["reported"], height, "D", color=ORANGE, markersize=5)
        axes.set_yticks(heights, [row["name"] for row in rows])
        axes.set(ylim=(-len(rows) + 0.4, 0.6))
        axes.set_title("Reported on test", loc="left", color=ORANGE)
        axes.set_title(f"Ours on {split}, 95 % interval", loc="right", color=BLUE)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        save_figure(figure, path)
