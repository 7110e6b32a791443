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
    """One image as the data set holds it, without its bytes.

    Attributes:
        path: where the file is in the source.
        folder: official folder, train (with Kaggle's val) or test.
        label: NORMAL or PNEUMONIA.
        subtype: NORMAL, BACTERIA or VIRUS.
        patient_id: official folder, series and number of the file name, such as `train/person/135`.
        filename: base name.
        facts: sha256, height, width, channels.
        size: bytes.
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
    """Joins what path, name and bytes say about one image.

    Raises:
        SourceError: no layout knows the file name, or it contradicts the class folder.
    """
    name = sources.parse_name(image.filename, image.label)
    folder = "test" if image.folder == "test" else "train"  # Kaggle's val holds 16 images of train.
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
    """Assigns each image to a split; no patient is in two splits. The order of the xrays does not matter.

    Patients of one official folder who share a byte-identical image become one patient: `patient_id` is set to the
    first name among them. The official test images all stay, and redundant ones are marked in `duplicate_of`. Three
    kinds of training images are left out: redundant copies (the first by file name stays), copies of a test image, and
    copies filed under two subtypes, since their true subtype is unknown.

    Args:
        xrays: every image of the source.

    Returns:
        The xrays of each split, sorted by file name (no "test" if the source has none), and how many images were left
        out or marked, by reason.

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
    """Gives patients of one official folder who share an image's bytes the same patient_id, the first of theirs."""
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
    """The training images that are kept, in the given order, and how many are left out, by reason."""
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
    """Chooses patients who hold a share of the images.

    Patients are stratified by the set of subtypes they have, since half of the pneumonia patients have images of
    bacteria and of virus. Each stratum is ordered by a hash of the patient's name, and gives its first patients until
    they hold the share of its images. A few images more or less in the source therefore change the choice by a patient
    or two, instead of shuffling everything.

    Args:
        patient_ids: of each image.
        subtypes: of each image.
        share: share of the images, between 0 and 1.
        salt: another salt gives another order.

    Returns:
        The chosen patient_ids. At least one patient of each stratum is not chosen.
    """
    held, sizes = collections.defaultdict(set), collections.Counter(patient_ids)
    for patient_id, subtype in zip(patient_ids, subtypes, strict=True):
        held[patient_id].add(subtype)
    strata = collections.defaultdict(list)
    for patient_id, of_patient in held.items():
        strata[tuple(sorted(of_patient))].append(patient_id)
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
    """Hashes series and number without the official folder, as version 1.0.0 did: the splits stay the same."""
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
    """Identifies what a data set holds, whatever the order of its rows.

    Args:
        rows: (split, filename, sha256, label, subtype, patient_id, duplicate_of) of each image.

    Returns:
        A sha256 in hex.
    """
    lines = []
    for *facts, subtype, patient_id, duplicate_of in rows:
        # Version 1.0.0 had the subtype in patient_id. It stays in the hashed text, so that the same images in the same
        # splits keep their fingerprint.
        folder, _, name = patient_id.partition("/")
        lines.append("\t".join((*facts, subtype, f"{folder}/{subtype}/{name}", duplicate_of)))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _spread(values: list[int]) -> dict[str, int]:
    return {"min": min(values), "median": int(statistics.median(values)), "max": max(values)}
