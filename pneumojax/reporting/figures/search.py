"""Figures of a hyperparameter search."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumojax.reporting.figures.style import BLUE, GREY, ORANGE, make_figure, save_figure, save_reason, use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_search(path: str | Path, rows: Sequence[Mapping], scales: Mapping, importances: Mapping | None) -> None:
    """Plots a search: the trials in order, the validation AUROC against each field, and the importance of each field.

    Args:
      path: PNG file to write. Its folder must exist.
      rows: from `search.list_trials`.
      scales: {field: "linear", "log" or "choices"}. Each field has a panel.
      importances: from `search.compute_importances`; None if there are too few trials.

    Raises:
      OSError: the file cannot be written.
    """
    numbered = [(i + 1, row) for i, row in enumerate(rows) if row["auroc"] is not None]
    if not numbered:
        return save_reason(path, "Search", {"reason": "No trial has been validated yet."})
    lines = math.ceil(len(scales) / 3)
    with use_style():
        figure = make_figure(10.4, 3.2 + 2.7 * lines)
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.2, 2.7 * lines))[:, 0]
        history, bars = above.subplots(1, 2, width_ratios=(2, 1))
        complete = [(i, row["auroc"]) for i, row in numbered if row["state"] == "complete"]
        if complete:
            steps, aurocs = zip(*complete, strict=True)
            best = np.maximum.accumulate([*aurocs, aurocs[-1]])
            history.plot(
                [*steps, len(rows)], best, color=BLUE, linewidth=1.4, drawstyle="steps-post", label="best so far"
            )
        _draw_trials(history, numbered)
        history.set(title="Trials", xlabel="Trial", ylabel="Validation AUROC", xlim=(0.5, len(rows) + 0.5))
        history.locator_params(axis="x", integer=True)
        legend = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 4, "handlelength": 1.2, "borderaxespad": 0.3}
        history.legend(frameon=False, **legend)
        _draw_importances(bars, importances)
        for i, (field, scale) in enumerate(scales.items()):
            axes = below.add_subplot(lines, 3, i + 1, sharey=history)
            positions = [row["values"][field] for _, row in numbered]
            if scale == "choices":
                choices = sorted(set(positions))
                positions = [choices.index(value) for value in positions]
                words = [",".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in choices]
                axes.set_xticks(range(len(words)), words)
                axes.set_xlim(-0.6, len(words) - 0.4)
            else:
                axes.set_xscale(scale)
            _draw_trials(axes, [(x, row) for x, (_, row) in zip(positions, numbered, strict=True)])
            axes.set(title=field, ylabel="" if i % 3 else "Validation AUROC")
        save_figure(figure, path)


def _draw_trials(axes: "Axes", points: Sequence[tuple[float, Mapping]]) -> None:
    """Draws a dot for each trial: filled if it is complete, open if it was pruned or diverged."""
    for state, face, edge in (
        ("pruned", "white", GREY),
        ("diverged", "white", ORANGE),
        ("complete", BLUE, "white"),
    ):
        chosen = [(x, row["auroc"]) for x, row in points if row["state"] == state]
        if chosen:
            marker: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": edge, "markersize": 7}
            axes.plot(*zip(*chosen, strict=True), "o", label=state, **marker)


def _draw_importances(axes: "Axes", importances: Mapping | None) -> None:
    axes.set_title("Importance (fANOVA)")
    axes.grid(axis="y", visible=False)
    if importances is None:
        axes.set_axis_off()
        axes.text(0, 0.9, "Needs at least four complete\ntrials that differ.", color=GREY, va="top")
        return
    names = list(importances)
    axes.barh(range(len(names)), list(importances.values()), color=BLUE, height=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1), xlabel="Share of the variance explained")
    axes.tick_params(axis="y", length=0)
