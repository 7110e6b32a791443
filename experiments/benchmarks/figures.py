"""Figures of the results of benchmark.py."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pneumojax.reporting.figures.style import COLOURS, REFERENCE, make_figure, save_figure, use_style


def save_speeds(
    path: str | Path, curves: Mapping[str, Sequence[Mapping]], x_label: str, title: str, ideal: bool = False
) -> None:
    """Plots images/s against a parameter that varies, on a logarithmic axis, with a band of the quartiles.

    Args:
      path: PNG file to write. Its folder must exist.
      curves: {name: points}, each point {"x": float, "median", "low", "high"} in images/s.
      x_label: name of the parameter.
      title: title of the figure.
      ideal: also draw a line through the first point of the first curve that is proportional to x.

    Raises:
      OSError: the file cannot be written.
    """
    with use_style():
        figure = make_figure(5.2, 3.8 + 0.16 * len(curves))
        axes = figure.add_subplot()
        for (name, points), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
            points = sorted(points, key=lambda point: point["x"])
            x, median = [point["x"] for point in points], [point["median"] for point in points]
            axes.plot(x, median, color=colour, marker="o", markersize=4, label=name)
            low, high = [point["low"] for point in points], [point["high"] for point in points]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            if ideal and name == next(iter(curves)):
                axes.plot(x, [median[0] * each / x[0] for each in x], label=f"{name}, if proportional", **REFERENCE)
        axes.set_xscale("log", base=2)
        ticks = sorted({point["x"] for points in curves.values() for point in points})
        # A label that is too close to the previous one would overlap it.
        apart = [i == 0 or tick > 1.2 * ticks[i - 1] for i, tick in enumerate(ticks)]
        axes.set_xticks(ticks, [f"{tick:g}" if far else "" for tick, far in zip(ticks, apart, strict=True)])
        axes.minorticks_off()
        axes.set(xlabel=x_label, ylabel="Images/s")
        axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), borderaxespad=0)
        save_figure(figure, path)


def save_roofline(path: str | Path, points: Sequence[Mapping], roofs: Mapping[str, tuple[float, float]]) -> None:
    """Plots FLOP/s against FLOP per byte, with the limits of the chips.

    Args:
      path: PNG file to write. Its folder must exist.
      points: {"name", "intensity": FLOP per byte, "flops": FLOP/s} for each point. All are per device.
      roofs: {name: (FLOP/s, bytes/s)}, the peak rates of each known chip.

    Raises:
      OSError: the file cannot be written.
    """
    with use_style():
        figure = make_figure(5.2, 3.8 + 0.16 * (len(points) + len(roofs)))
        axes = figure.add_subplot()
        intensities = [point["intensity"] for point in points]
        ridges = [flops / bandwidth for flops, bandwidth in roofs.values()]
        x = np.geomspace(min([*intensities, *ridges]) / 4, max([*intensities, *ridges]) * 4, 200)
        for name, (flops, bandwidth) in roofs.items():
            axes.plot(x, np.minimum(flops, bandwidth * x) / 1e9, label=f"{name}, peak", **REFERENCE)
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
        axes.set(xlabel="FLOP per byte of memory read or written", ylabel="GFLOP/s")
        axes.set_title("Roofline")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), borderaxespad=0)
        save_figure(figure, path)
