"""Figures of an evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pneumojax.reporting.figures.style import (
    BAND,
    BLUE,
    GREY,
    INK,
    ORANGE,
    REFERENCE,
    join_heading,
    make_figure,
    make_unit_square,
    save_figure,
    save_reason,
    use_style,
    write_lines,
)
from pneumojax.reporting.format import format_interval, format_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_roc(
    path: str | Path, curve: Mapping | None, metrics: Mapping, threshold: float | Sequence[float], title: str = ""
) -> None:
    """Plots the ROC curve with its 95 % band, the area with its interval, and the operating point.

    Args:
      path: PNG file to write. Its folder must exist.
      curve: from `curves.compute_roc_curve`. If it is None, the figure shows the reason.
      metrics: from `metrics.compute_metrics`. The figure shows auroc, sensitivity and specificity.
      threshold: the threshold of the operating point, or a list with the threshold of each fold.
      title: description of the evaluated data, such as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    heading = join_heading("ROC curve", title)
    if curve is None:
        return save_reason(path, heading, metrics["auroc"])
    with use_style():
        figure, axes = make_unit_square(heading, "1 - specificity (false positive rate)", "Sensitivity")
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
            lines.append((GREY, "brackets and band: 95 % interval"))
        write_lines(axes, lines, x=0.97, bottom=0.04, align="right")
        save_figure(figure, path)


def save_precision_recall(
    path: str | Path, curve: Mapping | None, metrics: Mapping, threshold: float | Sequence[float], title: str = ""
) -> None:
    """Plots precision against sensitivity with its 95 % band, the prevalence, and the operating point.

    Args:
      path: PNG file to write. Its folder must exist.
      curve: from `curves.compute_pr_curve`. If it is None, the figure shows the reason.
      metrics: from `metrics.compute_metrics`. The figure shows auprc, sensitivity and precision. If no image is
        predicted positive, the operating point has no precision and is left out.
      threshold: the threshold of the operating point, or a list with the threshold of each fold.
      title: description of the evaluated data, such as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    heading = join_heading("Precision-recall curve", title)
    if curve is None:
        return save_reason(path, heading, metrics["auprc"])
    with use_style():
        figure, axes = make_unit_square(heading, "Sensitivity (recall)", "Precision")
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
        lines.append((INK, f"precision {format_interval(metrics['precision'], missing='does not exist')}"))
        if curve["band"] is not None:
            lines.append((GREY, "brackets and band: 95 % interval"))
        write_lines(axes, lines, x=0.03, bottom=0.04, align="left")
        save_figure(figure, path)


def save_confusion_matrix(path: str | Path, confusion: np.ndarray, class_names: Sequence[str], title: str = "") -> None:
    """Plots a confusion matrix: numbers of images by true and predicted class, coloured by their share of the row.

    Args:
      path: PNG file to write. Its folder must exist.
      confusion: [C, C] int from `point_metrics.compute_confusion`. Rows are the true class. A class without images has
        no shares.
      class_names: C names.
      title: description of the evaluated data, such as "test, 624 images, threshold 0.31".

    Raises:
      OSError: the file cannot be written.
    """
    confusion = np.asarray(confusion)
    totals = confusion.sum(axis=1)
    shares = confusion / np.maximum(totals, 1)[:, None]
    classes = len(class_names)
    with use_style():
        side = 1.15 * classes
        figure = make_figure(side + 1.7, side + 1.3)
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
        axes.set_title(join_heading("Confusion matrix", title), x=0, ha="left")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        # White lines separate the cells where two neighbours are light.
        for edge in np.arange(0.5, classes - 1):
            axes.axhline(edge, color="white", linewidth=2)
            axes.axvline(edge, color="white", linewidth=2)
        save_figure(figure, path)


def save_reliability(path: str | Path, reliability: Mapping, calibration: Mapping, title: str = "") -> None:
    """Plots the share of pneumonia against the score, as trained and recalibrated.

    Args:
      path: PNG file to write. Its folder must exist.
      reliability: {"before", "after": from `calibration.compute_reliability`}.
      calibration: {"before", "after": from `calibration.compute_calibration`}.
      title: description of the evaluated data, such as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    with use_style():
        figure, axes = make_unit_square(
            join_heading("Reliability", title), "Score for pneumonia (mean of the bin)", "Share of pneumonia"
        )
        axes.plot([0, 1], [0, 1], **REFERENCE)
        for when, colour, size in (("before", GREY, 4), ("after", BLUE, 6)):
            bins = reliability[when]
            below, above = (np.abs(np.subtract(bins[bound], bins["share"])) for bound in ("low", "high"))
            # If the scores hardly change, the two curves coincide, so the first has small open markers.
            face = colour if when == "after" else "white"
            marker: dict[str, Any] = {"marker": "o", "markersize": size, "markerfacecolor": face}
            axes.errorbar(
                bins["mean_score"], bins["share"], [below, above], color=colour, linewidth=1.4, elinewidth=0.9, **marker
            )
        lines = [(INK, "ECE, Brier score, slope")]
        for when, colour, words in (
            ("before", GREY, "as trained"),
            ("after", BLUE, "recalibrated"),
        ):
            names = ("ece", "brier", "calibration_slope")
            numbers = [calibration[when][name]["value"] for name in names]
            text = ", ".join("none" if number is None else f"{number:.3f}" for number in numbers)
            lines.append((colour, f"{words}: {text}"))
        lines.append((GREY, "bars: 95 % interval of the share"))
        # The text stands on the side of the diagonal that the curve leaves free.
        is_below = np.mean(np.subtract(reliability["after"]["share"], reliability["after"]["mean_score"])) < 0
        x, bottom, align = (0.03, 0.77, "left") if is_below else (0.97, 0.04, "right")
        write_lines(axes, lines, x, bottom, align)
        save_figure(figure, path)


def save_predictive_values(
    path: str | Path, values: Mapping, counts: Mapping, threshold: float | Sequence[float], title: str = ""
) -> None:
    """Plots the predictive values at the threshold against the prevalence of pneumonia, with 95 % bands.

    Args:
      path: PNG file to write. Its folder must exist.
      values: {"prevalence": G floats, "ppv", "npv": list of G dicts {"value", "ci95"}}, from
        `calibration.compute_predictive_values`. Missing values are left out. If all are missing, the figure shows the
        reason.
      counts: "counts" of metrics.json, from which the prevalence of the split is computed.
      threshold: the threshold of the operating point, or a list with the threshold of each fold.
      title: description of the evaluated data, such as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    heading = join_heading("Predictive values", title)
    drawn = {name: [one for one in values[name] if one["value"] is not None] for name in ("ppv", "npv")}
    if not any(drawn.values()):
        return save_reason(path, heading, values["ppv"][0])
    with use_style():
        figure, axes = make_unit_square(heading, "Prevalence of pneumonia", "Predictive value")
        own = 1 - counts["classes"]["NORMAL"] / counts["images"]
        axes.axvline(own, **REFERENCE)
        axes.text(own - 0.015, 0.5, "this split", color=GREY, rotation=90, ha="right", va="center")
        lines = [(INK, f"At threshold {format_score(threshold)}")]
        for name, colour, words in (
            ("ppv", ORANGE, "positive predictive value (PPV)"),
            ("npv", BLUE, "negative predictive value (NPV)"),
        ):
            if not drawn[name]:  # For example at a threshold above all scores.
                lines.append((colour, f"{name.upper()} does not exist"))
                continue
            lines.append((colour, words))
            axes.plot(values["prevalence"], [one["value"] for one in values[name]], color=colour)
            if all(one["ci95"] for one in values[name]):
                low, high = zip(*(one["ci95"] for one in values[name]), strict=True)
                axes.fill_between(values["prevalence"], low, high, **BAND | {"color": colour})
        lines.append((GREY, "bands: 95 % interval"))
        write_lines(axes, lines, x=0.5, bottom=0.04, align="center")
        save_figure(figure, path)


def save_decision_curve(path: str | Path, curve: Mapping, title: str = "") -> None:
    """Plots the net benefit of the score, of treating all and of treating none, against the threshold probability.

    Args:
      path: PNG file to write. Its folder must exist.
      curve: from `decision_curve.compute_decision_curve`.
      title: description of the evaluated data, such as "test, 624 images".

    Raises:
      OSError: the file cannot be written.
    """
    with use_style():
        figure = make_figure(4.8, 4.2)
        axes = figure.add_subplot()
        axes.set_title(join_heading("Decision curve", title))
        # The best possible net benefit has all true positives and no false positive. Large negative values are cut off.
        best = max(curve["treat_all"][0], 0.05)
        axes.set(xlabel="Threshold probability", ylabel="Net benefit", xlim=(0, 1), ylim=(-0.15 * best, 1.1 * best))
        axes.axhline(0, **REFERENCE)
        axes.plot(curve["threshold"], curve["treat_all"], color=ORANGE, linewidth=1.4)
        if curve["band"] is not None:
            axes.fill_between(curve["threshold"], curve["band"]["low"], curve["band"]["high"], **BAND)
        axes.plot(curve["threshold"], curve["net_benefit"], color=BLUE)
        lines = [
            (BLUE, "decision by the calibrated score"),
            (ORANGE, "all called pneumonia"),
            (GREY, "all called NORMAL (dashed)"),
        ]
        if curve["band"] is not None:
            lines.append((GREY, "band: 95 % interval"))
        write_lines(axes, lines, x=0.03, bottom=0.16, align="left")
        save_figure(figure, path)


def _mark_operating_point(axes: "Axes", x: float, y: float) -> None:
    axes.plot([x], [y], marker="o", markersize=8, color=ORANGE, markeredgecolor="white", clip_on=False, zorder=5)
