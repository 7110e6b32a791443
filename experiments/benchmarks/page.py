"""What benchmark.py measured: as a table of text, and, of each case the last, as a page with pictures."""

import json
import pathlib
from collections.abc import Iterable

import numpy as np

from experiments.benchmarks.figures import save_roofline, save_speeds
from pneumojax.files import write_text
from pneumojax.reporting.html import Picture, Section, Table, load_picture, render_page

# What tells rows apart.
COLUMNS = ("what", "framework", "model", "image_px", "batch_size", "dtype", "augment", "devices", "limit", "fields")

# {what is varied: (as a label, how to read it from a row)}
VARIED = {
    "batch_size": ("Batch size", lambda row: row["batch_size"]),
    "image_px": ("Image size in px", lambda row: row["image_px"]),
    "devices": ("Devices", lambda row: row["device"]["count"]),
    "replicas": ("Replicas", lambda row: row["fields"].get("replicas")),
    "limit": ("Images", lambda row: row["limit"]),
}


def format_table(rows: list[dict]) -> str:
    """The rows as text, one line each."""
    table = [HEADINGS, *(format_row(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)
    return "\n".join(lines)


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
)


def format_row(row: dict) -> tuple[str, ...]:
    """The cells of a row under HEADINGS."""
    work = [f"{row['model']} {row['image_px']} px", f"batch {row['batch_size']}", row["dtype"]]
    work = work if row["what"] not in ("load", "cache", "decode") else [f"{row['image_px']} px"]
    work += [f"{row['device']['count']} devices"] if row["device"]["count"] > 1 else []
    work += [f"{row['limit']} files"] if row["limit"] else []
    work += ["no augmentation"] if row["augment"] is False else []
    work += [f"{name} {value}" for name, value in row["fields"].items()]
    speed = row["images_per_second"]
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
    ratio += f" (first epoch {row['first_ratio']:.2f})" if "first_ratio" in row else ""
    return (
        row["what"],
        row["framework"],
        ", ".join(work),
        f"{speed['median']:,.1f} ({speed['low']:,.1f} to {speed['high']:,.1f})" if speed else "",
        f"{row['seconds']['median']:.4g}",
        f"{row['first_seconds']:.4g}" if "first_seconds" in row else "",
        f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "",
        f"{row['model_flop_utilisation']:.1%}" if "model_flop_utilisation" in row else "",
        ratio,
    )


def write_page(results: pathlib.Path, rows: list[dict]) -> pathlib.Path:
    """Writes the page and its pictures beside the results; returns its path."""
    rows = keep_latest(rows)
    sections = []
    if beside := [row for row in rows if "ratio" in row]:
        text = (
            "The same work, all in turn on one machine; images/s of ours as a share of the best of the others. Where "
            "it is above 1, ours is faster.",
        )
        sections.append(Section("Beside PyTorch and Keras", text, [make_ratio_table(beside, rows)]))
    pictures = draw_speeds(results, rows)
    if pictures:
        sections.append(Section("Speed", ("Medians; the bands are quartiles.",), pictures))
    if roofline := draw_roofline(results, rows):
        text = (
            "FLOP as the method asks for them, counted before optimisation; bytes as the compiled program moves them, "
            "on CPU as the program of XLA's own convolutions would. "
            "Under the slope memory decides, under the flat part arithmetic. The roof is drawn for chips of the table "
            "in pneumojax/timing.py.",
        )
        sections.append(Section("Roofline", text, [roofline]))
    if growth := compute_growth(rows):
        text = (
            "Seconds grow as the power of what is varied: 1 is in proportion, 2 with its square. Of a step, the "
            "seconds of a call.",
        )
        sections.append(Section("How cost grows", text, [make_growth_table(growth)]))
    sections.append(Section("All figures", (), [Table(HEADINGS, [format_row(row) for row in rows])]))
    path = results.with_suffix(".html")
    write_text(path, render_page("Benchmarks", describe(rows), sections, warn(rows)))
    return path


def keep_latest(rows: list[dict]) -> list[dict]:
    """Of rows that measure the same on the same kind of device, the last."""
    return list({identify(row): row for row in rows}.values())


def identify(row: dict, without: str | None = None) -> str:
    """Rows with the same text measure the same on the same device, but for one choice."""
    named = {name: row[name] for name in COLUMNS if name != without}
    named["fields"] = {name: value for name, value in row["fields"].items() if name != without}
    count = None if without == "devices" else row["device"]["count"]
    return json.dumps([named, row["device"]["kind"], count, row["cores"]], sort_keys=True)


def describe(rows: list[dict]) -> list[str]:
    """What was measured, on what, when."""
    devices = sorted({f"{row['device']['kind']} ({row['cores']} CPU cores)" for row in rows})
    versions = sorted({f"{name} {version}" for row in rows for name, version in row["versions"].items()})
    dates = sorted(row["created"][:10] for row in rows)
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    commits = sorted({row["commit"] or "unknown" for row in rows})
    return [
        f"{len(rows)} cases on {'; '.join(devices)}, {when}. Medians with quartiles; compile time stands apart.",
        f"{', '.join(versions)}. Commits: {', '.join(commits)}. Made by experiments/benchmark.py.",
    ]


def warn(rows: list[dict]) -> str:
    """A sentence if the machine did other work meanwhile."""
    busy = [row for row in rows if row["load"] > row["cores"] / 2]
    if not busy:
        return ""
    return f"{len(busy)} of {len(rows)} cases began while the machine did other work: their figures are provisional."


def make_ratio_table(beside: list[dict], rows: list[dict]) -> Table:
    """One row for each case that had peers: all their speeds, and the ratio."""
    names = list(dict.fromkeys(row["framework"] for row in rows if row["framework"] != "pneumojax"))
    lines = []
    for row in beside:
        group = {
            other["framework"]: other for other in rows if identify(other, "framework") == identify(row, "framework")
        }
        speeds = [format_speed(group.get(name)) for name in ("pneumojax", *names)]
        first = f"{row['first_ratio']:.2f}" if "first_ratio" in row else ""
        lines.append((f"{row['what']}: {format_row(row)[2]}", *speeds, f"{row['ratio']:.2f}", first))
    return Table(("images/s of", "pneumojax", *names, "ratio", "ratio, first epoch"), lines)


def format_speed(row: dict | None) -> str:
    """As "33.1", or nothing."""
    return f"{row['images_per_second']['median']:,.1f}" if row else ""


def group_varied(rows: Iterable[dict], varied: str, fewest: int) -> dict[str, list[tuple[float, dict]]]:
    """{rows that differ in one choice only: [(its value, row), ...]}, where it takes at least so many values."""
    read = VARIED[varied][1]
    groups = {}
    for row in rows:
        if read(row) is not None:
            groups.setdefault(identify(row, varied), []).append((read(row), row))
    groups = {name: sorted(group, key=lambda pair: pair[0]) for name, group in groups.items()}
    return {name: group for name, group in groups.items() if len({value for value, _ in group}) >= fewest}


def name_group(row: dict, varied: str) -> str:
    """What the rows of a group have in common, for a legend."""
    parts = [row["framework"], row["model"]]
    parts += [f"{row['image_px']} px"] if varied != "image_px" else []
    parts += [f"batch {row['batch_size']}"] if varied != "batch_size" else []
    parts += [row["dtype"]] if row["dtype"] != "float32" else []
    parts += [f"{name} {value}" for name, value in row["fields"].items() if name != varied]
    parts += [f"{row['device']['count']} devices"] if varied != "devices" and row["device"]["count"] > 1 else []
    return ", ".join(parts)


def draw_speeds(results: pathlib.Path, rows: list[dict]) -> list[Picture]:
    """A picture for each choice that was varied and each kind of work, of images/s."""
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
    """The roofline of all steps and predictions whose FLOP and bytes are known."""
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
    """{"varied", "group", "values", "seconds", "power"} of rows that differ in one choice of three values or more."""
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
    """One row for each thing that was varied."""

    def join(numbers):
        return ", ".join(f"{number:.3g}" for number in numbers)

    lines = [
        (VARIED[one["varied"]][0], one["group"], join(one["values"]), join(one["seconds"]), f"{one['power']:.2f}")
        for one in growth
    ]
    return Table(("varied", "work", "values", "seconds", "power"), lines)
