"""Makes the rows of a results file: the code and the machine that were measured, and the summary of the samples."""

import datetime
import importlib.metadata
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"

# Flags with paths on this machine, or a limit of the time. They do not affect the measured work.
LOCAL_FLAGS = ("peer_python", "results", "minutes", "data_dir")


def find_commit() -> str | None:
    """Returns the commit that is measured, with a plus sign if tracked files were changed; None outside of git.

    Changes in the folder of results are ignored, because the command itself adds rows there.
    """
    git = ["git", "-C", str(ROOT)]
    code = ["--", ".", f":(exclude){RESULTS.relative_to(ROOT)}"]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", *code], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def list_measured_words() -> list[str]:
    """Returns the arguments of this command that determine the measured work: all except --resume and LOCAL_FLAGS."""
    words, measured = iter(sys.argv[1:]), []
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if name in LOCAL_FLAGS:
            if not value:
                next(words, None)  # The value is the next word, as in --results FILE.
        elif name != "resume":
            measured.append(word)
    return measured


def describe_machine() -> dict:
    """Returns {"device": {kind, platform, count}, "versions": {package: version}}."""
    import jax  # Imported here because benchmark.py measures in other processes and does not need JAX itself.

    devices = jax.devices()
    return {
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }


def count_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summarise_samples(samples: list[dict], ready: dict, batch_size: int, first_is_apart: bool) -> dict:
    """Summarises the samples of a case as the measured columns of a row.

    Args:
      samples: {"seconds": float} for each repeat. "images" (number of images), "host_share" (share of the time in
        which the devices waited for the host, 0..1), "auroc" (of validation) and "tests" ({outcome: number of tests})
        are optional.
      ready: the first report of the process: device, versions and costs of the compiled program.
      batch_size: number of images in a step.
      first_is_apart: whether the first repeat is reported separately, for example because it also decodes the files.

    Returns:
      "seconds" and "images_per_second" from `compute_spread`; "repeats", "images", "first_seconds", "host_share",
      "auroc", "tests" and "model_flop_utilisation" if they are known; "created"; and the content of
      `ready` without "peak_flops".
    """
    later = samples[1:] if first_is_apart else samples
    row: dict[str, Any] = {"seconds": compute_spread([sample["seconds"] for sample in later])}
    row |= {"images_per_second": None, "repeats": len(later)}
    if "images" in samples[0]:
        row["images"] = samples[0]["images"]
        row["images_per_second"] = compute_spread([sample["images"] / sample["seconds"] for sample in later])
    if first_is_apart:
        row["first_seconds"] = samples[0]["seconds"]
    for name in ("host_share", "auroc"):
        if name in samples[0]:
            row[name] = statistics.median(sample[name] for sample in samples)
    if "tests" in samples[0]:
        row["tests"] = samples[0]["tests"]
    costs = {name: value for name, value in ready.items() if name != "peak_flops"}
    peak = ready.get("peak_flops")
    if peak and ready.get("flops_per_step") and row["images_per_second"]:
        reached = ready["flops_per_step"] * row["images_per_second"]["median"] / batch_size
        row["model_flop_utilisation"] = reached / (peak * ready["device"]["count"])
    return row | costs | {"created": find_time()}


def find_time() -> str:
    """Returns the time in UTC as text, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def compute_spread(numbers: list[float]) -> dict:
    """Returns {"median", "low", "high"}: the median and the quartiles."""
    if len(numbers) == 1:
        return {"median": numbers[0], "low": numbers[0], "high": numbers[0]}
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def set_ratio(rows: list[dict]) -> None:
    """Adds the column "ratio" to our row: our images/s divided by the images/s of the fastest peer.

    Args:
      rows: our row, followed by the rows of the peers. If they have "first_seconds", our row also gets "first_ratio",
        the same ratio for the first epoch.
    """
    ours, *peers = rows
    if peers:
        speeds = [row["images_per_second"]["median"] for row in peers]
        ours["ratio"] = ours["images_per_second"]["median"] / max(speeds)
        if "first_seconds" in ours:
            rates = [row["images"] / row["first_seconds"] for row in rows]
            ours["first_ratio"] = rates[0] / max(rates[1:])
