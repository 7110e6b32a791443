"""Finds image files in files, folders, patterns and zip archives, one after another and without unpacking."""

import dataclasses
import functools
import glob
import os
import pathlib
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence

# A larger file is refused before it is read. An uncompressed image of the largest allowed size in colour has 150 MB.
MAX_BYTES = 256 * 1024 * 1024

# The first bytes of a zip archive: of its first member, or of its directory if it is empty.
ZIP_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """A file that may be an image.

    Attributes:
      name: the path, or the path of an archive, "/" and the name of the member. It can be encoded in UTF-8. A name in
        an archive is only shown, and never used as a path.
      read: returns the bytes of the file. It raises an OSError with the reason if it cannot.
    """

    name: str
    read: Callable[[], bytes]


def find_images(paths: Sequence[str]) -> Iterator[ImageSource]:
    """Finds the files that some paths name, in the order of the paths and sorted by name within each path.

    A path is a file, a folder, which is searched with its subfolders, a zip archive, or a pattern such as `a/**/*.png`
    if there is no file of this name. Zip archives are recognised by their content, in folders too. Hidden files of
    folders and archives, whose name starts with a dot, are left out.

    Args:
      paths: the paths.

    Yields:
      The files. A path that does not exist, and an archive that cannot be opened, is a file that cannot be read. Files
      are opened only when they are read, except for their first bytes.
    """
    for path in paths:
        path = os.path.expanduser(path)
        if not os.path.lexists(path) and glob.has_magic(path):
            matches = sorted(glob.iglob(path, recursive=True))
            if not matches:
                yield _unreadable(path, "no file matches this pattern")
        else:
            matches = [path]
        for match in matches:
            yield from _walk(match) if os.path.isdir(match) else _open(match)


def _walk(folder: str) -> Iterator[ImageSource]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield from _open(os.path.join(parent, name))


def _open(path: str) -> Iterator[ImageSource]:
    """Yields a file, or the members of an archive."""
    name = _encodable(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # Reading a pipe would wait for ever.
            yield _unreadable(name, "it is not a regular file")
            return
        with open(path, "rb") as file:
            is_archive = file.read(4) in ZIP_SIGNATURES
    except OSError as error:
        yield _unreadable(name, error.strerror or str(error))
        return
    if is_archive:
        yield from _open_archive(path, name)
    else:
        yield ImageSource(name, lambda: _read_file(path))


def _open_archive(path: str, name: str) -> Iterator[ImageSource]:
    try:
        archive = zipfile.ZipFile(path)
        members = sorted(archive.infolist(), key=lambda member: member.filename)
    except Exception as error:  # zipfile raises many types for a damaged archive.
        yield _unreadable(name, f"it is a zip archive that cannot be opened ({error})")
        return
    # The archive stays open until the last of its members is read and forgotten.
    for member in members:
        parts = pathlib.PurePosixPath(member.filename).parts
        hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
        if not member.is_dir() and not hidden:
            member_name = f"{name}/{_encodable(member.filename)}"
            yield ImageSource(member_name, functools.partial(_read_member, archive, member))


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return _limit(file.read(MAX_BYTES + 1))


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(member) as file:
            return _limit(file.read(MAX_BYTES + 1))
    except OSError:
        raise
    except Exception as error:  # zipfile raises many types for damaged, encrypted and unknown members.
        raise OSError(f"it cannot be unpacked ({error})") from error


def _limit(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise OSError(f"it has more than the limit of {MAX_BYTES:,} bytes")
    return data


def _unreadable(name: str, reason: str) -> ImageSource:
    def read() -> bytes:
        raise OSError(reason)

    return ImageSource(name, read)


def _encodable(name: str) -> str:
    """Replaces bytes of a file name that are not UTF-8 by escapes such as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
