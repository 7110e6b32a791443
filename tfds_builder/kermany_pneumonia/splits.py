"""Groups images by patient, and splits the official training images into train and validation."""

import collections
import dataclasses
import hashlib
import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from tfds_builder.kermany_pneumonia import sources

SPLITS = ("train", "validation", "test")
VALIDATION_FRACTION = 0.15


@dataclasses.dataclass
class Xray:
    """An image of the data set, without its bytes.

    Attributes:
        path: path of the file in the source.
        folder: official folder, train (which includes Kaggle's val) or test.
        label: NORMAL or PNEUMONIA.
        subtype: NORMAL, BACTERIA or VIRUS.
        patient_id: official folder, series and number of the file name, such as `train/person/135`.
        filename: base name of the file.
        facts: sha256, height, width and channels of the image.
        size: size of the file in bytes.
        duplicate_of: file name of the first byte-identical image of the test split, or empty.
    """

    path: str
    folder: str
    label: str
    subtype: str
    patient_id: str
    filename: str
    facts: sources.ImageFacts
    size: int
    duplicate_of: str = ""


def make_xray(image: sources.ImageFile, facts: sources.ImageFacts) -> Xray:
    """Combines the path, the parsed file name and the decoded facts of one image.

    Raises:
        SourceError: the file name has no known pattern, or it contradicts the class folder.
    """
    name = sources.parse_name(image.filename, image.label)
    folder = "test" if image.folder == "test" else "train"  # Kaggle's val has 16 images of the training folder.
    return Xray(
        path=image.path,
        folder=folder,
        label=image.label,
        subtype=name.subtype,
        patient_id=f"{folder}/{name.series}/{name.number}",
        filename=image.filename,
        facts=facts,
        size=image.size,
    )


def assign_splits(xrays: Iterable[Xray]) -> tuple[dict[str, list[Xray]], dict[str, int]]:
    """Assigns each image to a split, so that no patient is in two splits.

    Two patients of the same official folder who have a byte-identical image are merged: both get the `patient_id` that
    is first in alphabetical order. All official test images are kept, and copies of earlier ones are marked in
    `duplicate_of`. Three kinds of training images are left out: copies of an earlier training image, copies of a test
    image, and copies that are labelled with two subtypes, because their true subtype is unknown.

    Args:
        xrays: all images of the source, in any order.

    Returns:
        (splits, duplicates): {split: its xrays, sorted by file name}, without "test" if the source has no test folder;
        and {reason: number of images that were left out or marked}.

    Raises:
        SourceError: too few patients for a validation split, or two images of one split share a file name.
    """
    xrays = sorted(xrays, key=lambda xray: (xray.filename, xray.path))
    _join_patients(xrays)
    test = [xray for xray in xrays if xray.folder == "test"]
    first_in_test: dict[str, str] = {}
    for xray in test:
        first = first_in_test.setdefault(xray.facts.sha256, xray.filename)
        xray.duplicate_of = "" if first == xray.filename else first
    training, left_out = _drop_copies(xrays, set(first_in_test))
    in_validation = choose_share(
        [xray.patient_id for xray in training], [xray.subtype for xray in training], VALIDATION_FRACTION
    )
    splits = {
        "train": [xray for xray in training if xray.patient_id not in in_validation],
        "validation": [xray for xray in training if xray.patient_id in in_validation],
    }
    if test:
        splits["test"] = test
    for split, members in splits.items():
        for label in sources.LABELS:
            if not any(xray.label == label for xray in members):
                raise sources.SourceError(f"Too few patients: the {split} split would have no {label} image.")
        for left, right in itertools.pairwise(members):
            if left.filename == right.filename:
                raise sources.SourceError(f"Two different images are named {left.filename}: {left.path}, {right.path}.")
    return splits, left_out | {"marked_in_test": sum(bool(xray.duplicate_of) for xray in test)}


def _join_patients(xrays: list[Xray]) -> None:
    """Merges patients of one official folder who have a byte-identical image. They get the first of their ids."""
    parent = {xray.patient_id: xray.patient_id for xray in xrays}

    def find(patient_id: str) -> str:
        while parent[patient_id] != patient_id:
            patient_id = parent[patient_id]
        return patient_id

    patient_of_bytes: dict[tuple[str, str], str] = {}
    for xray in xrays:
        other_id = patient_of_bytes.setdefault((xray.folder, xray.facts.sha256), xray.patient_id)
        first, second = sorted((find(xray.patient_id), find(other_id)))
        parent[second] = first
    for xray in xrays:
        xray.patient_id = find(xray.patient_id)


def _drop_copies(xrays: list[Xray], test_digests: set[str]) -> tuple[list[Xray], dict[str, int]]:
    """Returns the training images that are kept, in the given order, and {reason: number of images left out}."""
    subtypes_of_bytes = collections.defaultdict(set)
    for xray in xrays:
        subtypes_of_bytes[xray.facts.sha256].add(xray.subtype)
    kept, seen = [], set()
    left_out = dict.fromkeys(("left_out_redundant", "left_out_in_test", "left_out_contradictory"), 0)
    for xray in xrays:
        digest = xray.facts.sha256
        if xray.folder != "train":
            continue
        if digest in test_digests:
            left_out["left_out_in_test"] += 1
        elif len(subtypes_of_bytes[digest]) > 1:
            left_out["left_out_contradictory"] += 1
        elif digest in seen:
            left_out["left_out_redundant"] += 1
        else:
            seen.add(digest)
            kept.append(xray)
    return kept, left_out


def choose_share(patient_ids: Sequence[str], subtypes: Sequence[str], share: float, salt: str = "") -> set[str]:
    """Chooses patients who together have a given share of the images.

    Patients are stratified by the set of subtypes of their images, because half of the pneumonia patients have images
    of both bacteria and virus. In each stratum, patients are sorted by a hash of their id, and the first ones are
    chosen until they have the share of the stratum's images. The hash makes the choice stable: if a few images are
    added to the source or removed from it, only a patient or two change.

    Args:
        patient_ids: patient id of each image.
        subtypes: subtype of each image.
        share: share of the images, between 0 and 1.
        salt: prefix of the hashed text. A different salt gives a different choice.

    Returns:
        The chosen patient_ids. At least one patient of each stratum is not chosen.
    """
    subtypes_of, sizes = collections.defaultdict(set), collections.Counter(patient_ids)
    for patient_id, subtype in zip(patient_ids, subtypes, strict=True):
        subtypes_of[patient_id].add(subtype)
    strata = collections.defaultdict(list)
    for patient_id, found in subtypes_of.items():
        strata[tuple(sorted(found))].append(patient_id)
    chosen = set()
    for members in strata.values():
        members.sort(key=lambda patient_id: (_hash_name(patient_id, salt), patient_id))
        target = share * sum(sizes[patient_id] for patient_id in members)
        taken = 0
        for patient_id in members[:-1]:
            if taken and abs(taken + sizes[patient_id] - target) > abs(taken - target):
                break
            chosen.add(patient_id)
            taken += sizes[patient_id]
    return chosen


def _hash_name(patient_id: str, salt: str) -> str:
    """Hashes series and number without the official folder, as in version 1.0.0, so that the splits stay the same."""
    return hashlib.sha256((salt + patient_id.partition("/")[2]).encode()).hexdigest()


def describe_splits(splits: dict[str, list[Xray]]) -> dict[str, Any]:
    """Describes the splits: images of each subtype, patients, RGB images, sizes in pixels, bytes, fingerprints."""
    rows = {
        split: [
            (split, xray.filename, xray.facts.sha256, xray.label, xray.subtype, xray.patient_id, xray.duplicate_of)
            for xray in xrays
        ]
        for split, xrays in splits.items()
    }
    return {
        "fingerprint": compute_fingerprint(row for part in rows.values() for row in part),
        "fingerprints": {split: compute_fingerprint(part) for split, part in rows.items()},
        "counts": {
            split: {subtype: sum(xray.subtype == subtype for xray in xrays) for subtype in sources.SUBTYPES}
            for split, xrays in splits.items()
        },
        "groups": {split: len({xray.patient_id for xray in xrays}) for split, xrays in splits.items()},
        "rgb": {split: sum(xray.facts.channels == 3 for xray in xrays) for split, xrays in splits.items()},
        "sizes": {
            split: {
                "width": _spread([xray.facts.width for xray in xrays]),
                "height": _spread([xray.facts.height for xray in xrays]),
            }
            for split, xrays in splits.items()
        },
        "image_bytes": {split: sum(xray.size for xray in xrays) for split, xrays in splits.items()},
    }


def compute_fingerprint(rows: Iterable[tuple[str, ...]]) -> str:
    """Computes a checksum of the content of a data set. It does not depend on the order of the rows.

    Args:
        rows: (split, filename, sha256, label, subtype, patient_id, duplicate_of) of each image.

    Returns:
        A sha256 in hex.
    """
    lines = []
    for *facts, subtype, patient_id, duplicate_of in rows:
        # Version 1.0.0 had the subtype in patient_id. The hashed text still contains it, so that data sets of both
        # versions with the same images and splits have the same fingerprint.
        folder, _, name = patient_id.partition("/")
        lines.append("\t".join((*facts, subtype, f"{folder}/{subtype}/{name}", duplicate_of)))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _spread(values: list[int]) -> dict[str, int]:
    return {"min": min(values), "median": int(statistics.median(values)), "max": max(values)}
