"""Figures of a data set: its images, classes, patients and files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pneumojax.reporting.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    join_heading,
    make_figure,
    save_figure,
    save_reason,
    use_style,
)

# For NORMAL, BACTERIA, VIRUS. Markers and dashes distinguish the classes in a grey print.
CLASS_COLOURS = (BLUE, ORANGE, GREEN)
CLASS_MARKERS = ("o", "s", "^")
CLASS_LINES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


def save_images(
    path: str | Path, images: Sequence[np.ndarray], columns: int, captions: Sequence[str] = (), title: str = ""
) -> None:
    """Shows grey images side by side, without interpolation.

    Args:
      path: PNG file to write. Its folder must exist.
      images: a list of [H, W] uint8 images, 0..255.
      columns: number of images in a row.
      captions: the caption above each image; empty for none.
      title: heading of the figure.

    Raises:
      OSError: the file cannot be written.
    """
    rows = math.ceil(len(images) / columns)
    side = 5.4 / columns
    with use_style():
        figure = make_figure(5.4, rows * side + 0.2 * rows * (len(captions) > 0) + 0.3 * (title != ""))
        figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        if title:
            figure.suptitle(title, x=0.01, ha="left", size=10)
        for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            axes.set_axis_off()
            if i < len(images):
                axes.imshow(images[i], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if i < len(captions):
                axes.set_title(captions[i], x=0.5, ha="center", size=9, pad=3)
        save_figure(figure, path)


def save_class_counts(path: str | Path, counts: Mapping[str, Mapping[str, int]], title: str = "") -> None:
    """Plots a stacked bar for each split. Each segment is a class, labelled with the number of its images.

    Args:
      path: PNG file to write. Its folder must exist.
      counts: {split: {class: number of images}}. All splits have the same classes, at most three.
      title: description of the images.

    Raises:
      OSError: the file cannot be written.
    """
    with use_style():
        figure = make_figure(6.4, 1.1 + 0.55 * len(counts))
        axes = figure.add_subplot()
        axes.set_title(join_heading("Classes", title))
        on_bar: dict[str, Any] = {"color": "white", "weight": "bold"}
        for position, numbers in enumerate(counts.values()):
            total, left = max(1, sum(numbers.values())), 0.0
            for colour, (name, number) in zip(CLASS_COLOURS, numbers.items(), strict=False):
                share = number / total
                axes.barh(position, share, left=left, height=0.7, color=colour, edgecolor="white")
                if share > 0.12:  # The text does not fit into a shorter part of the bar.
                    axes.text(left + share / 2, position, f"{name} {number:,}", ha="center", va="center", **on_bar)
                left += share
            axes.text(1.01, position, f"{total:,} images", va="center")
        axes.set_yticks(range(len(counts)), list(counts))
        axes.set(xlim=(0, 1), ylim=(len(counts) - 0.5, -0.5), xlabel="Share of the split's images")
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.grid(visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)
        save_figure(figure, path)


def save_average_images(path: str | Path, averages: Mapping[str, np.ndarray], title: str = "") -> None:
    """Shows the average image of each class and, below, the difference of each pair on a common colour scale.

    Args:
      path: PNG file to write. Its folder must exist.
      averages: {class: [H, W] float, 0..255}, at most three classes. With one class there is nothing to compare, and
        the figure shows this as the reason.
      title: description of the images.

    Raises:
      OSError: the file cannot be written.
    """
    names, heading = list(averages), join_heading("Average images, and their differences", title)
    if len(names) < 2:
        return save_reason(path, heading, {"reason": f"{names[0]} is the only class, so there is nothing to compare."})
    pairs = [(a, b) for i, b in enumerate(names) for a in names[i + 1 :]]
    differences = [averages[a] - averages[b] for a, b in pairs]
    most = max(np.abs(difference).max() for difference in differences) or 1
    with use_style():
        figure = make_figure(6.8, 5.3)
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
        save_figure(figure, path)


def save_sizes(
    path: str | Path,
    widths: np.ndarray,
    heights: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    title: str = "",
) -> None:
    """Plots the size of each original image as a point. If all have the same size, the figure shows this as the reason.

    Args:
      path: PNG file to write. Its folder must exist.
      widths: [N] int, in pixels.
      heights: [N] int, in pixels.
      classes: [N] int, 0..C - 1.
      names: C class names, at most three.
      title: description of the images.

    Raises:
      OSError: the file cannot be written.
    """
    heading = join_heading("Size of the original files", title)
    if len(np.unique(widths)) == len(np.unique(heights)) == 1:
        reason = (
            f"All {len(widths):,} files have {widths[0]} x {heights[0]} pixels: they were resized before packaging."
        )
        return save_reason(path, heading, {"reason": reason})
    with use_style():
        figure = make_figure(6.0, 4.6)
        axes = figure.add_subplot()
        axes.set_title(heading)
        # The files are drawn in a shuffled order, so that no class hides another.
        order = np.random.default_rng(0).permutation(len(widths))
        for part in np.array_split(order, 20):
            for c in range(len(names)):
                of_class = part[classes[part] == c]
                marker: dict[str, Any] = {"marker": CLASS_MARKERS[c], "color": CLASS_COLOURS[c]}
                axes.scatter(widths[of_class], heights[of_class], s=12, linewidths=0, alpha=0.55, **marker)
        for c, name in enumerate(names):
            axes.scatter([], [], marker=CLASS_MARKERS[c], color=CLASS_COLOURS[c], s=24, label=name)
        axes.set(xlabel="Width in pixels", ylabel="Height in pixels")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(frameon=False)
        save_figure(figure, path)


def save_distributions(
    path: str | Path, values: np.ndarray, classes: np.ndarray, names: Sequence[str], label: str, title: str = ""
) -> None:
    """Plots the distribution of a value in each class, as a histogram of 32 equal bins.

    Args:
      path: PNG file to write. Its folder must exist.
      values: [N] float.
      classes: [N] int, 0..C - 1.
      names: C class names, at most three.
      label: name and unit of the value.
      title: heading of the figure.

    Raises:
      OSError: the file cannot be written.
    """
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-9), 33)
    with use_style():
        figure = make_figure(6.0, 3.6)
        axes = figure.add_subplot()
        axes.set_title(title)
        for c, name in enumerate(names):
            if not np.any(classes == c):
                continue
            shares = np.histogram(values[classes == c], edges)[0] / np.sum(classes == c)
            axes.stairs(shares, edges, color=CLASS_COLOURS[c], linestyle=CLASS_LINES[c], linewidth=1.8, label=name)
        axes.set(xlabel=label, ylabel="Share of the class's images", ylim=(0, None))
        axes.legend(frameon=False)
        save_figure(figure, path)


def save_images_per_patient(path: str | Path, numbers: np.ndarray, title: str = "") -> None:
    """Plots the number of patients with one image, two images and so on, on a logarithmic scale.

    Args:
      path: PNG file to write. Its folder must exist.
      numbers: [patients] int, number of images of each patient, 1 or more.
      title: description of the images.

    Raises:
      OSError: the file cannot be written.
    """
    counts = np.bincount(numbers)[1:]
    with use_style():
        figure = make_figure(6.0, 3.2)
        axes = figure.add_subplot()
        axes.set_title(join_heading("Images of a patient", title))
        bars = axes.bar(np.arange(1, len(counts) + 1), counts, color=BLUE)
        axes.bar_label(bars, [f"{count:,}" if count else "" for count in counts], size=7, padding=1)
        axes.set(xlabel="Images of a patient", ylabel="Patients", yscale="log", ylim=(0.5, counts.max() * 2))
        axes.set_xlim(0.3, len(counts) + 0.7)
        axes.locator_params(axis="x", integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(visible=False, axis="x")
        save_figure(figure, path)
