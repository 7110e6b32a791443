"""The commands that the fault tests interrupt: how each is started, and how its result is read."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable

import forked
import jax
import numpy as np

from pneumojax import checkpoint
from pneumojax.files import read_rows
from tfds_builder import kermany_pneumonia

TINY = ("--image_px=32", "--cnn_widths=4,8", "--batch_size=16", "--chunk_steps=2", "--epochs=3")
SPACE = "[learning_rate]\nlow = 1e-4\nhigh = 1e-2\nlog = true\n"

# Entries of JSON files and columns of tables that differ between two runs of the same command.
TIMES = {"created", "date", "seconds", "images_per_second"}

# A search resumes a trial after its process has sent no heartbeat for this time.
GRACE_SECONDS = 2


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that the tests interrupt.

    Attributes:
      script: path of the script in the project.
      arguments: `arguments(folder) -> list of flags`. The data set is in folder / "data", the rest in folder / "run".
      prepared: whether the data set exists before.
      trained: whether a finished run exists before.
      pause: seconds to wait before a killed command is started again.
    """

    script: str
    arguments: Callable[[pathlib.Path], list[str]]
    prepared: bool = True
    trained: bool = False
    pause: float = 0.0


def _train(*flags: str) -> Callable[[pathlib.Path], list[str]]:
    return lambda folder: [f"--data_dir={folder / 'data'}", f"--workdir={folder / 'run'}", *TINY, *flags]


COMMANDS = {
    "prepare": Command(
        "scripts/prepare_data.py", lambda folder: ["--dataset=phantom", f"--data_dir={folder / 'data'}"], prepared=False
    ),
    "train": Command("experiments/train.py", _train()),
    "train --replicas=2": Command("experiments/train.py", _train("--replicas=2")),
    "train --loader=stream": Command("experiments/train.py", _train("--loader=stream")),
    "evaluate": Command(
        "experiments/evaluate.py",
        lambda folder: [f"--data_dir={folder / 'data'}", f"--workdir={folder / 'run'}", "--split=test"],
        trained=True,
    ),
    "tune": Command(
        "experiments/tune.py",
        lambda folder: [*_train("--model=mlp", "--mlp_widths=8")(folder), f"--space={folder / 'space'}", "--trials=4"],
        pause=0.0,
    ),
    # The rows of results have speeds, and files with the suffix .db are compared by name only.
    "benchmark --what=train": Command(
        "experiments/benchmark.py",
        lambda folder: [
            "--what=train",
            "--model=cnn",
            "--resume",
            f"--data_dir={folder / 'data'}",
            f"--results={folder / 'rows.db'}",
            *TINY,
        ],
    ),
    "reproduce": Command(
        "experiments/reproduce.py",
        lambda folder: ["--quick", "--systems=a1", f"--data_dir={folder / 'data'}", f"--workdir={folder / 'run'}"],
    ),
}


def make_folder(command: Command, folder: pathlib.Path, data_dir: pathlib.Path, trained: pathlib.Path) -> None:
    """Makes the folder that a command starts from.

    Args:
      command: the command.
      folder: the folder to make.
      data_dir: a prepared data set. Its cache of decoded images is not copied, so each command writes its own.
      trained: a finished run.
    """
    folder.mkdir()
    (folder / "space").write_text(SPACE)
    if command.prepared:
        shutil.copytree(data_dir, folder / "data", ignore=shutil.ignore_patterns("decoded"))
    if command.trained:
        shutil.copytree(trained, folder / "run")


def start(processes, command: Command, folder: pathlib.Path, number: int = 0, **environment: str):
    """Starts a command in its own process group.

    Args:
      processes: the fixture.
      command: the command.
      folder: from `make_folder`.
      number: distinguishes commands that are started in the same folder.
      **environment: variables.

    Returns:
      The process.
    """
    printed = [_name_printed(folder, number, what) for what in ("stdout", "stderr")]
    process = processes.Process(target=_run, args=(command.script, command.arguments(folder), printed, environment))
    process.start()
    return process


def _name_printed(folder: pathlib.Path, number: int, what: str) -> pathlib.Path:
    """Returns the file to which a command prints. It is on another disk than the folder, whose disk may be full."""
    parent = folder.parent.parent if os.path.ismount(folder.parent) else folder.parent
    return parent / f"{folder.name}_{number}.{what}"


def _run(script, arguments, printed, environment):
    os.setpgid(0, 0)
    from pneumojax.training import search

    search.HEARTBEAT_SECONDS, search.GRACE_SECONDS, search.POLL_SECONDS = 1, GRACE_SECONDS, 0.2
    forked._start(printed, script, arguments, 1, environment)


def read_errors(folder: pathlib.Path, number: int = 0) -> str:
    """Reads the standard error of a command."""
    return _name_printed(folder, number, "stderr").read_text()


def kill(process) -> bool:
    """Kills a process and its children. Returns whether it was still running."""
    was_running = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    return was_running and process.exitcode == -signal.SIGKILL


def finish(process, timeout: float = 300) -> float:
    """Waits for a process and returns the seconds of waiting."""
    started = time.perf_counter()
    process.join(timeout)
    if process.is_alive():
        kill(process)
        raise TimeoutError(f"a command did not end within {timeout} s")
    return time.perf_counter() - started


def read_result(folder: pathlib.Path) -> dict[str, object]:
    """Reads all files of a command as {path: content}, without times and speeds.

    Pictures, pages and databases are compared by name only. Checkpoints are compared by all of their arrays.
    """
    result = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if "checkpoints" in parts[:-1]:
            if path.parent.name == "checkpoints":
                result["/".join(parts)] = _read_arrays(path) if path.name.isdigit() else None
        elif path.is_file():
            result["/".join(parts)] = _read_file(path, folder)
    return result


def _read_arrays(path: pathlib.Path) -> dict[str, bytes]:
    with checkpoint.open_checkpoints(path.parents[1], read_only=True) as checkpoints:
        arrays = checkpoint._load_arrays(checkpoints, int(path.name))
    return {str(keys): np.asarray(leaf).tobytes() for keys, leaf in jax.tree_util.tree_leaves_with_path(arrays)}


def _read_file(path: pathlib.Path, folder: pathlib.Path):
    if path.suffix == ".jsonl":
        return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in read_rows(path)]
    if path.suffix == ".json":
        return _drop_times(json.loads(path.read_text().replace(str(folder), "")))
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{name: cell for name, cell in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    return None if path.suffix in (".png", ".html", ".md", ".db", ".lock") else path.read_bytes()


def _drop_times(content):
    if isinstance(content, dict):
        return {name: _drop_times(value) for name, value in content.items() if name not in TIMES}
    return [_drop_times(value) for value in content] if isinstance(content, list) else content


def find_differences(result: dict, expected: dict) -> list[str]:
    """Lists the files that only one of two results has, and those that differ."""
    differences = [f"stray: {name}" for name in result.keys() - expected.keys()]
    differences += [f"missing: {name}" for name in expected.keys() - result.keys()]
    differences += [f"different: {name}" for name in result.keys() & expected.keys() if result[name] != expected[name]]
    return sorted(differences)


def prepare_data(path: pathlib.Path) -> pathlib.Path:
    """Prepares a small set of synthetic radiographs."""
    kermany_pneumonia.prepare("phantom", path, phantom_images=160)
    return path
