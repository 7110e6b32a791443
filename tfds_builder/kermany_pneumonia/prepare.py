"""Prepares a data set in a data folder, whole or not at all, and verifies what lies there."""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from tfds_builder.kermany_pneumonia import phantom, sources, splits
from tfds_builder.kermany_pneumonia.progress import show_progress

NAME = "kermany_pneumonia"
DATASETS = ("kermany", "phantom")
VERSION = "1.1.0"
STAGING_PREFIX = "incomplete."  # As TFDS names folders that are not finished; its listings pass over them.


def default_data_dir() -> pathlib.Path:
    """Returns the data folder of TFDS: $TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def dataset_dir(dataset: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Returns the folder in which a data set lies once prepared.

    Args:
        dataset: kermany or phantom.
        data_dir: data folder; None is the default one.
    """
    data_dir = default_data_dir() if data_dir is None else pathlib.Path(data_dir).expanduser()
    return data_dir / NAME / dataset / VERSION


def read_metadata(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the record of a prepared set: fingerprint, source, counts, sizes, what was left out.

    Raises:
        SourceError: no set lies there, or its record is damaged.
    """
    path = pathlib.Path(directory) / "metadata.json"
    try:
        record = json.loads(path.read_text())
        record["fingerprint"], record["counts"]
        return record
    except OSError as error:
        raise sources.SourceError(f"No prepared data set lies in {directory} ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError) as error:
        raise sources.SourceError(f"The record {path} is damaged: {error!r}.") from error


def prepare(
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    skip_bad_images: bool = False,
    overwrite: bool = False,
    *,
    phantom_images: int = phantom.NUM_IMAGES,
) -> pathlib.Path:
    """Prepares a data set, unless it is there already from the same source.

    The set is built and verified beside its place, then renamed into it: a failure or a signal leaves the data folder
    as it was. A second process that prepares the same set waits for the first.

    Args:
        dataset: kermany (real images) or phantom (drawn radiographs).
        data_dir: data folder; None is TFDS's default.
        source: folder or zip of the real images; None downloads Mendeley v2.
        skip_bad_images: leave out images that do not decode, instead of stopping.
        overwrite: replace a set that is there.
        phantom_images: how many radiographs the phantom set has.

    Returns:
        The folder that holds the set; its record is metadata.json there.

    Raises:
        SourceError: the source or the data folder can't be used, or another set lies there.
    """
    if dataset not in DATASETS:
        raise sources.SourceError(f"The dataset is {dataset!r}; it must be one of {', '.join(DATASETS)}.")
    if dataset == "phantom" and source is not None:
        raise sources.SourceError("The phantom data set is drawn and takes no source.")
    directory = dataset_dir(dataset, data_dir)
    if directory.exists() and not overwrite:
        _check_same(directory, dataset, source, phantom_images)
        return directory
    try:
        with _locked_folder(directory.parent) as parent:
            if directory.exists() and not overwrite:  # Another process made it while this one waited.
                _check_same(directory, dataset, source, phantom_images)
                return directory
            for leftover in parent.glob(f"{STAGING_PREFIX}*"):  # Of a run that was killed.
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=parent) as staging:
                built = _build(dataset, staging, directory.parents[2], source, skip_bad_images, phantom_images)
                problems = verify(built)
                if problems:
                    raise sources.SourceError(f"What was written in {parent} is not what was read. {problems[0]}")
                _move_into_place(built, directory, pathlib.Path(staging, "replaced"))
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError):
            reason = error.strerror or str(error).rstrip(".")
        elif "() failed: " in str(error):  # array_record: "write() failed: No space left on device; writing FILE ...".
            reason = str(error).split("() failed: ")[1].split(";")[0]
        else:
            raise
        raise sources.SourceError(f"Can't write in the data folder {directory.parents[2]}: {reason}.") from error
    return directory


def verify(directory: str | os.PathLike[str]) -> list[str]:
    """Reads a prepared set again and compares it with its record.

    Args:
        directory: folder of the set, as `prepare` returns it.

    Returns:
        A sentence for each problem; an empty list where everything is as recorded.
    """
    import tensorflow_datasets as tfds

    try:
        record = read_metadata(directory)
    except sources.SourceError as error:
        return [str(error)]
    rows: list[tuple[str, ...]] = []
    problems = []
    for split, counts in record["counts"].items():
        try:
            data = tfds.builder_from_directory(directory).as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
            split_rows, damaged = _read_rows(split, data)
        except Exception as error:  # Whatever TFDS or array_record raise on damaged files.
            problems.append(f"The {split} split can't be read: {str(error).splitlines()[0]}")
            continue
        rows += split_rows
        if damaged:
            problems.append(
                f"{len(damaged)} images of the {split} split are not the bytes that were stored, first {damaged[0]}."
            )
        found = collections.Counter(row[4] for row in split_rows)
        if found != collections.Counter(counts):
            problems.append(f"The {split} split holds {dict(found)}, its record says {counts}.")
        if splits.compute_fingerprint(split_rows) != record["fingerprints"].get(split):
            problems.append(f"The fingerprint of the {split} split is not the recorded one.")
    if not problems and splits.compute_fingerprint(rows) != record["fingerprint"]:
        problems.append("The fingerprint of the set is not the recorded one.")
    return problems + _find_straddling(rows)


def _read_rows(split: str, data: Sequence[dict[str, Any]]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns fingerprint rows of a split, and the names of images whose bytes are not those of their sha256."""
    rows, damaged = [], []
    for example in show_progress(data, f"verifying {split}"):
        filename, digest, patient_id, duplicate_of = (
            example[key].decode() for key in ("filename", "sha256", "patient_id", "duplicate_of")
        )
        if hashlib.sha256(example["image"]).hexdigest() != digest:
            damaged.append(filename)
        label, subtype = sources.LABELS[example["label"]], sources.SUBTYPES[example["subtype"]]
        rows.append((split, filename, digest, label, subtype, patient_id, duplicate_of))
    return rows, damaged


def _find_straddling(rows: list[tuple[str, ...]]) -> list[str]:
    """Says which patients or bytes lie in two splits; none may."""
    problems = []
    for what, column in (("patient", 5), ("image with sha256", 2)):
        splits_of = collections.defaultdict(set)
        for row in rows:
            splits_of[row[column]].add(row[0])
        straddling = sorted(value for value, found in splits_of.items() if len(found) > 1)
        if straddling:
            problems.append(f"The {what} {straddling[0]} lies in two splits ({len(straddling)} such).")
    return problems


def _check_same(
    directory: pathlib.Path, dataset: str, source: str | os.PathLike[str] | None, phantom_images: int
) -> None:
    """Raises unless the set that lies there was prepared from this source."""
    from tfds_builder.kermany_pneumonia.kermany_pneumonia_dataset_builder import name_source

    remedy = "Pass --overwrite to replace it, or another --data_dir."
    try:
        record = read_metadata(directory)
    except sources.SourceError as error:
        raise sources.SourceError(f"{error} {remedy}") from error
    name = name_source(dataset, source, phantom_images)
    if source is None:
        same = record["source"] == name
    else:
        with sources.Source(source) as opened:
            same = record["listing"] == opened.listing
    if not same:
        raise sources.SourceError(
            f"{directory} holds a set prepared from other images ({record['source']}), not those of {name}. {remedy}"
        )


@contextlib.contextmanager
def _locked_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder and holds it alone, waiting for another process; folders it made and left empty go again."""
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that prepares {folder} ...", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            break
        os.close(handle)  # The other process failed and took the folder away.
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            for part in made:
                part.rmdir()
        os.close(handle)


def _build(
    dataset: str,
    staging: str,
    data_dir: pathlib.Path,
    source: str | os.PathLike[str] | None,
    skip_bad_images: bool,
    phantom_images: int,
) -> pathlib.Path:
    """Builds the set below the staging folder and returns its folder there."""
    from tfds_builder.kermany_pneumonia.kermany_pneumonia_dataset_builder import Builder

    builder = Builder(
        config=dataset,
        data_dir=staging,
        source=source,
        skip_bad_images=skip_bad_images,
        phantom_images=phantom_images,
    )
    if dataset == "phantom" or source is not None:
        builder.download_and_prepare(download_dir=pathlib.Path(staging, "downloads"))
        return pathlib.Path(builder.data_dir)
    downloads = data_dir / "downloads"  # Kept, so that the next set does not fetch the file again.
    try:
        builder.download_and_prepare(download_dir=downloads)
    finally:
        # TFDS leaves unfinished files and empty folders behind.
        for unfinished in list(downloads.rglob("*.tmp.*")):
            shutil.rmtree(unfinished, ignore_errors=True)
        for folder in (downloads / "extracted", downloads / NAME, downloads):
            with contextlib.suppress(OSError):
                folder.rmdir()
    return pathlib.Path(builder.data_dir)


def _move_into_place(built: pathlib.Path, directory: pathlib.Path, replaced: pathlib.Path) -> None:
    """Renames the new set into its place, and the earlier one out of it, or neither."""
    try:
        if directory.exists():
            directory.rename(replaced)
        built.rename(directory)
    except BaseException:
        if replaced.exists() and not directory.exists():
            replaced.rename(directory)
        raise
