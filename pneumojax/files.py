"""Files of a run, written so that a reader, or a run that goes on after a crash, never meets half of one."""

import json
import os
import pathlib
import tempfile
from typing import Any


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file whole: beside its name first, then renamed."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole: beside its name first, then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole: beside its name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def append_row(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Adds one line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; a last line cut short by a crash is left out, a missing file has none."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def truncate_rows(path: pathlib.Path, step: int) -> None:
    """Drops what was logged after `step`, so that a continued run logs each step once."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step))
