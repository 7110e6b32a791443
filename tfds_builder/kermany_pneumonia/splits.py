"""Groups images by patient and by identical bytes, and cuts train and validation from the official training images."""

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
        path: where it lies in the source.
        folder: official folder, train (with Kaggle's val) or test.
        label: NORMAL or PNEUMONIA.
        subtype: NORMAL, BACTERIA or VIRUS.
        series, number: the patient as the file name counts.
        filename: base name.
        facts: sha256, height, width, channels.
        size: bytes.
        duplicate_of: filename of the first byte-identical image of the test split, or empty.
    """

    path: str
    folder: str
    label: str
    subtype: str
    series: str
    number: str
    filename: str
    facts: sources.ImageFacts
    size: int
    duplicate_of: str = ""

    @property
    def patient_id(self) -> str:
        """The patient as far as file names tell; numbers start anew in each folder, class and series."""
        return f"{self.folder}/{self.subtype}/{self.series}/{self.number}"


def make_xray(image: sources.ImageFile, facts: sources.ImageFacts) -> Xray:
    """Joins what path, name and bytes say about one image.

    Raises:
        SourceError: no layout knows the file name, or it contradicts the class folder.
    """
    name = sources.parse_name(image.filename, image.label)
    return Xray(
        path=image.path,
        folder="test" if image.folder == "test" else "train",  # Kaggle's val is 16 images moved out of train.
        label=image.label,
        subtype=name.subtype,
        series=name.series,
        number=name.number,
        filename=image.filename,
        facts=facts,
        size=image.size,
    )


def assign_splits(xrays: Iterable[Xray]) -> tuple[dict[str, list[Xray]], dict[str, int]]:
    """Cuts the splits; the result does not depend on the order of the xrays.

    The official test images stay as they are, redundant ones marked in `duplicate_of`. From the training images are
    left out: redundant copies (the first by name stays), bytes that the test split has too, and bytes filed under two
    subtypes, whose truth is unknown.

    Args:
        xrays: every image of the source.

    Returns:
        Xrays of each split sorted by file name (no "test" where the source has none), and how many images were left
        out or marked, by reason.

    Raises:
        SourceError: too few patients to cut a validation split, or two images of one split share a name.
    """
    xrays = sorted(xrays, key=lambda xray: (xray.filename, xray.path))
    test = [xray for xray in xrays if xray.folder == "test"]
    training = [xray for xray in xrays if xray.folder == "train"]
    first_in_test: dict[str, str] = {}
    for xray in test:
        first = first_in_test.setdefault(xray.facts.sha256, xray.filename)
        xray.duplicate_of = "" if first == xray.filename else first

    subtypes_of_bytes = collections.defaultdict(set)
    for xray in xrays:
        subtypes_of_bytes[xray.facts.sha256].add(xray.subtype)
    kept, seen = [], set()
    left_out = dict.fromkeys(("left_out_redundant", "left_out_in_test", "left_out_contradictory"), 0)
    for xray in training:
        digest = xray.facts.sha256
        if digest in first_in_test:
            left_out["left_out_in_test"] += 1
        elif len(subtypes_of_bytes[digest]) > 1:
            left_out["left_out_contradictory"] += 1
        elif digest in seen:
            left_out["left_out_redundant"] += 1
        else:
            seen.add(digest)
            kept.append(xray)

    clusters = _cluster(training)
    in_validation = choose_share(
        [clusters[_person(xray)] for xray in kept], [xray.subtype for xray in kept], VALIDATION_FRACTION
    )
    splits = {
        "train": [xray for xray in kept if clusters[_person(xray)] not in in_validation],
        "validation": [xray for xray in kept if clusters[_person(xray)] in in_validation],
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


def name_person(patient_id: str) -> str:
    """Groups for a split more carefully than patient_id: person135 of bacteria and of virus may be one child."""
    return "/".join(patient_id.split("/")[-2:])


def _person(xray: Xray) -> str:
    return name_person(xray.patient_id)


def _cluster(xrays: list[Xray]) -> dict[str, str]:
    """Joins persons who share an image's bytes: person -> name of the cluster, its first person."""
    parent = {_person(xray): _person(xray) for xray in xrays}

    def find(person: str) -> str:
        while parent[person] != person:
            person = parent[person]
        return person

    person_of_bytes: dict[str, str] = {}
    for xray in xrays:
        one, other = sorted((find(_person(xray)), find(person_of_bytes.setdefault(xray.facts.sha256, _person(xray)))))
        parent[other] = one
    return {person: find(person) for person in parent}


def choose_share(groups: Sequence[str], subtypes: Sequence[str], share: float, salt: str = "") -> set[str]:
    """Chooses whole groups that hold a share of the images.

    Groups are stratified by the subtypes they hold, since half of the persons occur with bacteria and with virus, and
    ordered by the hash of their name. Each stratum gives its first groups until the share of its images is reached, so
    a few images more or less in the source move the border by a group instead of shuffling everything.

    Args:
        groups: name of each image's group.
        subtypes: of each image.
        share: between 0 and 1.
        salt: another one orders the groups otherwise.

    Returns:
        Names of the chosen groups; each stratum keeps one at least.
    """
    held, sizes = collections.defaultdict(set), collections.Counter(groups)
    for group, subtype in zip(groups, subtypes, strict=True):
        held[group].add(subtype)
    strata = collections.defaultdict(list)
    for group, of_group in held.items():
        strata[tuple(sorted(of_group))].append(group)
    chosen = set()
    for members in strata.values():
        members.sort(key=lambda group: hashlib.sha256((salt + group).encode()).hexdigest())
        target = share * sum(sizes[group] for group in members)
        taken = 0
        for group in members[:-1]:
            if taken and abs(taken + sizes[group] - target) > abs(taken - target):
                break
            chosen.add(group)
            taken += sizes[group]
    return chosen


def describe_splits(splits: dict[str, list[Xray]]) -> dict[str, Any]:
    """Counts what the splits hold: images by subtype, patients, RGB images, sizes in pixels, bytes, fingerprints."""
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
    """Identifies what a set holds, whatever the order of its rows.

    Args:
        rows: (split, filename, sha256, label, subtype, patient_id, duplicate_of) of each image.
    """
    return hashlib.sha256("\n".join(sorted("\t".join(row) for row in rows)).encode()).hexdigest()


def _spread(values: list[int]) -> dict[str, int]:
    return {"min": min(values), "median": int(statistics.median(values)), "max": max(values)}
