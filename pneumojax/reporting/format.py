"""Numbers as text, the same in pictures and on pages."""

import math
from collections.abc import Callable, Mapping, Sequence


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
