"""Manages the folder of a run: locks it, checks its config.json, and restores or deletes an earlier run."""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import pathlib
import platform
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from pneumojax import preprocessing
from pneumojax.checkpoint import check_same_run, find_replicas, read_run, restore_state
from pneumojax.config import CLASS_NAMES, Config, config_to_dict
from pneumojax.data.dataset import ensure_prepared
from pneumojax.errors import UserError
from pneumojax.files import compute_sha256, read_rows, truncate_rows, write_json
from pneumojax.state import TrainState
from pneumojax.training.interrupts import max_over_processes

logger = logging.getLogger(__name__)

VERSIONED = ("pneumojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# The files that --restart deletes. config.json is last, so that the folder is still recognised as a run of this program
# if the deletion is interrupted.
RUN_FILES = (
    "checkpoints",
    "evaluation",
    "backbone.safetensors",
    "metrics.jsonl",
    "learning_curves.png",
    "threshold.json",
    "calibration.json",
    "gate.npz",
    "config.json",
)


def describe_run(config: Config) -> dict[str, Any]:
    """Returns the content of config.json. Each checkpoint has a copy, so that it can be opened without the workdir."""
    metadata = ensure_prepared(config.data)
    devices = jax.devices()
    return {
        "config": config_to_dict(config),
        "pretrained_sha256": compute_sha256(config.model.pretrained) if config.model.pretrained else None,
        "class_names": list(CLASS_NAMES[config.model.task]),
        "image_px": config.data.image_px,
        "pixels": {
            "dtype": "uint8",
            "range": [0, 255],
            "mean": preprocessing.PIXEL_MEAN,
            "std": preprocessing.PIXEL_STD,
        },
        "data": {name: metadata.get(name) for name in ("fingerprint", "fingerprints", "source", "synthetic", "counts")},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONED},
        "device": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@contextlib.contextmanager
def hold_workdir(workdir: pathlib.Path, run: dict[str, Any], restart: bool) -> Iterator[None]:
    """Creates or checks the workdir, and locks it against other trainings while the context is open.

    Args:
      workdir: folder of the run.
      run: content of config.json.
      restart: delete the files that an earlier run left in the workdir.

    Raises:
      UserError: another training uses the workdir, it holds another run or files of another program, or the processes
        of a multihost run were started with different configs or data.
    """
    _check_same_start(run)
    with contextlib.ExitStack() as stack:
        refusal: Exception | None = None
        if jax.process_index() == 0:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((workdir / ".lock").open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _prepare_workdir(workdir, run, restart)
            except BlockingIOError:
                refusal = UserError(f"another training is running in {workdir}. Wait for it, or use another --workdir.")
            except FileExistsError:
                refusal = UserError(f"{workdir} is a file, not a folder. Use another --workdir.")
            except (UserError, OSError) as error:
                refusal = error
        # Every process must learn of the error. Otherwise the others would wait for process 0 forever.
        refused = max_over_processes(int(refusal is not None))
        if refusal:
            raise refusal
        if refused:
            raise UserError("process 0 cannot use the workdir. Its own message says why.")
        yield


def resume(workdir: pathlib.Path, checkpoints: ocp.CheckpointManager, fresh: TrainState, mesh: Mesh) -> TrainState:
    """Restores the latest checkpoint and truncates the log to its step.

    Args:
      workdir: folder of the run.
      checkpoints: from `checkpoint.open_checkpoints`.
      fresh: the initial state of the run.
      mesh: the devices.

    Returns:
      The restored state, or `fresh` if there is no checkpoint.

    Raises:
      UserError: the checkpoint is damaged or belongs to another network.
    """
    step = checkpoints.latest_step()
    truncate_log(workdir, step or 0)
    if step is None:
        return fresh
    logger.info("Resuming from step %d of %s", step, workdir)
    return restore_state(checkpoints, step, fresh, mesh)


def truncate_log(workdir: pathlib.Path, step: int) -> None:
    """Removes the rows after `step` from metrics.jsonl. A log without such rows is not rewritten."""
    log = workdir / "metrics.jsonl"
    if jax.process_index() == 0 and log.exists():
        kept = sum(row["step"] <= step for row in read_rows(log))
        if kept < len(log.read_text().splitlines()):
            truncate_rows(log, step)


def _check_same_start(run: dict[str, Any]) -> None:
    """Raises a UserError if the processes train different runs, whose gradients must not be averaged.

    The paths of the data and of pretrained weights may differ between hosts.
    """
    config = {name: value for name, value in run["config"].items() if name not in ("data_dir", "pretrained")}
    content = json.dumps([config, run["data"]["fingerprint"], run["pretrained_sha256"]], sort_keys=True)
    number = int(hashlib.sha256(content.encode()).hexdigest()[:7], 16)  # 28 bits: JAX's integers have 32.
    if max_over_processes(number) != -max_over_processes(-number):
        raise UserError(
            "multihost: the processes were started with different configs or data. Start each with the same command "
            "on the same data."
        )


def _prepare_workdir(workdir: pathlib.Path, run: dict[str, Any], restart: bool) -> None:
    config = workdir / "config.json"
    if not config.exists():
        if (workdir / "checkpoints").exists():
            raise UserError(
                f"{workdir} holds checkpoints but no config.json, so it is not a run of pneumojax. Use another "
                "--workdir."
            )
    elif restart:
        read_run(config)  # Raises an error if config.json is of another program, before anything is deleted.
        for folder in find_replicas(workdir):
            shutil.rmtree(folder)
        for name in RUN_FILES:
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    else:
        earlier = check_same_run(config, run)
        run["pretrained_sha256"] = earlier.get("pretrained_sha256")  # The file may have been deleted since.
        return
    write_json(config, run)
