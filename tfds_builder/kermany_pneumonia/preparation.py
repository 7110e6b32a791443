"""Prepares a data set atomically in a data folder, and verifies a prepared one."""

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
from tfds_builder.kermany_pneumonia.location import DATASETS, NAME, dataset_dir
from tfds_builder.kermany_pneumonia.progress import show_progress

STAGING_PREFIX = "incomplete."  # TFDS uses this prefix for unfinished folders, and its listings ignore them.


def read_metadata(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the metadata of a prepared data set: fingerprints, source, counts, sizes and numbers of left-out images.

    Args:
        directory: folder of the data set, from `dataset_dir`.

    Raises:
        SourceError: the folder has no data set, or its metadata are damaged.
    """
    path = pathlib.Path(directory) / "metadata.json"
    try:
        metadata = json.loads(path.read_text())
        metadata["fingerprint"], metadata["counts"]
        return metadata
    except OSError as error:
        raise sources.SourceError(f"There is no prepared data set in {directory} ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError) as error:
        raise sources.SourceError(f"The metadata {path} are damaged: {error!r}.") from error


def prepare(
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
    skip_bad_images: bool = False,
    overwrite: bool = False,
    *,
    phantom_images: int = phantom.NUM_IMAGES,
) -> pathlib.Path:
    """Prepares a data set, unless it has already been prepared from the same source.

    The data set is built and verified in a temporary subfolder of the data folder, which is then renamed. If this fails
    or is stopped by a signal, the data folder is not changed. If another process is preparing the same data set, this
    one waits for it.

    Args:
        dataset: kermany (real images) or phantom (synthetic radiographs).
        data_dir: data folder; None is the default one, see `location.default_data_dir`.
        source: folder or zip file of the real images; None downloads Mendeley v2.
        skip_bad_images: leave out images that do not decode, instead of raising an error.
        overwrite: replace a data set that was prepared before.
        phantom_images: number of synthetic radiographs.

    Returns:
        The folder of the data set. Its metadata are in the file metadata.json.

    Raises:
        SourceError: the source or the data folder can't be used, or the data set was prepared from another source.
    """
    if dataset not in DATASETS:
        raise sources.SourceError(f"The dataset is {dataset!r}; it must be one of {', '.join(DATASETS)}.")
    if dataset == "phantom" and source is not None:
        raise sources.SourceError("The phantom data set is synthetic and takes no source.")
    directory = dataset_dir(dataset, data_dir)
    if directory.exists() and not overwrite:
        _check_same(directory, dataset, source, phantom_images)
        return directory
    try:
        with _locked_folder(directory.parent) as parent:
            if directory.exists() and not overwrite:  # Another process prepared it while this one waited.
                _check_same(directory, dataset, source, phantom_images)
                return directory
            for leftover in parent.glob(f"{STAGING_PREFIX}*"):  # From a process that was killed.
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=parent) as staging:
                built = _build(dataset, staging, directory.parents[2], source, skip_bad_images, phantom_images)
                problems = verify(built)
                if problems:
                    raise sources.SourceError(f"The files written in {parent} differ from what was read. {problems[0]}")
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
    """Reads a prepared data set and compares it with its metadata.

    Args:
        directory: folder of the data set, as `prepare` returns it.

    Returns:
        A sentence for each problem. The list is empty if the data set matches its metadata.
    """
    import tensorflow_datasets as tfds

    try:
        metadata = read_metadata(directory)
    except sources.SourceError as error:
        return [str(error)]
    rows: list[tuple[str, ...]] = []
    problems = []
    for split, counts in metadata["counts"].items():
        try:
            data = tfds.builder_from_directory(directory).as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
            split_rows, damaged = _read_rows(split, data)
        except Exception as error:  # TFDS and array_record raise many types for damaged files.
            problems.append(f"The {split} split can't be read: {str(error).splitlines()[0]}")
            continue
        rows += split_rows
        if damaged:
            problems.append(
                f"{len(damaged)} images of the {split} split have other bytes than were stored, first {damaged[0]}."
            )
        found = collections.Counter(row[4] for row in split_rows)
        if found != collections.Counter(counts):
            problems.append(f"The {split} split holds {dict(found)}, but its metadata say {counts}.")
        if splits.compute_fingerprint(split_rows) != metadata["fingerprints"].get(split):
            problems.append(f"The fingerprint of the {split} split is not the one in its metadata.")
    if not problems and splits.compute_fingerprint(rows) != metadata["fingerprint"]:
        problems.append("The fingerprint of the data set is not the one in its metadata.")
    return problems + _find_straddling(rows)


def _read_rows(split: str, data: Sequence[dict[str, Any]]) -> tuple[list[tuple[str, ...]], list[str]]:
    """Returns the rows of a split for its fingerprint, and the names of images whose sha256 does not match."""
    rows: list[tuple[str, ...]] = []
    damaged = []
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
    """Returns a sentence if a patient is in two splits, and another if an image is."""
    problems = []
    for what, column in (("patient", 5), ("image with sha256", 2)):
        splits_of = collections.defaultdict(set)
        for row in rows:
            splits_of[row[column]].add(row[0])
        straddling = sorted(value for value, found in splits_of.items() if len(found) > 1)
        if straddling:
            problems.append(f"The {what} {straddling[0]} is in two splits ({len(straddling)} of this kind).")
    return problems


def _check_same(
    directory: pathlib.Path, dataset: str, source: str | os.PathLike[str] | None, phantom_images: int
) -> None:
    """Raises a SourceError if the data set was prepared from another source."""
    from tfds_builder.kermany_pneumonia.kermany_pneumonia_dataset_builder import name_source

    remedy = "Pass --overwrite to replace it, or another --data_dir."
    try:
        metadata = read_metadata(directory)
    except sources.SourceError as error:
        raise sources.SourceError(f"{error} {remedy}") from error
    name = name_source(dataset, source, phantom_images)
    if source is None:
        same = metadata["source"] == name
    else:
        with sources.Source(source) as opened:
            same = metadata["listing"] == opened.listing
    if not same:
        raise sources.SourceError(
            f"{directory} was prepared from other images ({metadata['source']}), not from those of {name}. {remedy}"
        )


@contextlib.contextmanager
def _locked_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder and waits for its lock. At the end, removes the folders that it made if they are still empty."""
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that is preparing {folder} ...", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            break
        os.close(handle)  # The other process failed and removed the folder.
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
    """Builds the data set below the staging folder and returns its folder there."""
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
    downloads = data_dir / "downloads"  # Kept, so that the next data set does not download the file again.
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
    """Replaces an earlier data set by the new one. After an error, the earlier one is in its place again."""
    try:
        if directory.exists():
            directory.rename(replaced)
        built.rename(directory)
    except BaseException:
        if replaced.exists() and not directory.exists():
            replaced.rename(directory)
        raise
