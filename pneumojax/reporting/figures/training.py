"""Figures of a training run."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pneumojax.reporting.figures.style import (
    BLUE,
    ORANGE,
    REFERENCE,
    join_heading,
    make_figure,
    save_figure,
    save_reason,
    use_style,
)

PANELS = {"loss": "Loss", "auroc": "AUROC", "accuracy": "Accuracy"}


# The curve whose largest value marks the best epoch, for each value of select_by.
CHOSEN_BY = {"auroc": "val/auroc", "shift": "val/shift_auroc", "last": None}


def save_learning_curves(
    path: str | Path,
    rows: Iterable[Mapping],
    selection_split: str = "validation",
    title: str = "",
    select_by: str = "auroc",
) -> None:
    """Plots loss, AUROC and accuracy of training and validation against the epoch, and marks the best epoch.

    The AUROC on the images with swapped aspects is in the panel of the AUROC. The best epoch is the one that
    `select_by` chooses. If several epochs have the same value, the last of them is marked, because its checkpoint is
    the best one.

    Args:
      path: PNG file to write. Its folder must exist.
      rows: rows of metrics.jsonl: {"step": int, "epoch": float, "train/loss": float, "val/auroc": float, ...}. Every
        key except step and epoch may be missing or None. Of several rows with the same step the last one counts,
        because a resumed run may log a step again. A panel without values is left out.
      selection_split: the split on which the metrics with the prefix val/ were computed.
      title: description of the run.
      select_by: the config's.

    Raises:
      OSError: the file cannot be written.
    """
    rows = list(rows)
    heading = join_heading("Learning curves", title)
    curves = {name: _read_curve(rows, name) for panel in PANELS for name in (f"train/{panel}", f"val/{panel}")}
    curves["val/shift_auroc"] = _read_curve(rows, "val/shift_auroc")
    panels = [panel for panel in PANELS if len(curves[f"train/{panel}"][0]) + len(curves[f"val/{panel}"][0])]
    if not panels:
        return save_reason(path, heading, {"reason": "The log holds no values yet."})
    with use_style():
        figure = make_figure(0.6 + 3.4 * len(panels), 3.3)
        figure.suptitle(heading, x=0.01, ha="left", size=10)
        epochs, aurocs = curves["val/auroc"]
        chosen_by = CHOSEN_BY[select_by]
        scores = curves[chosen_by][1] if chosen_by else epochs
        best = len(scores) - 1 - int(np.argmax(scores[::-1])) if len(scores) else None
        last = max(epochs[-1] for epochs, _ in curves.values() if len(epochs))
        row_of_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(row_of_axes, panels, strict=True):
            for part, label, colour in (("train", "training", BLUE), ("val", selection_split, ORANGE)):
                x, y = curves[f"{part}/{panel}"]
                # A line with one point is invisible, so a short curve has markers.
                axes.plot(x, y, color=colour, label=label, marker="o" if len(x) <= 40 else None, markersize=3.5)
            if panel == "auroc" and len(curves["val/shift_auroc"][0]):
                [swapped] = axes.plot(*curves["val/shift_auroc"], color=ORANGE, linestyle=":", label="aspects swapped")
                axes.legend(handles=[swapped], loc="lower right", frameon=False)
            panel_title = PANELS[panel]
            if best is not None:
                axes.axvline(epochs[best], **REFERENCE)
                if panel == "auroc":
                    panel_title += f": best {aurocs[best]:.4f} at epoch {epochs[best]:.3g} (dashed)"
            axes.set(title=panel_title, xlabel="Epoch", xlim=(0, last * 1.03 or 1))
            axes.locator_params(axis="x", integer=last >= 1)
            if panel == "loss":
                axes.set_ylim(bottom=0)
        # The legend is next to the title, where no curve can cross it.
        legend = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "handlelength": 1.2, "borderaxespad": 0.3}
        row_of_axes[0].legend(frameon=False, **legend)
        save_figure(figure, path)


def _read_curve(rows: list[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epochs and values of a logged metric, in the order of the steps."""
    by_step = {row["step"]: (row["epoch"], row[name]) for row in rows if row.get(name) is not None}
    points = np.array([by_step[step] for step in sorted(by_step)], np.float64).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1])]
    return points[:, 0], points[:, 1]
