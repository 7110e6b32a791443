"""What speedrun.py measured: summarised over the seeds, as lines of text, and of all commands as a page of Markdown."""

import math
import statistics

from pneumojax.config import Config, config_to_dict


def is_of(row: dict, same: dict) -> bool:
    """Whether a row is of this command at this commit, or of that of another row."""
    return all(row[name] == same[name] for name in ("commit", "command"))


def find_trainings(rows: list[dict], same: dict) -> list[dict]:
    """The trainings of a command at a commit; of a seed that was timed twice the last one."""
    those = {row["seed"]: row for row in rows if row["what"] == "training" and is_of(row, same)}
    return sorted(those.values(), key=lambda row: row["seed"])


def summarise(trainings: list[dict], target: float) -> dict:
    """The figures of all trainings of a command.

    Args:
      trainings: rows of `Racer.time`, at least two.
      target: AUROC to be reached.

    Returns:
      {"seconds", "cpu_seconds", "auroc"}: of each {"mean", "deviation", "low", "high"}: of the sample, and its
      extremes; "auroc_interval": of the mean, see `compute_interval`; "reached": how many have the target;
      "images_per_second" and "evaluation_seconds": medians; "seeds", "target", "images".
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
    """The 95 % interval of the mean of at least two values, by Student's t: for other seeds, not for other images."""
    from scipy.special import stdtrit  # JAX does not go without scipy.

    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


def format_training(row: dict) -> str:
    """A line of progress."""
    times = f"{row['seconds']:.3f} s ({row['cpu_seconds']:.3f} s of CPU)"
    return f"seed {row['seed']}: {times}, AUROC {row['auroc']:.4f}, scored in {row['evaluation_seconds']:.3f} s"


def format_summary(row: dict) -> str:
    """All that the row of a command says, in lines."""
    auroc, seconds, cpu = row["auroc"], row["seconds"], row["cpu_seconds"]
    low, high = row["auroc_interval"]
    reaches = "reaches" if auroc["mean"] >= row["target"] else "does not reach"
    device, versions = row["device"], ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return "\n".join(
        (
            f"Validation AUROC {auroc['mean']:.4f} ± {auroc['deviation']:.4f} over {len(row['seeds'])} seeds "
            f"({auroc['low']:.4f} to {auroc['high']:.4f}); 95 % interval of the mean {low:.4f} to {high:.4f} "
            f"(t, over seeds). The mean {reaches} {row['target']:g}; {row['reached']} of {len(row['seeds'])} seeds do.",
            f"Seconds {_format_seconds(seconds)} ({seconds['low']:.3f} to {seconds['high']:.3f}), of CPU "
            f"{_format_seconds(cpu)}; {row['images_per_second']:,.0f} images/s.",
            f"With compilation, from an empty compile cache: {row['seconds_with_compilation']:.2f} s, "
            f"{row['compile_seconds']:.2f} s of it for the steps. Warm-up: that training, of another seed.",
            f"Outside of the clock: validation, {row['evaluation_seconds']:.3f} s each time.",
            f"{device['count']} x {device['kind']}, {row['cores']} cores, load at the start {row['load']:.1f}; "
            f"{versions}; commit {row['commit']}.",
            f"Command: {row['command']}",
        )
    )


def format_page(rows: list[dict]) -> str:
    """The table of all commands as Markdown.

    Args:
      rows: of the results file. Of commands with the same fields on the same device the last one counts. The first
        command of a network on a device is what its others are compared with, seed by seed.
    """
    races, bases = {}, {}
    for row in rows:
        if row["what"] == "speedrun":
            races[str((row["fields"], row["device"]))] = row
    for row in races.values():
        bases.setdefault(_find_class(row), row)
    lines = [
        "# Speedrun",
        "",
        "Whole trainings of fixed length; the clock starts when the decoded cache is opened and stops when the weights "
        "are ready on the device. Warm-up: one discarded training of another seed. Mean ± standard deviation over the "
        "seeds; intervals are t-intervals of means over seeds. AUROC is of validation, where presets were tuned: it "
        "is optimistic. A network's first row has all its fields, the others what they change; difference: AUROC "
        "less that of the first row, seed by seed. Reached: how many seeds have the target, 0.99 unless a command says "
        "otherwise. Seconds under load mean little. Made by experiments/speedrun.py.",
        "",
        "| fields | seeds | AUROC | difference | reached | seconds | CPU seconds | with compilation | images/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in races.values():
        auroc, (low, high), base = row["auroc"], row["auroc_interval"], bases[_find_class(row)]
        lines.append(
            f"| {_format_fields(row, base)} | {_format_seeds(row['seeds'])} "
            f"| {auroc['mean']:.4f} ± {auroc['deviation']:.4f} ({low:.4f} to {high:.4f}) "
            f"| {_format_difference(rows, row, base)} | {row['reached']} of {len(row['seeds'])} "
            f"| {_format_seconds(row['seconds'])} | {_format_seconds(row['cpu_seconds'])} "
            f"| {row['seconds_with_compilation']:.1f} | {row['images_per_second']:,.0f} |"
        )
    lines += ["", "Commands, devices and loads, in this order:", ""]
    for row in races.values():
        device = f"{row['device']['count']} x {row['device']['kind']}, {row['cores']} cores, load {row['load']:.1f}"
        lines.append(f"- `{row['command']}`: {device}, jax {row['versions']['jax']}, commit {row['commit']}")
    return "\n".join(lines) + "\n"


def _format_fields(row: dict, base: dict) -> str:
    """All fields of a first row; of another those that are not the first's."""
    fields, defaults = row["fields"], config_to_dict(Config())
    if row is not base:
        names = [name for name in base["fields"] | fields if base["fields"].get(name) != fields.get(name)]
        fields = {name: fields.get(name, defaults[name]) for name in names}
    words = (f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in fields.items())
    return ", ".join(words)


def _find_class(row: dict) -> str:
    return str((row["fields"].get("model"), row["device"]))


def _format_seconds(spread: dict) -> str:
    digits = 3 if spread["mean"] < 1 else 2
    return f"{spread['mean']:.{digits}f} ± {spread['deviation']:.{digits}f}"


def _format_seeds(seeds: list[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if seeds[-1] - seeds[0] == len(seeds) - 1 else ", ".join(map(str, seeds))


def _format_difference(rows: list[dict], row: dict, base: dict) -> str:
    """The mean difference over the seeds of both, with its interval."""
    if row is base:
        return ""
    ours, theirs = ({one["seed"]: one["auroc"] for one in find_trainings(rows, of)} for of in (row, base))
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if len(differences) < 2:
        return ""
    low, high = compute_interval(differences)
    return f"{statistics.fmean(differences):+.4f} ({low:+.4f} to {high:+.4f}), {len(differences)} seeds"
