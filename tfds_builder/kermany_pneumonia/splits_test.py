"""Tests of properties of the splits, for generated file names and byte-identical images."""

import collections
import copy
import dataclasses
import functools
import random

import hypothesis
import hypothesis.strategies as st
import pytest
from PIL import Image
from source_files import read_split

from tfds_builder.kermany_pneumonia import (
    SourceError,
    prepare,
    sources,
    splits,
)


def make_xrays(people: int = 400) -> list[splits.Xray]:
    """Makes metadata without images, with the file names of Mendeley v2.

    There are `people` patients with pneumonia, half of them with images of both bacteria and virus, and half as many
    patients without pneumonia.
    """
    rng = random.Random(0)
    xrays = []
    for person in range(people):
        for subtype in ("BACTERIA", "VIRUS") if person % 2 else (rng.choice(["BACTERIA", "VIRUS"]),):
            for _ in range(rng.choice([1, 1, 2, 5])):
                name = f"person{person}_{subtype.lower()}_{len(xrays)}.jpeg"
                image = sources.ImageFile(f"train/PNEUMONIA/{name}", "train", "PNEUMONIA", name, 1000)
                xrays.append(splits.make_xray(image, sources.ImageFacts(f"{len(xrays):064x}", 100, 120, 1)))
    for number in range(people // 2):
        name = f"IM-{number:04d}-0001.jpeg"
        image = sources.ImageFile(f"train/NORMAL/{name}", "train", "NORMAL", name, 1000)
        xrays.append(splits.make_xray(image, sources.ImageFacts(f"{len(xrays):064x}", 100, 120, 1)))
    return xrays


def share_bytes(xray: splits.Xray, other: splits.Xray) -> splits.Xray:
    return dataclasses.replace(xray, facts=dataclasses.replace(xray.facts, sha256=other.facts.sha256))


def test_splits_follow_persons_strata_and_fraction_but_not_order():
    xrays = make_xrays()
    by_split, _ = splits.assign_splits(xrays)
    for subtype in sources.SUBTYPES:
        counts = {split: sum(xray.subtype == subtype for xray in by_split[split]) for split in by_split}
        assert counts["validation"] / sum(counts.values()) == pytest.approx(0.15, abs=0.015)
    patients = {split: {xray.patient_id for xray in by_split[split]} for split in by_split}
    assert not patients["train"] & patients["validation"]
    numbers = [int(patient.split("/")[2]) for patient in patients["validation"] if "/person/" in patient]
    assert 150 < sum(numbers) / len(numbers) < 250  # This is not the first of the 400 names.
    random.Random(1).shuffle(xrays)
    assert splits.assign_splits(xrays)[0] == by_split


def test_adding_a_few_images_hardly_moves_the_cut():
    xrays = make_xrays()
    validation = {xray.filename for xray in splits.assign_splits(xrays)[0]["validation"]}
    fewer = {xray.filename for xray in splits.assign_splits(xrays[7:])[0]["validation"]}
    assert len(validation ^ fewer) < 0.15 * len(validation)


def test_identical_bytes_stay_once_and_tie_their_persons():
    xrays = make_xrays()
    for offset in range(1, 60):  # Patients with distant names have the same image. The first by name is kept.
        xrays[-offset] = share_bytes(xrays[-offset], xrays[-offset - 60])
    by_split, left_out = splits.assign_splits(xrays)
    kept = {xray.filename: split for split, members in by_split.items() for xray in members}
    assert left_out["left_out_redundant"] == 59
    assert xrays[-61].filename in kept
    assert xrays[-1].filename not in kept
    tied = make_xrays(40)
    # Two NORMAL patients with two images each. Their second images are equal.
    repeat = functools.partial(dataclasses.replace, facts=sources.ImageFacts("f" * 64, 1, 1, 1))
    tied += [repeat(xray, filename=xray.filename.replace("-0001.", "-0002.")) for xray in tied[-20:-10]]
    by_split, _ = splits.assign_splits(tied)
    sides = {split for split, members in by_split.items() for xray in members if xray in tied[-30:-20]}
    assert len(sides) == 1


def test_patients_are_counted_as_they_are_split():
    """Patient 1 has bacteria and virus. An image of patient 3 is byte-identical to one of patient 2."""
    names = ["person1_bacteria_1", "person1_virus_2", "person2_virus_3", "person3_virus_4", "person3_virus_5"]
    xrays = make_xrays(40)
    for i, name in enumerate(names):
        image = sources.ImageFile(f"test/PNEUMONIA/{name}.jpeg", "test", "PNEUMONIA", f"{name}.jpeg", 1000)
        xrays.append(splits.make_xray(image, sources.ImageFacts(f"test{min(i, 3)}", 100, 120, 1)))
    xrays[-2] = share_bytes(xrays[-2], xrays[-3])
    image = sources.ImageFile("test/NORMAL/IM-0001-0001.jpeg", "test", "NORMAL", "IM-0001-0001.jpeg", 1000)
    xrays.append(splits.make_xray(image, sources.ImageFacts("normal", 100, 120, 1)))
    by_split, _ = splits.assign_splits(xrays)
    patients = {xray.filename: xray.patient_id for xray in by_split["test"]}
    assert patients == {
        "person1_bacteria_1.jpeg": "test/person/1",
        "person1_virus_2.jpeg": "test/person/1",
        "person2_virus_3.jpeg": "test/person/2",
        "person3_virus_4.jpeg": "test/person/2",
        "person3_virus_5.jpeg": "test/person/2",
        "IM-0001-0001.jpeg": "test/IM/0001",
    }
    metadata = splits.describe_splits(by_split)
    assert metadata["groups"]["test"] == 3
    ids = [xray.patient_id for xray in by_split["train"] + by_split["validation"]]
    assert sum(metadata["groups"].values()) - 3 == len(set(ids)) == 60  # 40 patients have pneumonia, 20 do not.


def test_a_patient_who_is_as_far_above_the_share_as_below_is_chosen():
    patient_ids = [f"train/person/{i // 2}" for i in range(8)]
    # The target is 3 of 8 images: one patient has 2, two have 4.
    assert len(splits.choose_share(patient_ids, ["VIRUS"] * 8, 3 / 8)) == 2


def test_rgb_images_of_each_split_are_counted():
    xrays = make_xrays(40)
    xrays = [dataclasses.replace(xray, facts=dataclasses.replace(xray.facts, channels=3)) for xray in xrays[:9]] + xrays
    assert splits.describe_splits({"train": xrays[:12], "validation": xrays[12:]})["rgb"] == {
        "train": 9,
        "validation": 0,
    }


def test_splits_keep_the_members_and_fingerprints_of_version_1_0_0():
    """The splits must not change, because published results depend on them. The values are from version 1.0.0."""
    metadata = splits.describe_splits(splits.assign_splits(make_xrays())[0])
    assert {split: fingerprint[:16] for split, fingerprint in metadata["fingerprints"].items()} == {
        "train": "3c6fa2c0eb4b3f1b",
        "validation": "bc1a61a30de18154",
    }
    assert metadata["fingerprint"].startswith("f863d81fe35364a0")


def test_training_image_that_test_has_too_is_left_out_and_test_copies_are_marked():
    xrays = make_xrays(100)
    in_test = [
        dataclasses.replace(
            xray, folder="test", patient_id=xray.patient_id.replace("train/", "test/"), path=xray.filename
        )
        for xray in xrays[::9] + xrays[-2:]
    ]
    in_test[-1] = share_bytes(in_test[-1], in_test[-2])
    by_split, left_out = splits.assign_splits(xrays + in_test)
    stored = {xray.facts.sha256 for xray in by_split["train"] + by_split["validation"]}
    assert not stored & {xray.facts.sha256 for xray in by_split["test"]}
    assert left_out["left_out_in_test"] == len({xray.facts.sha256 for xray in in_test})
    assert left_out["marked_in_test"] == 1
    assert [x.duplicate_of for x in by_split["test"] if x.filename == in_test[-1].filename][-1] == in_test[-2].filename


def test_bytes_filed_under_two_subtypes_are_left_out():
    xrays = make_xrays(100)
    bacteria, virus = (next(xray for xray in xrays if xray.subtype == name) for name in ("BACTERIA", "VIRUS"))
    xrays[xrays.index(virus)] = share_bytes(virus, bacteria)
    by_split, left_out = splits.assign_splits(xrays)
    names = {xray.filename for members in by_split.values() for xray in members}
    assert left_out["left_out_contradictory"] == 2
    assert not names & {bacteria.filename, virus.filename}


def test_resized_copies_of_the_images_get_the_same_splits(drawn, chest_xray, tmp_path):
    for path in chest_xray.rglob("*.jpeg"):
        with Image.open(path) as image:
            small = image.convert("L").resize((64, 64))
        small.save(path)
    names = []
    for name, source in (("full", drawn), ("small", chest_xray)):
        directory = prepare("kermany", tmp_path / name, source=source)
        names.append([example["filename"] for example in read_split(directory, "validation")])
    assert names[0] == names[1]


THOROUGH = hypothesis.settings(max_examples=300, deadline=None, derandomize=True)

# The lists of numbers and digests are short, so that patients have several images and images have copies.
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
            # Compared by the stored id, by the file name, and by the bytes.
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
    named = collections.defaultdict(set)  # The patient of each image, by its file name.
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
        # The last patient who was chosen, or the one who is never chosen, may have this share.
        assert abs(taken - share * total) <= largest
    mixed = random.Random(0).sample(images, len(images))
    assert splits.choose_share(*zip(*mixed, strict=True), share, salt) == chosen if images else not chosen
