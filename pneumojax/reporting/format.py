"""Formats numbers and intervals as text, for pages, figures and the terminal."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def format_bounds(bounds: Sequence[float], spec: str = ".3f") -> str:
    """Formats the two ends of an interval, such as "0.951 to 0.980".

    Args:
      bounds: (low, high).
      spec: format specification of each number.
    """
    low, high = bounds
    return f"{low:{spec}} to {high:{spec}}"


def format_interval(metric: Mapping, spec: str = ".3f", missing: str = "-") -> str:
    """Formats a number with its 95 % interval, such as "0.967 (0.951 to 0.980)".

    Args:
      metric: {"value": float or None, "ci95": (low, high) or None}. An optional "standard_deviation" is shown as in
        "0.967 ± 0.004 (0.951 to 0.980)".
      spec: format specification of each number. A "+" in it does not apply to the standard deviation.
      missing: the text if the value is None.
    """
    if metric["value"] is None:
        return missing
    text = f"{metric['value']:{spec}}"
    if metric.get("standard_deviation") is not None:
        text += f" ± {metric['standard_deviation']:{spec.removeprefix('+')}}"
    return f"{text} ({format_bounds(metric['ci95'], spec)})" if metric["ci95"] else text


def format_score(score: float | Sequence[float]) -> str:
    """Formats a score or a threshold with enough digits that a score below 1, such as 0.99998, is not shown as 1.

    Args:
      score: a score, 0..1, or one for each fold.
    """

    def format_one(number: float) -> str:
        digits = 1 - math.floor(math.log10(1 - number)) if 0.9 < number < 1 else None
        return f"{number:.{digits}f}" if digits else f"{number:.3g}"

    return format_range(score, format_one)


def format_range(numbers: float | Sequence[float], format_one: Callable[[float], str]) -> str:
    """Formats a number, or the range of several numbers, such as "0.31 to 0.45".

    Args:
      numbers: a number, or several. A cross-validation has one for each fold.
      format_one: formats one number. If both ends of the range have the same text, it is written once.
    """
    ends = (min(numbers), max(numbers)) if isinstance(numbers, Sequence) else (numbers,)
    return " to ".join(dict.fromkeys(map(format_one, ends)))


def format_calibration(calibration: Mapping) -> str:
    """Formats a calibration, such as "temperature 1.083, biases +1.84 and +1.65". The bias of NORMAL is 0.

    Args:
      calibration: content of calibration.json. A cross-validation has lists, with an entry for each fold.
    """
    temperature = format_range(calibration["temperature"], "{:.3f}".format)
    biases = np.atleast_2d(calibration["biases"])[:, 1:].T.tolist()
    shown = " and ".join(format_range(numbers, "{:+.2f}".format) for numbers in biases)
    return f"temperature {temperature}, {'biases' if len(biases) > 1 else 'bias'} {shown}"
