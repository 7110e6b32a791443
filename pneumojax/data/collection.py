"""Reads a collection of labelled images that is not a prepared data set: a folder, with labels in a CSV file or not.

References:
  The classes are NORMAL, BACTERIA and VIRUS, as in the prepared data sets. Many collections know pneumonia only.
"""

import collections
import concurrent.futures
import csv
import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from pneumojax.data.dataset import SUBTYPES, Split
from pneumojax.data.decoder_process import Decoders
from pneumojax.data.image_sources import ImageSource, find_images
from pneumojax.errors import UserError

# The labels of a collection. The last one is pneumonia of an unknown kind.
LABELS = (*SUBTYPES, "PNEUMONIA")

# The value of --labels that stands for sub-folders.
FOLDERS = "folders"

# Names that an evaluation folder of a collection cannot have, because the evaluations of splits have them.
RESERVED = ("train", "validation", "test", "out_of_fold")


@dataclasses.dataclass(frozen=True)
class LabelledFile:
    """A file of a collection.

    Attributes:
      name: its path in the folder of the collection.
      label: one of LABELS.
      patient: equal for images of one patient.
      source: reads the bytes.
    """

    name: str
    label: str
    patient: str
    source: ImageSource


@dataclasses.dataclass(frozen=True)
class Collection:
    """The images of a collection that could be read.

    Attributes:
      split: the images at the first of the requested sizes. If `has_kinds` is False, all subtypes of pneumonia are 1.
        The original sizes and channels are not known; each has the same value for all images.
      images: [N, H, W] uint8 of each requested (image_px, resize).
      has_kinds: whether each image of pneumonia is labelled as bacterial or viral.
      has_patients: whether the patients are known. Otherwise each image counts as a patient.
      unreadable: (name, reason) of the files that could not be read.
    """

    split: Split
    images: dict[tuple[int, str], np.ndarray]
    has_kinds: bool
    has_patients: bool
    unreadable: list[tuple[str, str]]


def load_collection(folder: pathlib.Path, labels: str, sizes: Sequence[tuple[int, str]]) -> Collection:
    """Reads all images of a collection. Files that cannot be read are left out and listed.

    Args:
      folder: the folder of the images. Its name becomes the name of the split.
      labels: "folders" if the sub-folders are named after the classes, otherwise the path of a CSV file. It has the
        columns file (path in the folder) and label, and may have the column patient. Upper and lower case are equal.
      sizes: (image_px, resize) of each wanted square, as in `image_files.read_image`. At least one.

    Raises:
      UserError: the folder or the CSV file is missing or wrong, a label is unknown, or no image can be read.
    """
    name = folder.resolve().name
    if not folder.is_dir():
        raise UserError(f"--images={folder} is not a folder.")
    if name in RESERVED:
        raise UserError(
            f"--images={folder}: the results would overwrite those of the {name} split. Rename the folder, or give "
            "a link to it with another name."
        )
    files = _find_in_folders(folder) if labels == FOLDERS else _read_table(folder, pathlib.Path(labels).expanduser())
    read, unreadable = _read_all(files, list(dict.fromkeys(sizes)))
    if not read:
        reason = f" The first: {unreadable[0][0]}: {unreadable[0][1]}." if unreadable else ""
        raise UserError(f"--images={folder}: none of its {len(files)} files can be read as an image.{reason}")
    kept = [file for file, _, _ in read]
    images = {size: np.stack([squares[size] for _, squares, _ in read]) for size in read[0][1]}
    has_kinds = all(file.label != "PNEUMONIA" for file in kept)
    subtypes = [SUBTYPES.index(file.label) if has_kinds else int(file.label != "NORMAL") for file in kept]
    first_of: dict[str, str] = {}
    duplicate_of = [first_of.setdefault(digest, file.name) for file, _, digest in read]
    digests = hashlib.sha256(repr([(f.name, f.label, f.patient, digest) for f, _, digest in read]).encode())
    size = np.full(len(kept), sizes[0][0], np.int32)
    split = Split(
        name=name,
        images=images[sizes[0]],
        subtypes=np.array(subtypes, np.int32),
        patient_ids=np.array([file.patient for file in kept]),
        filenames=np.array([file.name for file in kept]),
        heights=size,
        widths=size,
        channels=np.ones(len(kept), np.int32),
        duplicate_of=np.array(
            ["" if first == file.name else first for first, file in zip(duplicate_of, kept, strict=True)]
        ),
        fingerprint=digests.hexdigest(),
    )
    has_patients = any(file.patient != file.name for file in files)
    return Collection(split, images, has_kinds, has_patients, unreadable)


def _find_in_folders(folder: pathlib.Path) -> list[LabelledFile]:
    """Finds the files in sub-folders that are named after the classes."""
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    known = ", ".join(LABELS)
    if not folders:
        raise UserError(f"--images={folder} has no sub-folders. With --labels=folders it needs some of {known}.")
    files = []
    for entry in folders:
        label = entry.name.upper()
        if label not in LABELS:
            raise UserError(f"{entry} is not named after a class. With --labels=folders the sub-folders are {known}.")
        for source in find_images([str(entry)]):
            name = os.path.relpath(source.name, folder)
            files.append(LabelledFile(name, label, name, source))
    if not files:
        raise UserError(f"--images={folder}: the sub-folders contain no files.")
    return files


def _read_table(folder: pathlib.Path, path: pathlib.Path) -> list[LabelledFile]:
    """Reads the CSV file with the columns file, label and, optionally, patient."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_text("utf-8-sig")))
        columns = [column.strip().lower() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--labels={path} cannot be read: {reason}. Give a CSV file, or --labels=folders.") from error
    if missing := [column for column in ("file", "label") if column not in columns]:
        raise UserError(f"--labels={path} has no column {missing[0]}. It needs the columns file and label.")
    if not rows:
        raise UserError(f"--labels={path} has no rows.")
    files = []
    for number, row in enumerate(rows, 2):
        name, label = (row["file"] or "").strip(), (row["label"] or "").strip().upper()
        if not name:
            raise UserError(f"--labels={path}, row {number}: the file is empty.")
        if label not in LABELS:
            raise UserError(f"--labels={path}, row {number}: the label {label!r} is not one of {', '.join(LABELS)}.")
        if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
            raise UserError(f"--labels={path}, row {number}: {name} is not a path in {folder}.")
        patient = (row.get("patient") or "").strip() or name
        files.append(LabelledFile(name, label, patient, _find_one(folder / name)))
    name, times = collections.Counter(file.name for file in files).most_common(1)[0]
    if times > 1:
        raise UserError(f"--labels={path} names {name} {times} times. Each file must have one row.")
    return files


def _find_one(path: pathlib.Path) -> ImageSource:
    """Makes the source of one file. Reading a folder, an archive or a missing file fails, which is then listed."""

    def read() -> bytes:
        if not path.is_file():  # A name with "*" or the path of a folder must not become several files.
            raise OSError("there is no file of this name" if not path.exists() else "it is not a regular file")
        (source,) = find_images([str(path)])
        return source.read()

    return ImageSource(str(path), read)


def _read_all(
    files: Sequence[LabelledFile], sizes: list[tuple[int, str]]
) -> tuple[list[tuple[LabelledFile, dict[tuple[int, str], np.ndarray], str]], list[tuple[str, str]]]:
    """Reads files. Returns (file, squares, sha256 of the bytes) of those that can be read, and (name, reason)."""

    def read(file: LabelledFile) -> tuple[dict, str] | str:
        try:
            data = file.source.read()
            squares = [image.pixels for image in decoders.read(data, sizes)]
        except OSError as error:
            return " ".join((error.strerror or str(error) or type(error).__name__).split())
        return dict(zip(sizes, squares, strict=True)), hashlib.sha256(data).hexdigest()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool, Decoders() as decoders:
        results = list(zip(files, pool.map(read, files), strict=True))
    readable = [(file, *result) for file, result in results if not isinstance(result, str)]
    return readable, [(file.name, result) for file, result in results if isinstance(result, str)]
