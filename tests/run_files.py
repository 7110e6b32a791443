"""Compares the workdirs of two trainings, and stops a training at a step."""

import json
import os
import signal

import jax
import numpy as np

from pneumojax import checkpoint


def read_rows(workdir):
    """Reads metrics.jsonl without the speeds, which differ between runs."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]


def load_latest(workdir):
    """Reads all arrays of the latest checkpoint."""
    with checkpoint.open_checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoint._load_arrays(checkpoints, checkpoints.latest_step())


def assert_same_run(ours, theirs):
    """Asserts that two runs have bitwise equal state, rows and threshold."""
    left, right = (jax.tree_util.tree_leaves_with_path(load_latest(workdir)) for workdir in (ours, theirs))
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, mine), (_, other) in zip(left, right, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg=jax.tree_util.keystr(path))
    assert read_rows(ours) == read_rows(theirs)
    mine, other = (json.loads((workdir / "threshold.json").read_text()) for workdir in (ours, theirs))
    assert mine["value"] == other["value"]


def list_files(workdir):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in workdir.rglob("*")}


def stop_at(step, number=signal.SIGTERM):
    """Makes a report that sends this process a signal once, when the row of `step` is written."""
    sent = []

    def report(row, total_steps):
        if row["step"] == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)

    return report
