"""Reads the TOML file of an ablation, and formats the results on validation as a Markdown table."""

import pathlib
import tomllib
from collections.abc import Mapping, Sequence

import numpy as np

from pneumojax.errors import UserError
from pneumojax.reporting.tables import Table

COLUMNS = (
    "row",
    "AUROC, latest",
    "aspect swapped, best by AUROC",
    "aspect swapped, latest",
    "change to base",
    "worst nuisance, latest",
    "three-class accuracy",
    "parameters",
    "minutes",
)

HOW_TO_READ = (
    "Each figure is the mean over the seeds, with the standard deviation over the seeds after ±. AUROC is of pneumonia "
    "against NORMAL. *aspect swapped*: validation with NORMAL images cropped to the central 86 % of their height and "
    "images of pneumonia to the central 86 % of their width, both resized to the square (experiments/robustness.py). "
    "*change to base* is the paired difference of the aspect-swapped AUROC of the latest checkpoint, seed by seed. "
    "*worst nuisance* is the lowest AUROC under the swap of one nuisance. *minutes* are for all seeds together, on a "
    "machine that was not idle. A difference smaller than twice its ± is noise. The test split was not touched."
)


def read_table(path: pathlib.Path) -> tuple[dict, dict[str, dict]]:
    """Reads the base and the rows.

    Args:
      path: TOML file with a table `base`, {"flagfile", and values of config fields}, and a table `rows`, {name:
        {"title", and values of config fields that differ from the base}}.

    Returns:
      (base, rows): base as in the file, rows {name: {"title": str, "fields": dict}}.

    Raises:
      UserError: the file cannot be read, or has another shape.
    """
    try:
        content = tomllib.loads(path.read_text())
        base = dict(content["base"])
        rows = {
            name: {"title": row["title"], "fields": {key: value for key, value in row.items() if key != "title"}}
            for name, row in content["rows"].items()
        }
        base["flagfile"]
    except (OSError, ValueError) as error:
        raise UserError(f"--table: {path} cannot be read: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--table: {path} needs a table base with a flagfile, and for each row a table rows.NAME with a title "
            f"({error!r} is missing or has another type)."
        ) from error
    return base, rows


def format_page(base: Mapping, rows: Mapping[str, Mapping], results: Mapping[str, Mapping], quick: bool) -> str:
    """Formats the page.

    Args:
      base: from `read_table`.
      rows: from `read_table`.
      results: {name of a row: newest row of the results file}. They are shown in the order of `rows`.
      quick: whether the runs are a smoke test, whose figures mean nothing.
    """
    first, *_ = names = [name for name in rows if name in results]
    cells = [_format_row(rows[name]["title"], results[name], results[first]) for name in names]
    fields = ", ".join(f"`{name}={value}`" for name, value in base.items() if name != "flagfile")
    seeds = len(results[first]["seeds"])
    lines = [
        "# Ablation",
        "",
        *(["A smoke test of one epoch at 32 px: its figures mean nothing.", ""] if quick else []),
        f"The base is `presets/{base['flagfile']}` with {fields}. {seeds} seeds for each row. Written by",
        "",
        "```",
        "scripts/run experiments/ablation.py --dataset=kermany",
        "```",
        "",
        HOW_TO_READ,
        "",
        Table(COLUMNS, cells).format_markdown(),
        "",
        *_list_missing(rows, results),
    ]
    return "\n".join(lines)


def _list_missing(rows: Mapping[str, Mapping], results: Mapping[str, Mapping]) -> list[str]:
    """Returns lines of text with the names of the rows that have not been trained."""
    missing = [row["title"] for name, row in rows.items() if name not in results]
    return (
        ["Rows of the file that have not been trained:", "", *(f"- {title}" for title in missing), ""]
        if missing
        else []
    )


def _format_row(title: str, result: Mapping, base: Mapping) -> list[str]:
    seeds = result["seeds"]
    best, latest, of_base = (
        [seed[which] for seed in own["seeds"]]
        for own, which in ((result, "best"), (result, "latest"), (base, "latest"))
    )
    worst = [min((auroc, name) for name, auroc in scores["swapped"].items()) for scores in latest]
    names = [name for _, name in worst]
    common = max(sorted(set(names)), key=names.count)
    paired = [a["swapped"]["aspect"] - b["swapped"]["aspect"] for a, b in zip(latest, of_base, strict=False)]
    accuracies = [scores["accuracy"] for scores in latest]
    return [
        title,
        _format_mean([scores["auroc"] for scores in latest]),
        _format_mean([scores["swapped"]["aspect"] for scores in best]),
        _format_mean([scores["swapped"]["aspect"] for scores in latest]),
        "" if result is base else _format_mean(paired, "+.4f"),
        f"{_format_mean([auroc for auroc, _ in worst])} ({common})",
        "" if seeds[0]["latest"]["classes"] == 2 else _format_mean(accuracies, ".3f"),
        f"{result['parameters']:,}",
        f"{result['seconds'] / 60:.0f}",
    ]


def _format_mean(values: Sequence[float], spec: str = ".4f") -> str:
    deviation = f" ± {np.std(values, ddof=1):{spec.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{spec}}{deviation}"
