"""Saves and restores the checkpoints of a run. A checkpoint contains everything that is needed to open the run.

Layout of a workdir:
    config.json            the run: config, class names, pixel range, data fingerprints, versions, device
    metrics.jsonl          one row of JSON for each chunk and each validation; learning_curves.png shows them
    gate.npz               after predict.py or gate.py: what flags unsuitable images
    threshold.json         the threshold, chosen on the selection split
    calibration.json       the temperature and the biases of the classes, fitted on the selection split
    backbone.safetensors   only after pretraining: the weights from which train.py can start
    checkpoints/STEP/      Orbax: `state` (arrays in nested dicts), its `checksum`, `run` (as config.json), metrics
    evaluation/SPLIT/      the files of an evaluation

The workdir of a run with several replicas has no checkpoints. Its metrics.jsonl and learning_curves.png show the mean
of the replicas:
    replica_R/             the workdir of replica R, as above
    replica_R/diverged.json    only if the loss of the replica is no longer finite: the reason and the step
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import preservation_policy

from pneumojax.config import config_fields, config_from_dict, config_to_dict
from pneumojax.errors import Diverged, UserError
from pneumojax.sharding import is_lost_process, put
from pneumojax.state import TrainState

# How often reading is tried again if a training removes the checkpoint that is being read.
READS = 5


@contextlib.contextmanager
def open_checkpoints(
    workdir: pathlib.Path, read_only: bool = False, keep_latest: int = 1
) -> Iterator[ocp.CheckpointManager]:
    """Opens the checkpoints of a run. The latest one and the best one by score are kept.

    Checkpoints are saved in the background while the training continues.

    Args:
      workdir: folder of the run.
      read_only: write nothing and make no folder.
      keep_latest: how many of the latest checkpoints are kept.

    Yields:
      The checkpoint manager.

    Raises:
      UserError: a checkpoint is damaged, or (at the end of the `with` block) a checkpoint could not be written.
    """
    keep = [
        preservation_policy.LatestN(keep_latest),
        preservation_policy.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
    ]
    options = ocp.CheckpointManagerOptions(
        # max_to_keep with best_fn would delete the newest step when it is not among the best.
        preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
        best_fn=_score,  # The policy does not use it, but Orbax writes the metrics only if it is set.
        cleanup_tmp_directories=not read_only,  # Removes incomplete files of a process that was killed.
        create=not read_only,
        read_only=read_only,
        # Otherwise, if a folder cannot be created in the background, threads wait for it 20 minutes, even at exit.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with _sentences(_directory(workdir)):
        checkpoints = ocp.CheckpointManager(
            _directory(workdir), options=options, item_names=("state", "checksum", "run")
        )
    logging.getLogger("absl").addFilter(_is_not_raised)
    waits = True
    with _hide_closed_loop():
        try:
            yield checkpoints
        except Exception as error:
            # A lost process would never finish its part of an ongoing save, and JAX would abort.
            waits = not is_lost_process(error)
            raise
        finally:
            if waits:
                with _sentences(checkpoints.directory, "written"):
                    checkpoints.close()


def save_checkpoint(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    run: dict,
    auroc: float | None,
    score: float | None = None,
) -> None:
    """Starts to save a state. The files get their final name only when they are complete.

    Args:
      checkpoints: from `open_checkpoints`.
      step: the state's step.
      state: the state to save.
      run: content of config.json.
      auroc: val/auroc of this state; None if it was not validated. Its checkpoint is then never the best.
      score: the best checkpoint is the one with the largest score; None: the score is the AUROC.

    Raises:
      UserError: this checkpoint or the previous one could not be written.
      Diverged: the state contains NaN or infinite numbers.
    """
    arrays = _to_dict(state)
    on_host = jax.device_get(arrays)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(on_host)):
        # The update can be infinite although the loss is finite. After the last step, no later loss would show this.
        raise Diverged(
            f"the weights are not finite at step {step}. The last good checkpoint is kept in {checkpoints.directory}; "
            "a lower --learning_rate in another --workdir usually helps."
        )
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(arrays),
        checksum=ocp.args.JsonSave({"sha256": _compute_checksum(on_host)}),
        run=ocp.args.JsonSave(run),
    )
    metrics = None if auroc is None else {"val/auroc": auroc, "score": auroc if score is None else score}
    with _sentences(checkpoints.directory, "written"):
        checkpoints.save(step, args=items, metrics=metrics, force=True)


def wait_for_checkpoints(checkpoints: ocp.CheckpointManager) -> None:
    """Waits until all checkpoints are on disk.

    Raises:
      UserError: one could not be written.
    """
    with _sentences(checkpoints.directory, "written"):
        checkpoints.wait_until_finished()


def find_best(checkpoints: ocp.CheckpointManager) -> tuple[int, float] | None:
    """Returns (step, val/auroc) of the best checkpoint, or None before the first validation.

    If several have the same score, the latest of them is the best.
    """
    metrics = {step: saved for step in checkpoints.all_steps() if (saved := checkpoints.metrics(step))}
    best = max(metrics, key=lambda step: (_score(metrics[step]), step), default=None)
    return None if best is None else (best, metrics[best]["val/auroc"])


def restore_state(checkpoints: ocp.CheckpointManager, step: int, fresh: TrainState, mesh: Mesh) -> TrainState:
    """Restores a state, replicated over the mesh. It may have been saved from other devices.

    Args:
      checkpoints: from `open_checkpoints`.
      step: the step of the checkpoint.
      fresh: the initial state of the same run. It defines the tree structure, shapes and dtypes.
      mesh: the devices.

    Returns:
      The state.

    Raises:
      UserError: the checkpoint is damaged or belongs to another network.
    """
    with _sentences(checkpoints.directory / str(step)):
        saved = _load_arrays(checkpoints, step)
        wanted = _to_dict(fresh)
        check_shapes(saved, wanted)
        restored = serialization.from_state_dict(wanted, saved)
        opt_state = serialization.from_state_dict(fresh.opt_state, restored["opt_state"])
        state = TrainState(**restored | {"opt_state": opt_state})
    return jax.tree.map(lambda leaf: put(leaf, mesh), state)


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Returns whether a run has saved a state that it can resume from."""
    return find_latest_step(workdir) is not None


def find_latest_step(workdir: pathlib.Path) -> int | None:
    """Returns the step of a run's latest checkpoint, or None if it has none."""
    return max(map(int, _list_steps(workdir)), default=None)


def load_run(workdir: pathlib.Path, which: str) -> tuple[dict, dict, int]:
    """Loads a run to predict with it. Only the workdir is needed.

    If a training removes the checkpoint while it is being read, the new best or latest one is loaded instead.

    Args:
      workdir: folder of the run.
      which: best (by score, see `save_checkpoint`) or latest.

    Returns:
      (run, variables, step): the checkpoint's copy of config.json, {"params", "batch_stats"} as numpy arrays (the
      moving averages if the run has them), and the step.

    Raises:
      UserError: there is no such run, or its checkpoint is damaged.
    """
    if not _directory(workdir).is_dir():
        raise UserError(
            f"{workdir} holds no checkpoints. Train a run there first: experiments/train.py --workdir={workdir}"
        )
    for attempt in range(READS):
        before = _list_steps(workdir)
        try:
            run, variables, step = _load_run(workdir, which)
            break
        except UserError:
            time.sleep(0.1)  # The removal of a checkpoint is not atomic. Wait until it is complete.
            if _list_steps(workdir) == before or attempt + 1 == READS:
                raise
    if run.get("trains") == "backbone":
        raise UserError(
            f"{workdir} holds a backbone without a classifier. Train one on it first: "
            f"experiments/train.py --pretrained={workdir / 'backbone.safetensors'}"
        )
    return run, variables, step


def _load_run(workdir: pathlib.Path, which: str) -> tuple[dict, dict, int]:
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        with _sentences(checkpoints.directory):
            best = find_best(checkpoints)
        step = best[0] if which == "best" and best else checkpoints.latest_step()
        if step is None:
            raise UserError(f"{workdir} holds no finished checkpoint yet. Resume it with the same training command.")
        with _sentences(checkpoints.directory / str(step)):
            run = checkpoints.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            saved = _load_arrays(checkpoints, step)
            variables = saved.get("ema") or {"params": saved["params"], "batch_stats": saved.get("batch_stats", {})}
            run["config"], run["class_names"], run["data"]["fingerprints"]["train"]
    return run, variables, step


def _list_steps(workdir: pathlib.Path) -> set[str]:
    directory = _directory(workdir)
    return {path.name for path in directory.iterdir() if path.name.isdigit()} if directory.is_dir() else set()


def find_replicas(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of a run's replicas, in order. A run without replicas has none."""
    folders = workdir.glob("replica_*/config.json")
    return sorted((path.parent for path in folders), key=lambda folder: (len(folder.name), folder.name))


def read_run(path: pathlib.Path) -> dict:
    """Reads config.json.

    Raises:
      UserError: the file is damaged, or another program wrote it.
    """
    try:
        run = json.loads(path.read_text())
        config_from_dict(run["config"])
        run["data"]["fingerprint"], run["class_names"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(
            f"{path} is damaged or not of a run of pneumojax ({error!r}). Use another --workdir, or delete that folder."
        ) from error
    return run


def check_same_run(path: pathlib.Path, run: dict) -> dict:
    """Checks that a run can be resumed: the config, the data and the pretrained weights are the same.

    Args:
      path: config.json of the earlier start.
      run: the description of the run that is to be resumed.

    Returns:
      The content of the earlier config.json.

    Raises:
      UserError: the runs differ. The message names each field that differs, with both values.
    """
    earlier = read_run(path)
    # Fields that did not exist yet when the run started have their defaults.
    old, new = config_to_dict(config_from_dict(earlier["config"])), run["config"]
    fields = [field.name for field in config_fields() if field.metadata["identity"]]
    differing = [f"{name} was {old[name]}, is {new[name]}" for name in fields if old[name] != new[name]]
    if earlier["data"]["fingerprint"] != run["data"]["fingerprint"]:
        differing.append(f"the data was {earlier['data']['fingerprint']}, is {run['data']['fingerprint']}")
    kinds = [one.get("trains", "classifier") for one in (earlier, run)]
    if kinds[0] != kinds[1]:
        differing.append(f"it trained a {kinds[0]}, this one a {kinds[1]}")
    weights = [one.get("pretrained_sha256") for one in (earlier, run)]
    if all(weights) and weights[0] != weights[1]:
        differing.append(f"the content of {new['pretrained']} was {weights[0]}, is {weights[1]}")
    if differing:
        raise UserError(
            f"{path.parent} holds a run of another config: {'; '.join(differing)}. "
            "Use another --workdir, or the earlier values, or start again with --restart (which deletes the old run)."
        )
    return earlier


def _directory(workdir: pathlib.Path) -> pathlib.Path:
    return workdir.resolve() / "checkpoints"  # Orbax raises on relative paths.


def _score(metrics: dict[str, float]) -> float:
    return metrics.get("score", metrics["val/auroc"])  # Older checkpoints were chosen by their AUROC and have no score.


def _to_dict(state: TrainState) -> dict[str, Any]:
    """Returns a state as nested dicts with string keys."""
    fields = {name: getattr(state, name) for name in ("step", "params", "batch_stats", "opt_state", "ema")}
    return serialization.to_state_dict(fields)


def _load_arrays(checkpoints: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Loads the arrays of a checkpoint as numpy arrays and verifies their checksum."""
    reader = ocp.PyTreeCheckpointer()
    directory = checkpoints.directory / str(step) / "state"
    tree = reader.metadata(directory).item_metadata.tree
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with _hide_closed_loop():
        arrays = reader.restore(directory, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    saved = checkpoints.restore(step, args=ocp.args.Composite(checksum=ocp.args.JsonRestore()))["checksum"]["sha256"]
    if _compute_checksum(arrays) != saved:
        raise ValueError("its arrays are not those that were saved")
    return arrays


def _is_not_raised(entry: logging.LogRecord) -> bool:
    """Hides tracebacks of Orbax's background thread. Orbax raises the same errors again at its next call."""
    return not (entry.exc_info and "orbax" in entry.pathname)


@contextlib.contextmanager
def _hide_closed_loop() -> Iterator[None]:
    """Hides the tracebacks of ongoing reads and writes that Orbax abandons because another one has failed."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda event: "Event loop is closed" in str(event.exc_value) or hook(event)
    try:
        yield
    except Exception:
        time.sleep(0.2)  # Wait until the ongoing reads and writes have ended.
        raise
    finally:
        sys.unraisablehook = hook


def _compute_checksum(arrays: dict[str, Any]) -> str:
    """Computes the sha256 of the names and contents of all arrays. Orbax does not detect a flipped bit by itself."""
    checksum = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        checksum.update(jax.tree_util.keystr(path, simple=True, separator="/").encode())
        checksum.update(np.asarray(leaf).tobytes())
    return checksum.hexdigest()


def check_shapes(saved: dict, wanted: dict) -> None:
    """Checks that two trees have the same arrays.

    Raises:
      ValueError: an array is missing or has another shape. The message names the first one.
    """
    saved_shapes, wanted_shapes = _shapes(saved), _shapes(wanted)
    for name in sorted(saved_shapes.keys() | wanted_shapes.keys()):
        if saved_shapes.get(name) != wanted_shapes.get(name):
            raise ValueError(f"{name} has shape {saved_shapes.get(name)}, the network needs {wanted_shapes.get(name)}")


def _shapes(tree: dict) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


@contextlib.contextmanager
def _sentences(directory: os.PathLike, action: str = "opened") -> Iterator[None]:
    """Converts the many types of errors that Orbax raises into a UserError."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        advice = (
            "It is damaged or not of this run. Delete the folder of that step to resume from the one before it, "
            "or train with --restart."
            if action == "opened"
            else "The checkpoints before it are kept. Free disk space there and start the same command again to resume."
        )
        raise UserError(f"the checkpoint in {directory} cannot be {action} ({reason}). {advice}") from error
