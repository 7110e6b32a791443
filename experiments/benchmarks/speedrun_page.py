"""Summarises the results of speedrun.py over the seeds, and formats them as text and as a Markdown page."""

import math
import statistics

from experiments.flags import format_value
from pneumojax.config import Config, config_to_dict
from pneumojax.reporting.format import format_interval
from pneumojax.reporting.tables import Table


def is_of(row: dict, same: dict) -> bool:
    """Returns whether a row was written by a command at a commit.

    Args:
      row: a row of the results file.
      same: {"commit", "command"}, or another row of that command.
    """
    return all(row[name] == same[name] for name in ("commit", "command"))


def find_trainings(rows: list[dict], same: dict) -> list[dict]:
    """Returns the rows of the trainings of a command, sorted by seed. If a seed has several rows, the last is used.

    Args:
      rows: rows of the results file.
      same: as in `is_of`.
    """
    those = {row["seed"]: row for row in rows if row["what"] == "training" and is_of(row, same)}
    return sorted(those.values(), key=lambda row: row["seed"])


def summarise(trainings: list[dict], target: float) -> dict:
    """Summarises the trainings of a command over their seeds.

    Args:
      trainings: results of `Racer.time`, at least two.
      target: AUROC to reach.

    Returns:
      A dict with
        "seconds", "cpu_seconds", "auroc": {"mean", "deviation" (standard deviation), "low", "high" (extremes)} each.
        "auroc_interval": from `compute_interval`.
        "reached": number of seeds that reach the target.
        "images_per_second", "evaluation_seconds": medians.
        "seeds", "target", "images".
    """
    columns = {name: [row[name] for row in trainings] for name in trainings[0]}
    spread = {
        name: {
            "mean": statistics.fmean(columns[name]),
            "deviation": statistics.stdev(columns[name]),
            "low": min(columns[name]),
            "high": max(columns[name]),
        }
        for name in ("seconds", "cpu_seconds", "auroc")
    }
    return {
        "seeds": sorted(columns["seed"]),
        "target": target,
        "reached": sum(auroc >= target for auroc in columns["auroc"]),
        **spread,
        "auroc_interval": compute_interval(columns["auroc"]),
        "images": trainings[0]["images"],
        "images_per_second": statistics.median(row["images"] / row["seconds"] for row in trainings),
        "evaluation_seconds": statistics.median(columns["evaluation_seconds"]),
    }


def compute_interval(values: list[float]) -> list[float]:
    """Returns the 95 % interval of the mean of at least two values, by Student's t.

    The interval describes the variation between seeds, not between samples of images.
    """
    from scipy.special import stdtrit

    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


def format_training(row: dict) -> str:
    """Formats a training as a line of the log."""
    times = f"{row['seconds']:.3f} s ({row['cpu_seconds']:.3f} s of CPU)"
    return f"seed {row['seed']}: {times}, AUROC {row['auroc']:.4f}, evaluated in {row['evaluation_seconds']:.3f} s"


def format_summary(row: dict) -> str:
    """Formats the summary row of a command as lines of text."""
    auroc, seconds, cpu = row["auroc"], row["seconds"], row["cpu_seconds"]
    low, high = row["auroc_interval"]
    reaches = "reaches" if auroc["mean"] >= row["target"] else "does not reach"
    device, versions = row["device"], ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return "\n".join(
        (
            f"Validation AUROC {auroc['mean']:.4f} ± {auroc['deviation']:.4f} over {len(row['seeds'])} seeds "
            f"({auroc['low']:.4f} to {auroc['high']:.4f}); 95 % interval of the mean {low:.4f} to {high:.4f} "
            f"(Student's t, over seeds). The mean {reaches} {row['target']:g}; "
            f"{row['reached']} of {len(row['seeds'])} seeds do.",
            f"Seconds {_format_seconds(seconds)} ({seconds['low']:.3f} to {seconds['high']:.3f}), CPU seconds "
            f"{_format_seconds(cpu)}; {row['images_per_second']:,.0f} images/s.",
            f"The warm-up with another seed, from an empty compile cache, took "
            f"{row['seconds_with_compilation']:.2f} s, {row['compile_seconds']:.2f} s of it to compile the steps.",
            f"Each evaluation on validation took {row['evaluation_seconds']:.3f} s, which is not counted.",
            f"{device['count']} x {device['kind']}, {row['cores']} cores, load at the start {row['load']:.1f}; "
            f"{versions}; commit {row['commit']}.",
            f"Command: {row['command']}",
        )
    )


def format_page(rows: list[dict]) -> str:
    """Formats the results of all commands as a Markdown page.

    Each command is compared, seed by seed, with the first command for the same network on the same device.

    Args:
      rows: rows of the results file. Of several commands with the same fields and device, the last one counts.
    """
    races: dict[str, dict] = {}
    bases: dict[str, dict] = {}
    for row in rows:
        if row["what"] == "speedrun":
            races[str((row["fields"], row["device"]))] = row
    for row in races.values():
        bases.setdefault(_find_class(row), row)
    lines = [
        "# Speedrun",
        "",
        "Each row is a command that trains one network with several seeds, for a fixed number of steps. The time is "
        "measured from the opening of the decoded cache until the weights are ready on the device. A warm-up training "
        "with another seed is discarded. Numbers are mean ± standard deviation over the seeds; intervals are 95 % "
        "t-intervals of the mean. The AUROC is optimistic, because it is measured on validation, on which the presets "
        "were tuned. The first row of a network lists all fields that are not at their default. Its other rows list "
        "the fields that differ from the first row, and the difference in AUROC over the seeds that both rows have. "
        "The column `reached` is the number of seeds that reach the target, which is 0.99 unless the command sets "
        "--target. Times on a busy machine are unreliable. Made by experiments/speedrun.py.",
        "",
    ]
    columns = ("fields", "seeds", "AUROC", "difference", "reached", "seconds", "CPU seconds", "with compilation")
    cells = []
    for row in races.values():
        auroc, base = row["auroc"], bases[_find_class(row)]
        metric = {"value": auroc["mean"], "standard_deviation": auroc["deviation"], "ci95": row["auroc_interval"]}
        cells.append(
            (
                _format_fields(row, base),
                _format_seeds(row["seeds"]),
                format_interval(metric, ".4f"),
                _format_difference(rows, row, base),
                f"{row['reached']} of {len(row['seeds'])}",
                _format_seconds(row["seconds"]),
                _format_seconds(row["cpu_seconds"]),
                f"{row['seconds_with_compilation']:.1f}",
                f"{row['images_per_second']:,.0f}",
            )
        )
    lines.append(Table((*columns, "images/s"), cells).format_markdown())
    lines += ["", "The commands in the same order, with their device and the load of the machine at the start:", ""]
    for row in races.values():
        device = f"{row['device']['count']} x {row['device']['kind']}, {row['cores']} cores, load {row['load']:.1f}"
        lines.append(f"- `{row['command']}`: {device}, jax {row['versions']['jax']}, commit {row['commit']}")
    return "\n".join(lines) + "\n"


def _format_fields(row: dict, base: dict) -> str:
    """Formats all fields of a network's first row, or the fields of a later row that differ from the first row."""
    fields, defaults = row["fields"], config_to_dict(Config())
    if row is not base:
        names = [name for name in base["fields"] | fields if base["fields"].get(name) != fields.get(name)]
        fields = {name: fields.get(name, defaults[name]) for name in names}
    return ", ".join(f"{name}={format_value(value)}" for name, value in fields.items())


def _find_class(row: dict) -> str:
    return str((row["fields"].get("model"), row["device"]))


def _format_seconds(spread: dict) -> str:
    spec = ".3f" if spread["mean"] < 1 else ".2f"
    return format_interval({"value": spread["mean"], "standard_deviation": spread["deviation"], "ci95": None}, spec)


def _format_seeds(seeds: list[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if seeds[-1] - seeds[0] == len(seeds) - 1 else ", ".join(map(str, seeds))


def _format_difference(rows: list[dict], row: dict, base: dict) -> str:
    """Formats the mean difference in AUROC over the seeds that both commands trained, with an interval of the mean."""
    if row is base:
        return ""
    ours, theirs = ({one["seed"]: one["auroc"] for one in find_trainings(rows, of)} for of in (row, base))
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if len(differences) < 2:
        return ""
    mean = {"value": statistics.fmean(differences), "ci95": compute_interval(differences)}
    return f"{format_interval(mean, '+.4f')}, {len(differences)} seeds"
