"""Writes files atomically, so that a reader, or a command that resumes after a crash, never sees an incomplete file.

A file is written under a temporary name in the same folder and renamed when it is complete. If a process is killed, the
next writer of the same file reuses or removes the temporary file.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file. See `write_bytes`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in UTF-8. See `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, and makes missing folders. If this fails or is killed, an earlier file with that name is kept.

    Args:
      path: the file.
      content: the content of the file.

    Raises:
      OSError: the disk is full, or the folder is read-only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with _open_alone(temporary) as file:
        try:
            file.write(content)
            file.flush()
            # Without fsync, a power loss after the rename could leave an empty file.
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def replace_folder(path: pathlib.Path, replaces: Collection[str] | None = None) -> Iterator[pathlib.Path]:
    """Replaces a folder, so that all new files appear at once or not at all.

    The files are written into a temporary folder, which gets the final name when the `with` block ends without an
    error. If the process is killed between the two renames, the next call first puts the earlier folder back. Two
    processes that replace folders with the same parent wait for each other.

    Args:
      path: the folder. Missing parents are made.
      replaces: names of the files and folders to replace. All other entries of the earlier folder are kept. None:
        everything is replaced.

    Yields:
      The temporary folder to write into.

    Raises:
      OSError: the disk is full, or the parent is read-only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(path.parent) as locked:
        if locked:
            _remove_leftovers(path)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f"{path.name}.", suffix=".new", dir=path.parent))
        try:
            yield temporary
            if replaces is not None and path.exists():
                for entry in path.iterdir():
                    if entry.name not in replaces:
                        copy = shutil.copytree if entry.is_dir() else shutil.copy2
                        copy(entry, temporary / entry.name)
            os.chmod(temporary, 0o755)  # mkdtemp makes the folder private.
            _sync_folder(temporary)
            _swap(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: pathlib.Path) -> None:
    """Removes temporary folders of killed calls of `replace_folder`. Does nothing while another call is running."""
    if any(_find_leftovers(path)):
        with lock_folder(path.parent, wait=False) as locked:
            if locked:
                _remove_leftovers(path)


@contextlib.contextmanager
def lock_folder(path: pathlib.Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Locks a folder during the `with` block, so that `replace_folder` does not replace folders in it.

    Args:
      path: an existing folder.
      shared: whether to take a shared lock, which several readers can hold at the same time.
      wait: whether to wait until the lock is free.

    Yields:
      Whether the lock is held. It is not held if the file system cannot lock folders, or if `wait` is False and another
      process holds the lock.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        locked = True
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)  # This also releases the lock. If the process is killed, the system does so.


def compute_sha256(path: str | pathlib.Path) -> str | None:
    """Hashes a file. Returns None if it cannot be read."""
    try:
        with pathlib.Path(path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def append_row(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends a row to a file of JSON lines.

    If the last line has no newline, because of a full disk or a crash, a newline is written first. Otherwise the new
    row would be lost. The file is not synced to disk, because training calls this after each chunk. After a power loss,
    the last rows may be missing.

    Args:
      path: the file.
      row: the row, which can be stored as JSON.
    """
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            missing_newline = b"\n" if file.read(1) != b"\n" else b""
        else:
            missing_newline = b""
        file.write(missing_newline + json.dumps(row).encode() + b"\n")


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows of a file of JSON lines.

    A line that is not a JSON object is skipped, because a crash can leave an incomplete line anywhere in the file. A
    missing file has no rows.
    """
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def truncate_rows(path: pathlib.Path, step: int) -> None:
    """Removes the rows after `step` and all incomplete lines, so that a resumed run logs each step once."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step))


@contextlib.contextmanager
def _open_alone(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file with a lock, so that no other process writes it, and empties it."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "wb") as file:
            with contextlib.suppress(OSError):  # A file system without locks.
                fcntl.flock(file, fcntl.LOCK_EX)
            # While this process waited, another one may have renamed the file. It is then no longer the temporary file.
            if _is_same_file(file, path):
                file.truncate()
                yield file
                return


def _is_same_file(file: BinaryIO, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _find_leftovers(path: pathlib.Path) -> Iterator[pathlib.Path]:
    if path.parent.is_dir():
        return (entry for entry in path.parent.iterdir() if entry.name.startswith(f"{path.name}.") and entry.is_dir())
    return iter(())


def _remove_leftovers(path: pathlib.Path) -> None:
    """Puts back an earlier folder that a killed process had moved away, and removes all unfinished folders."""
    leftovers = sorted(_find_leftovers(path))
    for leftover in leftovers:
        if leftover.suffix == ".old" and not path.exists():
            leftover.rename(path)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _sync_folder(path: pathlib.Path) -> None:
    """Waits until a folder and its content are on disk."""
    for folder, _, names in os.walk(path):
        for name in [*names, "."]:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _swap(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a complete folder its final name, and removes the earlier folder of that name."""
    earlier = temporary.with_suffix(".old")
    if path.exists():
        path.rename(earlier)
    try:
        temporary.rename(path)
    except BaseException:
        if earlier.exists():
            earlier.rename(path)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
