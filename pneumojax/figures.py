"""Pictures of an evaluation, of a training run and of the data, as PNG files.

Each function takes numbers, as of `pneumojax.metrics`, or images, draws one picture and replaces the file in one go, so
a reader never finds half of one. Where there is nothing to draw, the picture says why; the set of files is the same for
every split.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, Color universal design, 2008: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#767676", "#222222"

# Of NORMAL, BACTERIA, VIRUS; shapes and dashes too, for print in grey.
CLASS_COLOURS = (BLUE, ORANGE, GREEN)
CLASS_MARKERS = ("o", "s", "^")
CLASS_LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))

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

PANELS = {"loss": "Loss", "auroc": "AUROC", "accuracy": "Accuracy"}


def save_roc(
    path: str | Path, curve: Mapping | None, metrics: Mapping, threshold: float | Sequence[float], title: str = ""
) -> None:
    """Draws the ROC curve with its 95 % band, the area with its interval, and the operating point.

    Args:
      path: PNG file to write; its folder exists.
      curve: of `metrics.compute_roc_curve`; None draws the reason instead.
      metrics: of `metrics.compute_metrics`; auroc, sensitivity and specificity are read.
      threshold: of the operating point.
      title: what was scored, as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    heading = _join("ROC curve", title)
    if curve is None:
        return _save_reason(path, heading, metrics["auroc"])
    with _style():
        figure, axes = _make_square(heading, "1 - specificity (false positive rate)", "Sensitivity")
        axes.plot([0, 1], [0, 1], **REFERENCE)
        axes.text(0.15, 0.13, "chance", color=GREY, va="top")
        if curve["band"] is not None:
            band = curve["band"]
            axes.fill_between(band["false_positive_rate"], band["low"], band["high"], **BAND)
        axes.plot(curve["false_positive_rate"], curve["sensitivity"], color=BLUE, solid_joinstyle="miter")

        lines = [(BLUE, f"AUROC {format_interval(metrics['auroc'])}")]
        sensitivity, specificity = metrics["sensitivity"]["value"], metrics["specificity"]["value"]
        _mark_operating_point(axes, 1 - specificity, sensitivity)
        lines.append((ORANGE, f"At threshold {format_score(threshold)}"))
        lines.append((INK, f"sensitivity {format_interval(metrics['sensitivity'])}"))
        lines.append((INK, f"specificity {format_interval(metrics['specificity'])}"))
        if curve["band"] is not None:
            lines.append((GREY, "brackets, band: 95 % interval"))
        _write_lines(axes, lines, x=0.97, bottom=0.04, align="right")
        _save(figure, path)


def save_precision_recall(
    path: str | Path, curve: Mapping | None, metrics: Mapping, threshold: float | Sequence[float], title: str = ""
) -> None:
    """Draws precision over sensitivity with its 95 % band, the prevalence, and the operating point.

    Args:
      path: PNG file to write; its folder exists.
      curve: of `metrics.compute_pr_curve`; None draws the reason instead.
      metrics: of `metrics.compute_metrics`; auprc, sensitivity and precision are read. Without any positive decision
        the operating point has no precision and is not drawn.
      threshold: of the operating point.
      title: what was scored, as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    heading = _join("Precision-recall curve", title)
    if curve is None:
        return _save_reason(path, heading, metrics["auprc"])
    with _style():
        figure, axes = _make_square(heading, "Sensitivity (recall)", "Precision")
        prevalence = curve["prevalence"]
        axes.axhline(prevalence, **REFERENCE)
        axes.text(0.02, prevalence - 0.015, f"prevalence {prevalence:.3f}", color=GREY, va="top")
        if curve["band"] is not None:
            band = curve["band"]
            axes.fill_between(band["sensitivity"], band["low"], band["high"], step="pre", **BAND)
        sensitivity, precision = [0.0, *curve["sensitivity"]], [curve["precision"][0], *curve["precision"]]
        axes.plot(sensitivity, precision, color=BLUE, drawstyle="steps-pre", solid_joinstyle="miter")

        lines = [(BLUE, f"AUPRC {format_interval(metrics['auprc'])}")]
        lines.append((ORANGE, f"At threshold {format_score(threshold)}"))
        if metrics["precision"]["value"] is not None:
            _mark_operating_point(axes, metrics["sensitivity"]["value"], metrics["precision"]["value"])
        lines.append((INK, f"sensitivity {format_interval(metrics['sensitivity'])}"))
        lines.append((INK, f"precision {format_interval(metrics['precision'])}"))
        if curve["band"] is not None:
            lines.append((GREY, "brackets, band: 95 % interval"))
        _write_lines(axes, lines, x=0.03, bottom=0.04, align="left")
        _save(figure, path)


def save_confusion_matrix(path: str | Path, confusion: np.ndarray, class_names: Sequence[str], title: str = "") -> None:
    """Draws counts of images by true and decided class, coloured by the share of the true class.

    Args:
      path: PNG file to write; its folder exists.
      confusion: [C, C] int, rows are the true class, as of `metrics.compute_confusion`. A class without images has no
        shares.
      class_names: C names.
      title: what was scored, as "test, 624 images, threshold 0.31".

    Raises:
      OSError: the file cannot be written.
    """
    confusion = np.asarray(confusion)
    totals = confusion.sum(axis=1)
    shares = confusion / np.maximum(totals, 1)[:, None]
    classes = len(class_names)
    with _style():
        side = 1.15 * classes
        figure = _make_figure(side + 1.7, side + 1.3)
        axes = figure.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row in range(classes):
            for column in range(classes):
                colour = "white" if shares[row, column] > 0.5 else INK
                share = f"{shares[row, column]:.1%}" if totals[row] else ""
                count = f"{confusion[row, column]:,}"
                axes.text(column, row - 0.08, count, ha="center", va="center", color=colour, size=15)
                axes.text(column, row + 0.24, share, ha="center", va="center", color=colour)
        axes.set_xticks(range(classes), class_names)
        axes.set_yticks(range(classes), [f"{name}\n{n:,} images" for name, n in zip(class_names, totals, strict=True)])
        axes.set(xlabel="Decision", ylabel="Truth")
        axes.set_title(_join("Confusion matrix", title), x=0, ha="left")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        # White seams between the cells: two light neighbours stay two cells.
        for edge in np.arange(0.5, classes - 1):
            axes.axhline(edge, color="white", linewidth=2)
            axes.axvline(edge, color="white", linewidth=2)
        _save(figure, path)


def save_reliability(path: str | Path, reliability: Mapping, calibration: Mapping, title: str = "") -> None:
    """Draws the share of pneumonia over the score, before and after the temperature.

    Args:
      path: PNG file to write; its folder exists.
      reliability: {"before", "after": of `calibration.compute_reliability`}.
      calibration: {"before", "after": of `calibration.compute_calibration`, "temperature": float}.
      title: what was scored, as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    with _style():
        figure, axes = _make_square(
            _join("Reliability", title), "Score for pneumonia (mean of the bin)", "Share of pneumonia"
        )
        axes.plot([0, 1], [0, 1], **REFERENCE)
        for when, colour, size in (("before", GREY, 4), ("after", BLUE, 6)):
            bins = reliability[when]
            below, above = (np.abs(np.subtract(bins[bound], bins["share"])) for bound in ("low", "high"))
            # Before and after lie over each other where the temperature is near 1: the first is thin and open.
            marker = {"marker": "o", "markersize": size, "markerfacecolor": colour if when == "after" else "white"}
            axes.errorbar(
                bins["mean_score"], bins["share"], [below, above], color=colour, linewidth=1.4, elinewidth=0.9, **marker
            )
        lines = [(INK, "ECE, Brier score, slope")]
        for when, colour, words in (
            ("before", GREY, "as trained"),
            ("after", BLUE, f"temperature {format_range(calibration['temperature'], '{:.3g}'.format)}"),
        ):
            names = ("ece", "brier", "calibration_slope")
            numbers = [calibration[when][name]["value"] for name in names]
            text = ", ".join("none" if number is None else f"{number:.3f}" for number in numbers)
            lines.append((colour, f"{words}: {text}"))
        lines.append((GREY, "bars: 95 % interval of the share"))
        _write_lines(axes, lines, x=0.97, bottom=0.04, align="right")
        _save(figure, path)


def save_predictive_values(
    path: str | Path, values: Mapping, counts: Mapping, threshold: float | Sequence[float], title: str = ""
) -> None:
    """Draws the predictive values of the decision over the prevalence of pneumonia, with their 95 % bands.

    Args:
      path: PNG file to write; its folder exists.
      values: {"prevalence": G floats, "ppv", "npv": G times {"value", "ci95"}}, of
        `calibration.compute_predictive_values`. A value that does not exist is not drawn; where none does, the picture
        says why.
      counts: of the evaluation; images and classes are read, for the split's own prevalence.
      threshold: of the operating point.
      title: what was scored, as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    heading = _join("Predictive values", title)
    drawn = {name: [one for one in values[name] if one["value"] is not None] for name in ("ppv", "npv")}
    if not any(drawn.values()):
        return _save_reason(path, heading, values["ppv"][0])
    with _style():
        figure, axes = _make_square(heading, "Prevalence of pneumonia", "Predictive value")
        own = 1 - counts["classes"]["NORMAL"] / counts["images"]
        axes.axvline(own, **REFERENCE)
        axes.text(own - 0.015, 0.5, "this split", color=GREY, rotation=90, ha="right", va="center")
        lines = [(INK, f"At threshold {format_score(threshold)}")]
        for name, colour, words in (
            ("ppv", ORANGE, "PPV: pneumonia among those decided for"),
            ("npv", BLUE, "NPV: NORMAL among the others"),
        ):
            if not drawn[name]:  # As at a threshold that nobody reaches.
                lines.append((colour, f"{name.upper()} does not exist"))
                continue
            lines.append((colour, words))
            axes.plot(values["prevalence"], [one["value"] for one in values[name]], color=colour)
            if all(one["ci95"] for one in values[name]):
                low, high = zip(*(one["ci95"] for one in values[name]), strict=True)
                axes.fill_between(values["prevalence"], low, high, **BAND | {"color": colour})
        lines.append((GREY, "bands: 95 % interval"))
        _write_lines(axes, lines, x=0.5, bottom=0.04, align="center")
        _save(figure, path)


def save_decision_curve(path: str | Path, curve: Mapping, title: str = "") -> None:
    """Draws the net benefit of the score over the threshold probability, beside deciding for all and for nobody.

    Args:
      path: PNG file to write; its folder exists.
      curve: of `decision_curve.compute_decision_curve`.
      title: what was scored, as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    with _style():
        figure = _make_figure(4.8, 4.2)
        axes = figure.add_subplot()
        axes.set_title(_join("Decision curve", title))
        # The best there is: a hit for each patient with pneumonia and no false alarm. Harm is cut off far below.
        best = max(curve["treat_all"][0], 0.05)
        axes.set(xlabel="Threshold probability", ylabel="Net benefit", xlim=(0, 1), ylim=(-0.15 * best, 1.1 * best))
        axes.axhline(0, **REFERENCE)
        axes.plot(curve["threshold"], curve["treat_all"], color=ORANGE, linewidth=1.4)
        if curve["band"] is not None:
            axes.fill_between(curve["threshold"], curve["band"]["low"], curve["band"]["high"], **BAND)
        axes.plot(curve["threshold"], curve["net_benefit"], color=BLUE)
        lines = [
            (BLUE, "by the calibrated score"),
            (ORANGE, "for pneumonia in all images"),
            (GREY, "for nobody (dashed)"),
        ]
        if curve["band"] is not None:
            lines.append((GREY, "band: 95 % interval"))
        _write_lines(axes, lines, x=0.03, bottom=0.16, align="left")
        _save(figure, path)


def save_learning_curves(
    path: str | Path, rows: Iterable[Mapping], selection_split: str = "validation", title: str = ""
) -> None:
    """Draws loss, AUROC and accuracy over the epochs, in training and validation, and marks the best epoch.

    Best is the largest val/auroc, the last of equals, as the checkpoints keep it.

    Args:
      path: PNG file to write; its folder exists.
      rows: of a run's log, as {"step": int, "epoch": float, "train/loss": float, "val/auroc": float}; any key but step
        and epoch may be missing or None. Of rows with the same step the later one counts, as after a resumed run. A
        panel without values is left out.
      selection_split: what the values named val/ are of.
      title: what was trained.

    Raises:
      OSError: the file cannot be written.
    """
    rows = list(rows)
    heading = _join("Learning curves", title)
    curves = {name: _read_curve(rows, name) for panel in PANELS for name in (f"train/{panel}", f"val/{panel}")}
    panels = [panel for panel in PANELS if len(curves[f"train/{panel}"][0]) + len(curves[f"val/{panel}"][0])]
    if not panels:
        return _save_reason(path, heading, {"reason": "The log holds no values yet."})
    with _style():
        figure = _make_figure(0.6 + 3.4 * len(panels), 3.3)
        figure.suptitle(heading, x=0.01, ha="left", size=10)
        epochs, aurocs = curves["val/auroc"]
        best = len(aurocs) - 1 - int(np.argmax(aurocs[::-1])) if len(aurocs) else None
        last = max(epochs[-1] for epochs, _ in curves.values() if len(epochs))
        row_of_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(row_of_axes, panels, strict=True):
            for part, label, colour in (("train", "training", BLUE), ("val", selection_split, ORANGE)):
                x, y = curves[f"{part}/{panel}"]
                # A line of one point is invisible, so few points get a mark each.
                axes.plot(x, y, color=colour, label=label, marker="o" if len(x) <= 40 else None, markersize=3.5)
            panel_title = PANELS[panel]
            if best is not None:
                axes.axvline(epochs[best], **REFERENCE)
                if panel == "auroc":
                    panel_title += f": best {aurocs[best]:.4f} at epoch {epochs[best]:.3g} (dashed)"
            axes.set(title=panel_title, xlabel="Epoch", xlim=(0, last * 1.03 or 1))
            axes.xaxis.get_major_locator().set_params(integer=last >= 1)
            if panel == "loss":
                axes.set_ylim(bottom=0)
        # On the title's line, where no curve can run into it.
        legend = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "handlelength": 1.2, "borderaxespad": 0.3}
        row_of_axes[0].legend(frameon=False, **legend)
        _save(figure, path)


def save_reported(path: str | Path, rows: Sequence[Mapping], split: str) -> None:
    """Draws figures that others report beside ours, a line each.

    Args:
      path: PNG file to write; its folder exists.
      rows: {"name", "reported": float, "ours": {"value", "ci95"}} each, from top to bottom.
      split: that ours were scored on.

    Raises:
      OSError: the file cannot be written.
    """
    with _style():
        figure = _make_figure(7.6, 1.3 + 0.27 * len(rows))
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
        _save(figure, path)


def save_intervals(path: str | Path, groups: Mapping[str, Mapping[str, Mapping]], title: str = "") -> None:
    """Draws areas under the ROC curve as dots with their 95 % intervals, one under the other, beside chance.

    Args:
      path: PNG file to write; its folder exists.
      groups: {heading: {row: {"value", "ci95"}}}, in order; a value that does not exist is written, not drawn.
      title: what was scored, as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    rows = [row for metrics in groups.values() for row in metrics.values() if row["value"] is not None]
    lowest = min([0.5] + [min([row["value"], *(row["ci95"] or ())]) for row in rows])
    with _style():
        # A heading, the rows and a gap for each group, and the axis.
        figure = _make_figure(6.2, 1.1 + 0.27 * sum(len(metrics) + 1.5 for metrics in groups.values()))
        axes = figure.add_subplot()
        axes.set_title(_join("AUROC, pneumonia against NORMAL", title))
        axes.axvline(0.5, **REFERENCE)
        place, places, names = 0.0, [], []
        for colour, (heading, metrics) in zip((BLUE, ORANGE), groups.items(), strict=True):
            beside = axes.get_yaxis_transform()
            axes.text(-0.02, place, heading, color=colour, ha="right", va="center", weight="bold", transform=beside)
            for name, row in metrics.items():
                place += 1
                places, names = [*places, place], [*names, name]
                axes.text(1.02, place, format_interval(row), va="center", transform=beside)
                if row["value"] is not None:
                    reach = [[abs(row["value"] - bound)] for bound in row["ci95"] or ()] or None
                    axes.errorbar(row["value"], place, xerr=reach, fmt="o", markersize=5, color=colour, elinewidth=1.4)
            place += 1.5
        axes.text(0.5, place - 1, " chance", color=GREY, va="center")
        axes.set_yticks(places, names)
        axes.set(xlim=(lowest - 0.02, 1.01), ylim=(place - 0.5, -0.6), xlabel="AUROC, 95 % interval")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _save(figure, path)


def save_images(
    path: str | Path, images: Sequence[np.ndarray], columns: int, captions: Sequence[str] = (), title: str = ""
) -> None:
    """Draws grey images side by side, pixel by pixel.

    Args:
      path: PNG file to write; its folder exists.
      images: [H, W] uint8 each, 0..255.
      columns: images in a row.
      captions: one over each image, or none.
      title: of the picture.

    Raises:
      OSError: the file cannot be written.
    """
    rows = math.ceil(len(images) / columns)
    side = 5.4 / columns
    with _style():
        figure = _make_figure(5.4, rows * side + 0.2 * rows * (len(captions) > 0) + 0.3 * (title != ""))
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        if title:
            figure.suptitle(title, x=0.01, ha="left", size=10)
        for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            axes.set_axis_off()
            if i < len(images):
                axes.imshow(images[i], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if i < len(captions):
                axes.set_title(captions[i], x=0.5, ha="center", size=9, pad=3)
        _save(figure, path)


def save_class_counts(path: str | Path, counts: Mapping[str, Mapping[str, int]], title: str = "") -> None:
    """Draws the share of each class in each split as one bar, with the numbers of images.

    Args:
      path: PNG file to write; its folder exists.
      counts: {split: {class: images}}, of the same classes, at most three.
      title: what was counted.

    Raises:
      OSError: the file cannot be written.
    """
    with _style():
        figure = _make_figure(6.4, 1.1 + 0.55 * len(counts))
        axes = figure.add_subplot()
        axes.set_title(_join("Classes", title))
        on_bar = {"color": "white", "weight": "bold"}
        for place, numbers in enumerate(counts.values()):
            total, left = max(1, sum(numbers.values())), 0.0
            for colour, (name, number) in zip(CLASS_COLOURS, numbers.items(), strict=False):
                share = number / total
                axes.barh(place, share, left=left, height=0.7, color=colour, edgecolor="white")
                if share > 0.12:  # Else the text is wider than its part of the bar.
                    axes.text(left + share / 2, place, f"{name} {number:,}", ha="center", va="center", **on_bar)
                left += share
            axes.text(1.01, place, f"{total:,} images", va="center")
        axes.set_yticks(range(len(counts)), list(counts))
        axes.set(xlim=(0, 1), ylim=(len(counts) - 0.5, -0.5), xlabel="Share of the split's images")
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        _save(figure, path)


def save_average_images(path: str | Path, averages: Mapping[str, np.ndarray], title: str = "") -> None:
    """Draws the average image of each class and, below, the differences of each two of them on one symmetric scale.

    Args:
      path: PNG file to write; its folder exists.
      averages: {class: [H, W] float, 0..255}, at most three; of one class alone, the picture says so.
      title: what was averaged.

    Raises:
      OSError: the file cannot be written.
    """
    names, heading = list(averages), _join("Average images, and their differences", title)
    if len(names) < 2:
        return _save_reason(path, heading, {"reason": f"There is no class but {names[0]} to compare."})
    pairs = [(a, b) for i, b in enumerate(names) for a in names[i + 1 :]]
    differences = [averages[a] - averages[b] for a, b in pairs]
    most = max(np.abs(difference).max() for difference in differences) or 1
    with _style():
        figure = _make_figure(6.8, 5.3)
        figure.suptitle(heading, x=0.01, ha="left", size=10)
        above, below = figure.subplots(2, max(len(names), len(pairs)), squeeze=False)
        for axes in (*above, *below):
            axes.set_axis_off()
        for axes, name in zip(above, names, strict=False):
            grey = axes.imshow(averages[name], cmap="gray", vmin=0, vmax=255)
            axes.set_title(name, x=0.5, ha="center", size=9, pad=4)
        for axes, (a, b), difference in zip(below, pairs, differences, strict=False):
            coloured = axes.imshow(difference, cmap="RdBu_r", vmin=-most, vmax=most)
            axes.set_title(f"{a} - {b}", x=0.5, ha="center", size=9, pad=4)
        for image, row, label in ((grey, above, "grey level"), (coloured, below, "red: the first is brighter")):
            bar = figure.colorbar(image, ax=list(row), shrink=0.85, pad=0.02, label=label)
            bar.outline.set_visible(False)
        _save(figure, path)


def save_sizes(
    path: str | Path,
    widths: np.ndarray,
    heights: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    title: str = "",
) -> None:
    """Draws the size of each original file; where all have one size, the picture says so.

    Args:
      path: PNG file to write; its folder exists.
      widths: [N] int, in pixels.
      heights: [N] int, in pixels.
      classes: [N] int, 0..C - 1.
      names: C class names, at most three.
      title: whose files.

    Raises:
      OSError: the file cannot be written.
    """
    heading = _join("Size of the original files", title)
    if len(np.unique(widths)) == len(np.unique(heights)) == 1:
        reason = f"All {len(widths):,} files have {widths[0]} x {heights[0]} pixels: resized before they were packaged."
        return _save_reason(path, heading, {"reason": reason})
    with _style():
        figure = _make_figure(6.0, 4.6)
        axes = figure.add_subplot()
        axes.set_title(heading)
        # One scatter in a shuffled order: no class hides another.
        order = np.random.default_rng(0).permutation(len(widths))
        for part in np.array_split(order, 20):
            for c in range(len(names)):
                of_class = part[classes[part] == c]
                marker = {"marker": CLASS_MARKERS[c], "color": CLASS_COLOURS[c], "s": 12, "linewidths": 0}
                axes.scatter(widths[of_class], heights[of_class], alpha=0.55, **marker)
        for c, name in enumerate(names):
            axes.scatter([], [], marker=CLASS_MARKERS[c], color=CLASS_COLOURS[c], s=24, label=name)
        axes.set(xlabel="Width in pixels", ylabel="Height in pixels")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(frameon=False)
        _save(figure, path)


def save_distributions(
    path: str | Path, values: np.ndarray, classes: np.ndarray, names: Sequence[str], label: str, title: str = ""
) -> None:
    """Draws how a number is distributed in each class, as shares of the class's images in 32 equal ranges.

    Args:
      path: PNG file to write; its folder exists.
      values: [N] float.
      classes: [N] int, 0..C - 1.
      names: C class names, at most three.
      label: of the number, with its unit.
      title: of the picture.

    Raises:
      OSError: the file cannot be written.
    """
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-9), 33)
    with _style():
        figure = _make_figure(6.0, 3.6)
        axes = figure.add_subplot()
        axes.set_title(title)
        for c, name in enumerate(names):
            if not np.any(classes == c):
                continue
            shares = np.histogram(values[classes == c], edges)[0] / np.sum(classes == c)
            axes.stairs(shares, edges, color=CLASS_COLOURS[c], linestyle=CLASS_LINES[c], linewidth=1.8, label=name)
        axes.set(xlabel=label, ylabel="Share of the class's images", ylim=(0, None))
        axes.legend(frameon=False)
        _save(figure, path)


def save_images_per_patient(path: str | Path, numbers: np.ndarray, title: str = "") -> None:
    """Draws how many patients have one image, two, and so on, on a logarithmic scale.

    Args:
      path: PNG file to write; its folder exists.
      numbers: [patients] int, images of each patient, 1 or more.
      title: whose images.

    Raises:
      OSError: the file cannot be written.
    """
    counts = np.bincount(numbers)[1:]
    with _style():
        figure = _make_figure(6.0, 3.2)
        axes = figure.add_subplot()
        axes.set_title(_join("Images of a patient", title))
        bars = axes.bar(np.arange(1, len(counts) + 1), counts, color=BLUE)
        axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts], size=7, padding=1)
        axes.set(xlabel="Images of a patient", ylabel="Patients", yscale="log", ylim=(0.5, counts.max() * 2))
        axes.set_xlim(0.3, len(counts) + 0.7)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(visible=False, axis="x")
        _save(figure, path)


def format_interval(metric: Mapping) -> str:
    """A number with its 95 % interval as text.

    Args:
      metric: {"value", "ci95"}.

    Returns:
      As "0.967 (0.951 to 0.980)".
    """
    if metric["value"] is None:
        return "does not exist"
    if metric["ci95"] is None:
        return f"{metric['value']:.3f} (no interval)"
    low, high = metric["ci95"]
    return f"{metric['value']:.3f} ({low:.3f} to {high:.3f})"


def format_score(score: float | Sequence[float]) -> str:
    """A score or threshold, 0..1, as text: confident networks have 0.99998, which must not be shown as 1."""

    def format_one(number):
        digits = 1 - math.floor(math.log10(1 - number)) if 0.9 < number < 1 else None
        return f"{number:.{digits}f}" if digits else f"{number:.3g}"

    return format_range(score, format_one)


def format_range(numbers: float | Sequence[float], format_one: Callable[[float], str]) -> str:
    """A number as text; of several, as each fold has its own, from which to which."""
    ends = (min(numbers), max(numbers)) if isinstance(numbers, Sequence) else (numbers,)
    return " to ".join(dict.fromkeys(map(format_one, ends)))


def save_search(path: str | Path, rows: Sequence[Mapping], scales: Mapping, importances: Mapping | None) -> None:
    """Draws a search: the trials in their order, the validation AUROC over each field, and what each field explains.

    Args:
      path: PNG file to write; its folder exists.
      rows: of `search.list_trials`.
      scales: {field: "linear", "log" or "choices"}, for each field a panel.
      importances: of `search.compute_importances`.

    Raises:
      OSError: the file cannot be written.
    """
    numbered = [(i + 1, row) for i, row in enumerate(rows) if row["auroc"] is not None]
    if not numbered:
        return _save_reason(path, "Search", {"reason": "No trial has been validated yet."})
    lines = math.ceil(len(scales) / 3)
    with _style():
        figure = _make_figure(10.4, 3.2 + 2.7 * lines)
        above, below = figure.subfigures(2, 1, height_ratios=(3.2, 2.7 * lines))
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
        history.xaxis.get_major_locator().set_params(integer=True)
        legend = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 4, "handlelength": 1.2, "borderaxespad": 0.3}
        history.legend(frameon=False, **legend)
        _draw_importances(bars, importances)
        for i, (field, scale) in enumerate(scales.items()):
            axes = below.add_subplot(lines, 3, i + 1, sharey=history)
            places = [row["values"][field] for _, row in numbered]
            if scale == "choices":
                choices = sorted(set(places))
                places = [choices.index(value) for value in places]
                words = [",".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in choices]
                axes.set_xticks(range(len(words)), words)
                axes.set_xlim(-0.6, len(words) - 0.4)
            else:
                axes.set_xscale(scale)
            _draw_trials(axes, [(place, row) for place, (_, row) in zip(places, numbered, strict=True)])
            axes.set(title=field, ylabel="" if i % 3 else "Validation AUROC")
        _save(figure, path)


def _draw_trials(axes: "Axes", points: Sequence[tuple[float, Mapping]]) -> None:
    """A dot for each trial: full where it is complete, open where it was pruned or diverged."""
    for state, face, edge in (
        ("pruned", "white", GREY),
        ("diverged", "white", ORANGE),
        ("complete", BLUE, "white"),
    ):
        chosen = [(x, row["auroc"]) for x, row in points if row["state"] == state]
        if chosen:
            marker = {"markerfacecolor": face, "markeredgecolor": edge, "markersize": 7}
            axes.plot(*zip(*chosen, strict=True), "o", label=state, **marker)


def _draw_importances(axes: "Axes", importances: Mapping | None) -> None:
    axes.set_title("Importance (fANOVA)")
    axes.grid(axis="y", visible=False)
    if importances is None:
        axes.set_axis_off()
        axes.text(0, 0.9, "Needs four complete trials\nthat differ.", color=GREY, va="top")
        return
    names = list(importances)
    axes.barh(range(len(names)), importances.values(), color=BLUE, height=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1), xlabel="Share of the differences explained")
    axes.tick_params(axis="y", length=0)


def save_speeds(
    path: str | Path, curves: Mapping[str, Sequence[Mapping]], x_label: str, title: str, ideal: bool = False
) -> None:
    """Draws images/s over something that was varied, on an axis that doubles, with quartiles.

    Args:
      path: PNG file to write; its folder exists.
      curves: {name: points}, each point {"x": float, "median", "low", "high"} in images/s.
      x_label: what was varied.
      title: what was measured.
      ideal: also draws, for the first curve, the speed that grows as x does.

    Raises:
      OSError: the file cannot be written.
    """
    with _style():
        figure = _make_figure(5.2, 3.8 + 0.16 * len(curves))
        axes = figure.add_subplot()
        for (name, points), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
            points = sorted(points, key=lambda point: point["x"])
            x, median = [point["x"] for point in points], [point["median"] for point in points]
            axes.plot(x, median, color=colour, marker="o", markersize=4, label=name)
            low, high = [point["low"] for point in points], [point["high"] for point in points]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            if ideal and name == next(iter(curves)):
                axes.plot(x, [median[0] * each / x[0] for each in x], label=f"{name}, if it grew evenly", **REFERENCE)
        axes.set_xscale("log", base=2)
        ticks = sorted({point["x"] for points in curves.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel=x_label, ylabel="Images/s")
        axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), borderaxespad=0)
        _save(figure, path)


def save_roofline(path: str | Path, points: Sequence[Mapping], roofs: Mapping[str, tuple[float, float]]) -> None:
    """Draws FLOP/s over FLOP for each byte, under the roof of the chip where that is known.

    Args:
      path: PNG file to write; its folder exists.
      points: {"name", "intensity" in FLOP/byte, "flops" in FLOP/s} each, of one device.
      roofs: {name: (FLOP/s, bytes/s)} of the chips at their most.

    Raises:
      OSError: the file cannot be written.
    """
    with _style():
        figure = _make_figure(5.2, 3.8 + 0.16 * (len(points) + len(roofs)))
        axes = figure.add_subplot()
        intensities = [point["intensity"] for point in points]
        ridges = [flops / bandwidth for flops, bandwidth in roofs.values()]
        x = np.geomspace(min([*intensities, *ridges]) / 4, max([*intensities, *ridges]) * 4, 200)
        for name, (flops, bandwidth) in roofs.items():
            axes.plot(x, np.minimum(flops, bandwidth * x) / 1e9, label=f"{name}, at most", **REFERENCE)
        for i, point in enumerate(points):
            colour, marker = COLOURS[i % len(COLOURS)], "osD^"[i // len(COLOURS) % 4]
            label = f"{point['name']}: {point['flops'] / 1e9:,.0f} GFLOP/s"
            axes.plot(point["intensity"], point["flops"] / 1e9, marker, color=colour, markersize=6, label=label)
        heights = [point["flops"] / 1e9 for point in points] + [flops / 1e9 for flops, _ in roofs.values()]
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("log", base=2)
            axis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set(xlim=(x[0], x[-1]), ylim=(min(heights) / 2, max(heights) * 2))
        axes.set(xlabel="FLOP for each byte of memory read or written", ylabel="GFLOP/s")
        axes.set_title("Roofline")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), borderaxespad=0)
        _save(figure, path)


def _read_curve(rows: list[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of one logged name, by step."""
    by_step = {row["step"]: (row["epoch"], row[name]) for row in rows if row.get(name) is not None}
    points = np.array([by_step[step] for step in sorted(by_step)], np.float64).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1])]
    return points[:, 0], points[:, 1]


def _style():
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _make_figure(width_inches: float, height_inches: float) -> "Figure":
    # A Figure of its own, not pyplot's: nothing to close, and no window system is asked for.
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def _make_square(heading: str, x_label: str, y_label: str) -> tuple["Figure", "Axes"]:
    """A figure with one square pair of axes from 0 to 1."""
    figure = _make_figure(4.8, 5.0)
    axes = figure.add_subplot()
    # A little room around: curves of good models run along the edges.
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    axes.set_title(heading)
    return figure, axes


def _mark_operating_point(axes: "Axes", x: float, y: float) -> None:
    axes.plot([x], [y], marker="o", markersize=8, color=ORANGE, markeredgecolor="white", clip_on=False, zorder=5)


def _write_lines(axes: "Axes", lines: list[tuple[str, str]], x: float, bottom: float, align: str) -> None:
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


def _save_reason(path: str | Path, heading: str, metric: Mapping) -> None:
    with _style():
        figure = _make_figure(4.8, 1.6)
        figure.text(0.04, 0.9, heading, size=10, va="top")
        figure.text(0.04, 0.5, f"Not drawn. {metric['reason']}", color=GREY, va="top", wrap=True)
        _save(figure, path)


def _save(figure: "Figure", path: str | Path) -> None:
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Without the software's version in it, equal numbers make equal files.
        figure.savefig(unfinished, format="png", metadata={"Software": None})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _join(what: str, title: str) -> str:
    return f"{what}\n{title}" if title else what
