"""What a row of results tells beside its figures: which code, which command, which machine."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# Flags that name a place on this machine, which another one does not have.
PLACES = ("peer_python", "results")
RESULTS = ROOT / "experiments" / "results"


def find_commit() -> str | None:
    """The commit that is measured, with a plus where files differ from it, results aside; None outside of git."""
    git = ["git", "-C", str(ROOT)]
    # Rows that were just added are no other code: a command that goes on is to find what it has measured before.
    code = ["--", ".", f":(exclude){RESULTS.relative_to(ROOT)}"]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", *code], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def own_words() -> list[str]:
    """The words of the command that say what is measured: without --resume, and places on this machine."""
    words, own = iter(sys.argv[1:]), []
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if name in PLACES:
            if not value:
                next(words, None)  # --results FILE
        elif name != "resume":
            own.append(word)
    return own


def describe_machine() -> dict:
    """{"device": {kind, platform, count}, "versions": {package: version}}."""
    import jax  # Only here: what starts processes to measure does without.

    devices = jax.devices()
    return {
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
