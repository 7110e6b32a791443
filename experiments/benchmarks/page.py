"""Formats the results of benchmark.py as a text table, and as an HTML page with the latest row of each case."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np

from experiments.benchmarks.cases import KEY_COLUMNS, NO_FLAGS, make_key
from experiments.benchmarks.figures import save_roofline, save_speeds
from pneumojax.files import write_text
from pneumojax.reporting.format import format_bounds
from pneumojax.reporting.html import Picture, Section, load_picture, render_page
from pneumojax.reporting.tables import Table

# {name of a parameter that can vary: (label, function that reads its value from a row)}
VARIED = {
    "batch_size": ("Batch size", lambda row: row["batch_size"]),
    "image_px": ("Image size in px", lambda row: row["image_px"]),
    "devices": ("Devices", lambda row: row["device"]["count"]),
    "replicas": ("Replicas", lambda row: row["fields"].get("replicas")),
    "limit": ("Images", lambda row: row["limit"]),
}


def format_table(rows: list[dict]) -> str:
    """Formats rows of results as a text table."""
    return Table(HEADINGS, [format_row(row) for row in rows]).format_text()


HEADINGS = (
    "what",
    "framework",
    "work",
    "images/s (quartiles)",
    "seconds",
    "first s",
    "compile s",
    "MFU",
    "ours / best peer",
    "result",
)


def format_row(row: dict) -> tuple[str, ...]:
    """Returns the table cells of a row of results, in the order of HEADINGS."""
    if "error" in row:
        return row["what"], row["framework"], describe_work(row), *[""] * (len(HEADINGS) - 4), row["error"]
    speed = row["images_per_second"]
    results = [f"validation AUROC {row['auroc']:.4f}"] if "auroc" in row else []
    results += [f"{count} {outcome}" for outcome, count in row.get("tests", {}).items()]
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
    ratio += f" (first epoch {row['first_ratio']:.2f})" if "first_ratio" in row else ""
    return (
        row["what"],
        row["framework"],
        describe_work(row),
        f"{speed['median']:,.1f} ({format_bounds((speed['low'], speed['high']), ',.1f')})" if speed else "",
        f"{row['seconds']['median']:.4g}",
        f"{row['first_seconds']:.4g}" if "first_seconds" in row else "",
        f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "",
        f"{row['model_flop_utilisation']:.1%}" if "model_flop_utilisation" in row else "",
        ratio,
        ", ".join(results),
    )


def describe_work(row: dict) -> str:
    """Describes the work of a row, such as "resnet18 112 px, batch 32, float32"."""
    work = [f"{row['model']} {row['image_px']} px", f"batch {row['batch_size']}", row["dtype"]]
    if row["what"] in ("load", "cache", "decode"):
        work = [f"{row['image_px']} px"]
    elif row["what"] == "tests":
        work = []
    count = row["device"]["count"] if "device" in row else 1
    work += [f"{count} devices"] if count > 1 else []
    work += [f"{row['limit']} files"] if row["limit"] else []
    work += ["no augmentation"] if row["augment"] is False else []
    work += [f"preset {row['preset']}"] if row.get("preset") else []
    work += [f"{name} {value}" for name, value in row["fields"].items()]
    work += [f"XLA flags: {row['xla_flags']}"] if row.get("xla_flags") else []
    return ", ".join(work)


def write_page(results: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    """Writes the page and its figures into the folder of the results.

    Args:
      results: path of the results file.
      rows: the rows of that file.

    Returns:
      Path of the page.
    """
    failed = find_failures(rows)
    rows = keep_latest([row for row in rows if "error" not in row])
    sections = []
    if flagged := [row for row in rows if row.get("xla_flags")]:
        text = (
            "The same work with other flags of XLA, each set in a process of its own and with an empty compilation "
            f"cache. The change is relative to the row {NO_FLAGS}. It is noise if it is smaller than the quartiles.",
        )
        sections.append(Section("Flags of XLA", text, [make_flag_table(flagged, failed)]))
    if compared := [row for row in rows if "ratio" in row]:
        text = (
            "All frameworks take turns to do the same work on one machine. The ratio is our images/s divided by those "
            "of the fastest other framework. Above 1, ours is faster.",
        )
        sections.append(Section("Compared with PyTorch and Keras", text, [make_ratio_table(compared, rows)]))
    pictures = draw_speeds(results, rows)
    if pictures:
        sections.append(Section("Speed", ("Lines are medians, bands are quartiles.",), pictures))
    if roofline := draw_roofline(results, rows):
        text = (
            "FLOP are counted before XLA optimises the program. Bytes are those that the compiled program reads and "
            "writes; on CPU they are counted with XLA's own convolutions. Under the sloped part of the limit, memory "
            "bandwidth bounds the speed; under the flat part, arithmetic does. The limit is drawn for the chips that "
            "pneumojax/training/chips.py lists.",
        )
        sections.append(Section("Roofline", text, [roofline]))
    if growth := compute_growth(rows):
        text = (
            "The power p is fitted so that the seconds grow as x**p, where x is the varied choice: 1 is proportional, "
            "2 is quadratic. For steps, the seconds are those of a call of several steps.",
        )
        sections.append(Section("How cost grows", text, [make_growth_table(growth)]))
    sections.append(Section("All figures", (), [Table(HEADINGS, [format_row(row) for row in rows])]))
    if failed:
        lines = [(row["what"], row["framework"], describe_work(row), row["error"]) for row in failed]
        sections.append(Section("Not measured", (), [Table(("what", "framework", "work", "reason"), lines)]))
    path = results.with_suffix(".html")
    write_text(path, render_page("Benchmarks", describe(rows), sections, warn(rows)))
    return path


def keep_latest(rows: list[dict]) -> list[dict]:
    """Removes each row for which a later row measures the same work on the same kind of device."""
    return list({identify(row): row for row in rows}.values())


def identify(row: dict, without: str | None = None) -> str:
    """Returns a string that is equal for rows of the same work on the same kind of device.

    Args:
      row: a row of results.
      without: a column or config field to ignore, in which rows may differ.
    """
    named = {name: row.get(name) for name in KEY_COLUMNS if name != without}
    named["fields"] = {name: value for name, value in row["fields"].items() if name != without}
    count = None if without == "devices" else row["device"]["count"]
    return json.dumps([named, row["device"]["kind"], count, row["cores"]], sort_keys=True)


def find_failures(rows: list[dict]) -> list[dict]:
    """Returns the rows of failed cases whose work no later row measures."""
    return [row for row in {make_key(row): row for row in rows}.values() if "error" in row]


def make_flag_table(flagged: list[dict], failed: list[dict]) -> Table:
    """Returns a table with a row for each set of flags of XLA, below the row without flags of the same work."""
    lines = []
    for base in (row for row in flagged if row["xla_flags"] == NO_FLAGS):
        group = [row for row in flagged if identify(row, "xla_flags") == identify(base, "xla_flags")]
        for row in group:
            change = row["images_per_second"]["median"] / base["images_per_second"]["median"] - 1
            cells = format_row(row)
            lines.append((row["xla_flags"], row["what"], cells[3], f"{change:+.1%}", cells[6]))
    lines += [(row["xla_flags"], row["what"], row["error"], "", "") for row in failed if row.get("xla_flags")]
    return Table(("flags", "what", "images/s (quartiles)", "change", "compile s"), lines)


def describe(rows: list[dict]) -> list[str]:
    """Describes the results: number of cases, devices, dates, versions and commits."""
    devices = sorted({f"{row['device']['kind']} ({row['cores']} CPU cores)" for row in rows})
    versions = sorted({f"{name} {version}" for row in rows for name, version in row["versions"].items()})
    dates = sorted(row["created"][:10] for row in rows)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    commits = sorted({row["commit"] or "unknown" for row in rows})
    return [
        f"{len(rows)} cases on {'; '.join(devices)}, {when}. Medians with quartiles, without compile time.",
        f"{', '.join(versions)}. Commits: {', '.join(commits)}. Made by experiments/benchmark.py.",
    ]


def warn(rows: list[dict]) -> str:
    """Returns a warning if the machine was busy when a case started, otherwise an empty string."""
    busy = [row for row in rows if row["load"] > row["cores"] / 2]
    if not busy:
        return ""
    return f"{len(busy)} of {len(rows)} cases started while the machine did other work: they are provisional."


def make_ratio_table(compared: list[dict], rows: list[dict]) -> Table:
    """Returns a table with a row for each case with peers: the speed of each framework, and the ratio."""
    names = list(dict.fromkeys(row["framework"] for row in rows if row["framework"] != "pneumojax"))
    lines = []
    for row in compared:
        group = {
            other["framework"]: other for other in rows if identify(other, "framework") == identify(row, "framework")
        }
        speeds = [format_speed(group.get(name)) for name in ("pneumojax", *names)]
        first = f"{row['first_ratio']:.2f}" if "first_ratio" in row else ""
        lines.append((f"{row['what']}: {format_row(row)[2]}", *speeds, f"{row['ratio']:.2f}", first))
    return Table(("images/s of", "pneumojax", *names, "ratio", "ratio, first epoch"), lines)


def format_speed(row: dict | None) -> str:
    """Formats the median images/s of a row, such as "33.1". Without a row, the text is empty."""
    return f"{row['images_per_second']['median']:,.1f}" if row else ""


def group_varied(rows: Iterable[dict], varied: str, fewest: int) -> dict[str, list[tuple[float, dict]]]:
    """Groups rows that differ in one parameter only.

    Args:
      rows: rows of results.
      varied: the parameter in which they differ, a key of VARIED.
      fewest: groups with fewer values than this are left out.

    Returns:
      {group: [(value, row), ...]}, sorted by the value.
    """
    read = VARIED[varied][1]
    groups: dict[str, list[tuple[float, dict]]] = {}
    for row in rows:
        if read(row) is not None:
            groups.setdefault(identify(row, varied), []).append((read(row), row))
    groups = {name: sorted(group, key=lambda pair: pair[0]) for name, group in groups.items()}
    return {name: group for name, group in groups.items() if len({value for value, _ in group}) >= fewest}


def name_group(row: dict, varied: str) -> str:
    """Describes the parameters that all rows of a group share, for a legend."""
    parts = [row["framework"], row["model"]]
    parts += [f"{row['image_px']} px"] if varied != "image_px" else []
    parts += [f"batch {row['batch_size']}"] if varied != "batch_size" else []
    parts += [row["dtype"]] if row["dtype"] != "float32" else []
    parts += [f"{name} {value}" for name, value in row["fields"].items() if name != varied]
    parts += [f"{row['device']['count']} devices"] if varied != "devices" and row["device"]["count"] > 1 else []
    return ", ".join(parts)


def draw_speeds(results: pathlib.Path, rows: list[dict]) -> list[Picture]:
    """Plots images/s for each kind of work and each parameter that varies."""
    pictures = []
    for what in ("step", "predict", "epoch"):
        for varied, (label, _) in VARIED.items():
            groups = group_varied([row for row in rows if row["what"] == what], varied, 2)
            curves = {
                name_group(group[0][1], varied): [{"x": value, **row["images_per_second"]} for value, row in group]
                for group in groups.values()
            }
            if curves:
                path = results.with_name(f"{what}_{varied}.png")
                title = f"{what.capitalize()}: images/s by {label[0].lower()}{label[1:]}"
                save_speeds(path, curves, label, title, ideal=varied in ("devices", "replicas"))
                pictures.append(load_picture(path, title))
    return pictures


def draw_roofline(results: pathlib.Path, rows: list[dict]) -> Picture | None:
    """Plots the roofline of all steps and predictions whose FLOP and bytes are known."""
    from pneumojax.training.chips import CHIPS

    points, roofs = [], {}
    for row in rows:
        if row["what"] not in ("step", "predict") or not row.get("flops_per_step") or not row.get("bytes_per_step"):
            continue
        flops = row["flops_per_step"] / row["device"]["count"]
        rate = row["images_per_second"]["median"] / row["batch_size"]
        name = f"{row['what']} {name_group(row, '').removeprefix('pneumojax, ')}"
        points.append({"name": name, "intensity": flops / row["bytes_per_step"], "flops": flops * rate})
        chip = CHIPS.get(row["device"]["kind"])
        if chip and row["dtype"] in chip.flops:
            roofs[f"{row['device']['kind']}, {row['dtype']}"] = (chip.flops[row["dtype"]], chip.bytes_per_second)
    if not points:
        return None
    path = results.with_name("roofline.png")
    save_roofline(path, points, roofs)
    return load_picture(path, "Roofline")


def compute_growth(rows: list[dict]) -> list[dict]:
    """Fits a power law to the time as a function of one parameter: seconds ~ parameter ** power.

    The rows are grouped so that the rows of a group differ in one parameter only. Groups with fewer than three values
    of this parameter are left out.

    Returns:
      A dict for each group: {"varied": name of the parameter, a key of VARIED; "group": description of the group;
      "values": values of the parameter; "seconds": median time for each value; "power"}.
    """
    growth = []
    for varied in VARIED:
        for group in group_varied(rows, varied, 3).values():
            values, seconds = zip(*((value, row["seconds"]["median"]) for value, row in group), strict=True)
            power = np.polyfit(np.log(values), np.log(seconds), 1)[0]
            row = group[0][1]
            name = f"{row['what']}, {name_group(row, varied)}"
            growth.append({"varied": varied, "group": name, "values": values, "seconds": seconds, "power": power})
    return growth


def make_growth_table(growth: list[dict]) -> Table:
    """Returns a table with a row for each group of `compute_growth`."""

    def join(numbers: list[float]) -> str:
        return ", ".join(f"{number:.3g}" for number in numbers)

    lines = [
        (VARIED[one["varied"]][0], one["group"], join(one["values"]), join(one["seconds"]), f"{one['power']:.2f}")
        for one in growth
    ]
    return Table(("varied", "work", "values", "seconds", "power"), lines)
