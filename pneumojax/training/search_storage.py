"""The storage of a hyperparameter search: locks and checks the SQLite file, and explains its errors."""

import contextlib
import fcntl
import pathlib
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterator

import sqlalchemy
from optuna.exceptions import StorageInternalError

from pneumojax.errors import UserError

STUDY = "pneumojax"

LOCK_SECONDS = 60  # longest wait for a storage file that another process has locked


@contextlib.contextmanager
def hold(storage: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Locks the search, so that no other process starts a trial.

    Args:
      storage: SQLite file of the search. The lock is on a file next to it.

    Yields:
      A function that releases the lock before the end of the `with` block.
    """
    with storage.with_name(storage.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


def check_file(storage: pathlib.Path) -> None:
    """Checks that an existing file is an intact SQLite file of a search. Call it before optuna writes to the file.

    Args:
      storage: the file. It may be missing or empty.

    Raises:
      UserError: the file is a database of another program.
      sqlite3.Error: the file is damaged or is not an SQLite file.
    """
    if not storage.exists() or (storage.is_file() and storage.stat().st_size == 0):
        return
    # Opened for writing, so that SQLite can roll back an unfinished transaction of a killed process.
    uri = f"file:{urllib.parse.quote(str(storage.resolve()))}?mode=rw"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as database:
        problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        studies = set()
        if "studies" in tables:
            studies = {name for (name,) in database.execute("SELECT study_name FROM studies")}
        if tables and ("studies" not in tables or (studies and STUDY not in studies)):
            raise UserError(f"{storage} is a database of another program. Use another --storage.")


@contextlib.contextmanager
def explain_errors(storage: pathlib.Path) -> Iterator[None]:
    """Converts errors of SQLite, SQLAlchemy and optuna in the `with` block to a UserError.

    Args:
      storage: SQLite file of the search, for the message.

    Raises:
      UserError: the storage cannot be used. The message says why, and what to do.
    """
    try:
        yield
    except (sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        raise _describe(storage, error) from error
    except (AssertionError, UnboundLocalError) as error:  # optuna could not store the result of a trial.
        if not isinstance(error.__context__, StorageInternalError):
            raise
        raise _describe(storage, error.__context__) from error
    except RuntimeError as error:
        if "optuna" not in str(error):
            raise
        raise UserError(f"{storage} was written by another version of optuna ({error}).") from error


def _describe(storage: pathlib.Path, error: BaseException) -> UserError:
    """Returns an error whose message says in a sentence or two what is wrong with a storage and what to do."""
    reason = str(error.__cause__ or error).splitlines()[0]
    if "locked" in reason:
        sentence = (
            f"{storage} was locked by another process for more than {LOCK_SECONDS} s. "
            "Start the same command again once that process is done with it."
        )
    elif "full" in reason or "I/O" in reason:
        sentence = f"{storage} cannot be written ({reason}). Free some disk space and start the same command again."
    else:
        sentence = (
            f"{storage} cannot be used as the storage of a search ({reason}). "
            "It is damaged, is not an SQLite file, or is read-only; use another --storage and --workdir."
        )
    return UserError(sentence)
