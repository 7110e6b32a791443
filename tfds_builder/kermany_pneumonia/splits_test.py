"""Properties of the splits that hold for any file names and any byte-identical images."""

import collections
import copy
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from tfds_builder.kermany_pneumonia import SourceError, sources, splits

THOROUGH = hypothesis.settings(max_examples=300, deadline=None, derandomize=True)

# Short lists of numbers and digests, so that patients have several images and images have copies.
NAMES = st.one_of(
    st.builds("person{}_{}_{}".format, st.integers(0, 12), st.sampled_from(["bacteria", "virus"]), st.integers(0, 9)),
    st.builds("{}-{:04d}-{:04d}".format, st.sampled_from(["IM", "NORMAL2-IM"]), st.integers(0, 12), st.integers(0, 9)),
    st.builds(
        "{}-{}-{:04d}".format, st.sampled_from(["BACTERIA", "VIRUS", "NORMAL"]), st.integers(0, 12), st.integers(0, 9)
    ),
)
FILES = st.tuples(st.sampled_from(sources.FOLDERS), NAMES, st.integers(0, 60))


def make_xray(folder, name, digest):
    label = "NORMAL" if name.startswith(("IM-", "NORMAL")) else "PNEUMONIA"
    filename = f"{name}.jpeg"
    image = sources.ImageFile(f"{folder}/{label}/{filename}", folder, label, filename, 1000)
    return splits.make_xray(image, sources.ImageFacts(f"{digest:064x}", 100, 120, 1))


def parse_patient(xray):
    name = sources.parse_name(xray.filename, xray.label)
    return xray.folder, name.series, name.number


@THOROUGH
@hypothesis.given(files=st.lists(FILES, min_size=8, max_size=80, unique_by=lambda file: file[:2]), order=st.randoms())
def test_no_patient_and_no_image_is_in_two_splits_whatever_the_names(files, order):
    xrays = [make_xray(*file) for file in files]
    shuffled = copy.deepcopy(xrays)
    order.shuffle(shuffled)
    try:
        by_split, left_out = splits.assign_splits(xrays)
    except SourceError as error:
        hypothesis.event(str(error).split(":")[0].split(" are named ")[0])
        with pytest.raises(SourceError):
            splits.assign_splits(shuffled)
        return
    hypothesis.event("split")
    assert splits.assign_splits(shuffled)[0] == by_split
    split_of = {}
    for split, members in by_split.items():
        for xray in members:
            # By the id that is stored, by the name that the file has, and by the bytes.
            for key in (xray.patient_id, parse_patient(xray), xray.facts.sha256):
                assert split_of.setdefault(key, split) == split
    stored = sum(len(members) for members in by_split.values())
    assert stored + sum(left_out[reason] for reason in left_out if reason.startswith("left_out")) == len(xrays)
    digests = [xray.facts.sha256 for split in ("train", "validation") for xray in by_split[split]]
    assert len(set(digests)) == len(digests)
    for xray in by_split.get("test", []):
        assert xray.duplicate_of == "" or any(
            other.filename == xray.duplicate_of and other.facts.sha256 == xray.facts.sha256
            for other in by_split["test"]
        )
    metadata = splits.describe_splits(by_split)
    assert metadata["groups"] == {split: len({x.patient_id for x in members}) for split, members in by_split.items()}


@THOROUGH
@hypothesis.given(
    files=st.lists(FILES, min_size=8, max_size=80, unique_by=lambda file: file[:2]),
    links=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 79)), max_size=20),
)
def test_training_patients_who_share_bytes_stay_on_one_side(files, links):
    xrays = [make_xray(*file) for file in files]
    for one, other in links:
        if max(one, other) < len(xrays):
            xrays[one].facts = xrays[other].facts
    named = collections.defaultdict(set)  # Patients, by their file name, of each image.
    for xray in xrays:
        if xray.folder == "train":
            named[xray.facts.sha256].add(parse_patient(xray))
    try:
        by_split, _ = splits.assign_splits(xrays)
    except SourceError:
        return
    sides = {parse_patient(xray): split for split, members in by_split.items() for xray in members}
    for patients in named.values():
        assert len({sides[patient] for patient in patients if patient in sides}) <= 1


@THOROUGH
@hypothesis.given(
    images=st.lists(st.tuples(st.text(max_size=6), st.sampled_from(sources.SUBTYPES)), max_size=120),
    share=st.floats(0, 1),
    salt=st.text(max_size=3),
)
def test_a_share_is_near_the_wish_in_each_stratum_and_needs_no_order(images, share, salt):
    patients, subtypes = [patient for patient, _ in images], [subtype for _, subtype in images]
    chosen = splits.choose_share(patients, subtypes, share, salt)
    held = {patient: frozenset(s for p, s in images if p == patient) for patient in patients}
    sizes = collections.Counter(patients)
    for stratum in set(held.values()):
        members = [patient for patient in held if held[patient] == stratum]
        taken = sum(sizes[patient] for patient in members if patient in chosen)
        total = sum(sizes[patient] for patient in members)
        largest = max(sizes[patient] for patient in members)
        assert taken < total
        # The last patient who was taken, or the one who always stays, may be as large as this.
        assert abs(taken - share * total) <= largest
    mixed = random.Random(0).sample(images, len(images))
    assert splits.choose_share(*zip(*mixed, strict=True), share, salt) == chosen if images else not chosen
