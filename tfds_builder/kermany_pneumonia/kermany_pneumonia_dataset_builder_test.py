"""Tests of the builder on small phantom sets; no real X-ray is needed, and no TensorFlow."""

import dataclasses
import errno
import fcntl
import functools
import hashlib
import http.server
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import types
import zipfile

import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums

from tfds_builder.kermany_pneumonia import (
    VERSION,
    SourceError,
    dataset_dir,
    default_data_dir,
    phantom,
    prepare,
    read_metadata,
    sources,
    splits,
    verify,
)
from tfds_builder.kermany_pneumonia import kermany_pneumonia_dataset_builder as builder_module

NUM_IMAGES = 60


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> pathlib.Path:
    """A phantom set in Kaggle's layout; not to be changed."""
    return phantom.draw_folder(tmp_path_factory.mktemp("drawn"), NUM_IMAGES)


@pytest.fixture
def chest_xray(drawn, tmp_path) -> pathlib.Path:
    """A copy of the phantom set that a test may change."""
    return shutil.copytree(drawn, tmp_path / "source" / "chest_xray")


def read_split(directory: pathlib.Path, split: str) -> list[dict]:
    builder = tfds.builder_from_directory(directory)
    return list(builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}))


def write_zip(path: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read_files(folder: pathlib.Path, prefix: str = "") -> dict[str, bytes]:
    return {
        prefix + path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What is stored


def test_image_bytes_and_facts_are_those_of_the_files(chest_xray, tmp_path):
    Image.new("RGB", (31, 17)).save(chest_xray / "train" / "NORMAL" / "IM-9999-0001.PNG", "PNG")
    directory = prepare("kermany", tmp_path / "data", source=chest_xray)
    # A file of the test folder may have the name of one in train.
    files = {(path.parts[-3] == "test", path.name): path for path in chest_xray.rglob("*.*")}
    for split in ("train", "validation", "test"):
        for example in read_split(directory, split):
            path = files[split == "test", example["filename"].decode()]
            label = sources.LABELS[example["label"]]
            subtype = sources.SUBTYPES[example["subtype"]]
            folder = "test" if split == "test" else "train"
            assert example["image"] == path.read_bytes()
            assert example["sha256"].decode() == hashlib.sha256(path.read_bytes()).hexdigest()
            assert path.parent.name == label
            name = sources.parse_name(path.name, label)
            assert name.subtype == subtype
            assert example["patient_id"].decode() == f"{folder}/{name.series}/{name.number}"
            with Image.open(path) as image:
                assert (example["width"], example["height"]) == image.size
                assert example["channels"] == len(image.getbands())
    assert "tensorflow" not in sys.modules


def test_metadata_is_plain_json_and_names_no_folder_of_this_machine(drawn, tmp_path):
    directory = prepare("kermany", tmp_path / "data", source=drawn)
    metadata = json.loads((dataset_dir("kermany", tmp_path / "data") / "metadata.json").read_text())
    assert metadata == read_metadata(directory)
    assert metadata["source"] == "chest_xray"
    assert metadata["layout"] == "Kaggle"
    assert metadata["has_test"]
    assert not metadata["synthetic"]
    assert sum(sum(counts.values()) for counts in metadata["counts"].values()) == NUM_IMAGES - 1
    assert metadata["duplicates"]["left_out_redundant"] == metadata["duplicates"]["marked_in_test"] == 1
    for path in directory.glob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert "incomplete" not in path.read_text()


def test_phantom_is_deterministic_synthetic_and_has_all_splits(tmp_path):
    records = [read_metadata(prepare("phantom", tmp_path / name, phantom_images=40)) for name in ("one", "two")]
    assert records[0] == records[1]
    assert records[0]["synthetic"]
    assert records[0]["has_test"]
    assert all(count for counts in records[0]["counts"].values() for count in counts.values())


def test_importing_the_package_is_light():
    code = "import sys, tfds_builder.kermany_pneumonia; print({'tensorflow_datasets', 'jax'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_default_data_dir_is_that_of_tfds(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
    assert dataset_dir("kermany") == pathlib.Path("/somewhere/kermany_pneumonia/kermany", VERSION)
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_data_dir() == pathlib.Path.home() / "tensorflow_datasets"


# Where the images are found


def test_zip_folder_and_every_level_give_the_same_set(drawn, tmp_path):
    flat = shutil.copytree(drawn, tmp_path / "flat")
    kaggle_zip = write_zip(
        tmp_path / "archive.zip",
        read_files(drawn, "chest_xray/")
        | read_files(drawn, "chest_xray/chest_xray/")
        | {"chest_xray/__MACOSX/train/NORMAL/._IM-0001-0001.jpeg": b"litter", "chest_xray/.DS_Store": b"litter"},
    )
    given = {"above": drawn.parent, "itself": drawn, "flat": flat, "zip": kaggle_zip}
    records = {name: read_metadata(prepare("kermany", tmp_path / name, source=path)) for name, path in given.items()}
    assert len({metadata["fingerprint"] for metadata in records.values()}) == 1
    assert len({metadata["listing"] for metadata in records.values()}) == 1
    assert records["zip"]["source"] == "archive.zip"
    assert records["zip"]["skipped"] == {
        "second copy of the set": NUM_IMAGES,
        "litter (__MACOSX, .DS_Store and the like)": 2,
    }


def test_v3_zip_is_found_and_retinal_scans_are_passed_over(drawn, tmp_path):
    files = {}
    for number, path in enumerate(sorted(drawn.glob("t*/*/*.jpeg"))):
        subtype = next((name for name in ("BACTERIA", "VIRUS") if name.lower() in path.name), "NORMAL")
        name = f"{path.parts[-3]}/{path.parts[-2]}/{subtype}-{7000 + number // 2}-{number:04d}.JPEG"
        files[f"CellData/chest_xray/{name}"] = path.read_bytes()
    files["CellData/OCT/train/CNV/CNV-1-1.jpeg"] = files["CellData/OCT/train/NORMAL/NORMAL-1-1.jpeg"] = b"scan"
    metadata = read_metadata(
        prepare("kermany", tmp_path / "data", source=write_zip(tmp_path / "ZhangLabData.zip", files))
    )
    assert metadata["layout"] == "Mendeley v3"
    assert metadata["skipped"] == {"retinal scan (OCT)": 2}


def test_zip_paths_cannot_escape(drawn, tmp_path):
    files = read_files(drawn, "chest_xray/")
    files |= {"../../escape/train/NORMAL/IM-0001-0001.jpeg": b"x", "/escape/train/NORMAL/IM-0002-0001.jpeg": b"x"}
    path = write_zip(tmp_path / "evil.zip", files)
    metadata = read_metadata(prepare("kermany", tmp_path / "data", source=path))
    assert metadata["skipped"] == {"path leads out of the zip": 2}
    assert not list(tmp_path.parent.rglob("escape"))


def test_links_are_followed_but_not_in_circles(drawn, tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "chest_xray").symlink_to(drawn)
    (folder / "loop").symlink_to(folder)
    (folder / "up").symlink_to("/")
    with sources.Source(folder) as source:
        assert len(source.images) == NUM_IMAGES


def test_source_without_test_folder_gives_no_test_split(chest_xray, tmp_path):
    shutil.rmtree(chest_xray / "test")
    directory = prepare("kermany", tmp_path / "data", source=chest_xray)
    assert set(read_metadata(directory)["counts"]) == {"train", "validation"}
    assert not read_metadata(directory)["has_test"]
    assert verify(directory) == []


@pytest.mark.parametrize(
    ("filename", "label", "expected"),
    [
        ("person135_bacteria_642.jpeg", "PNEUMONIA", ("BACTERIA", "person", "135")),
        ("person63_virus_123_2.jpg", "PNEUMONIA", ("VIRUS", "person", "63")),
        ("IM-0115-0001.jpeg", "NORMAL", ("NORMAL", "IM", "0115")),
        ("IM-0429-0001-0002.JPG", "NORMAL", ("NORMAL", "IM", "0429")),
        ("NORMAL2-IM-1427-0001.png", "NORMAL", ("NORMAL", "NORMAL2-IM", "1427")),
        ("BACTERIA-7422-0001.jpeg", "PNEUMONIA", ("BACTERIA", "patient", "7422")),
        ("NORMAL-1049278-0001.jpeg", "NORMAL", ("NORMAL", "patient", "1049278")),
    ],
)
def test_file_names(filename, label, expected):
    assert sources.parse_name(filename, label) == sources.Name(*expected)


# Splits


def make_xrays(people: int = 400) -> list[splits.Xray]:
    """A set of records without images: v2 names, half of the persons with bacteria and virus, a few shared bytes."""
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
    assert 150 < sum(numbers) / len(numbers) < 250  # Not the first of the 400 by name.
    random.Random(1).shuffle(xrays)
    assert splits.assign_splits(xrays)[0] == by_split


def test_adding_a_few_images_hardly_moves_the_cut():
    xrays = make_xrays()
    validation = {xray.filename for xray in splits.assign_splits(xrays)[0]["validation"]}
    fewer = {xray.filename for xray in splits.assign_splits(xrays[7:])[0]["validation"]}
    assert len(validation ^ fewer) < 0.15 * len(validation)


def test_identical_bytes_stay_once_and_tie_their_persons():
    xrays = make_xrays()
    for offset in range(1, 60):  # Persons far apart share an image; the first by name stays.
        xrays[-offset] = share_bytes(xrays[-offset], xrays[-offset - 60])
    by_split, left_out = splits.assign_splits(xrays)
    kept = {xray.filename: split for split, members in by_split.items() for xray in members}
    assert left_out["left_out_redundant"] == 59
    assert xrays[-61].filename in kept
    assert xrays[-1].filename not in kept
    tied = make_xrays(40)
    # Two normals with two images each: the second images are the same picture.
    repeat = functools.partial(dataclasses.replace, facts=sources.ImageFacts("f" * 64, 1, 1, 1))
    tied += [repeat(xray, filename=xray.filename.replace("-0001.", "-0002.")) for xray in tied[-20:-10]]
    by_split, _ = splits.assign_splits(tied)
    sides = {split for split, members in by_split.items() for xray in members if xray in tied[-30:-20]}
    assert len(sides) == 1


def test_patients_are_counted_as_they_are_split():
    """Patient 1 has bacteria and virus; an image of patient 3 is byte-identical to one of patient 2."""
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
    assert sum(metadata["groups"].values()) - 3 == len(set(ids)) == 60  # 40 with pneumonia, 20 without.


def test_splits_keep_the_members_and_fingerprints_of_version_1_0_0():
    """Published figures rest on them. The values are those that version 1.0.0 computed for these images."""
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


# Bad input


def spoil_missing(folder):
    shutil.rmtree(folder)


def spoil_empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def spoil_no_xrays(folder):
    spoil_empty(folder)
    (folder / "notes.txt").write_text("none")


def spoil_pointing_below(folder):
    (folder / "train").rename(folder.parent / "train")
    shutil.rmtree(folder)
    (folder.parent / "train").rename(folder)


def spoil_class_folder(folder):
    shutil.rmtree(folder / "train" / "NORMAL")


def spoil_name(folder):
    first_image(folder).rename(folder / "train" / "NORMAL" / "holiday.jpeg")


def spoil_class(folder):
    first_image(folder).rename(folder / "train" / "PNEUMONIA" / "IM-0001-0001.jpeg")


def spoil_truncated(folder):
    path = first_image(folder)
    path.write_bytes(path.read_bytes()[:-2000])


def spoil_zero(folder):
    first_image(folder).write_bytes(b"")


def spoil_text(folder):
    first_image(folder).write_text("not an image")


def spoil_second_set(folder):
    shutil.rmtree(folder / "val")
    shutil.rmtree(folder / "test")
    shutil.copytree(folder / "train", folder / "one" / "train")
    (folder / "two").mkdir()
    (folder / "train").rename(folder / "two" / "train")


def first_image(folder: pathlib.Path) -> pathlib.Path:
    return sorted((folder / "train" / "NORMAL").iterdir())[3]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_missing, "chest_xray does not exist"),
        (spoil_empty, "chest_xray is empty"),
        (spoil_no_xrays, "holds no chest X-rays"),
        (spoil_pointing_below, "point to the folder above"),
        (spoil_class_folder, "class folder train/NORMAL of chest_xray is missing"),
        (spoil_name, "No layout knows the file name holiday.jpeg. Known are: person1"),
        (spoil_class, "IM-0001-0001.jpeg is in a PNEUMONIA folder, but its name says NORMAL"),
        (spoil_truncated, "-0001.jpeg in chest_xray does not decode: .*truncated"),
        (spoil_zero, "-0001.jpeg in chest_xray is empty"),
        (spoil_text, "-0001.jpeg in chest_xray does not decode: it is neither JPEG nor PNG"),
        (spoil_second_set, "holds two image sets, one and two"),
    ],
)
def test_bad_source_is_a_sentence_and_leaves_nothing(chest_xray, tmp_path, spoil, sentence):
    spoil(chest_xray)
    with pytest.raises(SourceError, match=sentence):
        prepare("kermany", tmp_path / "data", source=chest_xray)
    assert not (tmp_path / "data").exists()


def test_bad_zip_is_a_sentence(drawn, tmp_path):
    data = write_zip(tmp_path / "good.zip", read_files(drawn, "chest_xray/")).read_bytes()
    name = b"chest_xray/train/NORMAL/"
    inside = data.index(name) + 3000
    bad = {
        "cut.zip": (data[: len(data) // 2], "cut.zip is cut short or damaged"),
        "text.zip": (b"hello", "neither a folder nor a zip"),
        "member.zip": (data[:inside] + b"\0\1\2\3\4" + data[inside + 5 :], "chest_xray/train/NORMAL/.* can't be read"),
    }
    for filename, (content, sentence) in bad.items():
        (tmp_path / filename).write_bytes(content)
        with pytest.raises(SourceError, match=sentence):
            prepare("kermany", tmp_path / "data", source=tmp_path / filename)
        assert not (tmp_path / "data").exists()


def test_zip_inside_is_pointed_to(drawn, tmp_path):
    inner = write_zip(tmp_path / "ChestXRay2017.zip", read_files(drawn))
    with pytest.raises(SourceError, match=r"holds ChestXRay2017\.zip: point to that file"):
        prepare("kermany", tmp_path / "data", source=tmp_path)
    outer = write_zip(tmp_path / "outer.zip", {"inner.zip": inner.read_bytes()})
    with pytest.raises(SourceError, match=r"holds inner\.zip: unpack that first"):
        prepare("kermany", tmp_path / "data", source=outer)


def test_bad_images_are_skipped_counted_and_listed_when_asked(chest_xray, tmp_path):
    path = first_image(chest_xray)
    path.write_bytes(path.read_bytes()[:-2000])
    metadata = read_metadata(prepare("kermany", tmp_path / "data", source=chest_xray, skip_bad_images=True))
    assert [image["filename"] for image in metadata["bad_images"]] == [path.name]
    assert "truncated" in metadata["bad_images"][0]["reason"]
    assert str(tmp_path) not in metadata["bad_images"][0]["reason"]
    assert sum(metadata["counts"]["train"].values()) + sum(metadata["counts"]["validation"].values()) == 43


def test_phantom_takes_no_source_and_dataset_is_known(drawn, tmp_path):
    with pytest.raises(SourceError, match="takes no source"):
        prepare("phantom", tmp_path, source=drawn)
    with pytest.raises(SourceError, match="one of kermany, phantom"):
        prepare("imagenet", tmp_path)


# The data folder


def test_same_source_is_accepted_another_refused_and_overwrite_replaces(drawn, chest_xray, tmp_path):
    data_dir = tmp_path / "data"
    directory = prepare("kermany", data_dir, source=drawn)
    written = (directory / "metadata.json").stat().st_mtime_ns
    assert prepare("kermany", data_dir, source=write_zip(tmp_path / "same.zip", read_files(drawn))) == directory
    assert (directory / "metadata.json").stat().st_mtime_ns == written
    shutil.rmtree(chest_xray / "test")
    with pytest.raises(SourceError, match="--overwrite"):
        prepare("kermany", data_dir, source=chest_xray)
    with pytest.raises(SourceError, match="--overwrite"):
        prepare("kermany", data_dir)
    prepare("kermany", data_dir, source=chest_xray, overwrite=True)
    assert not read_metadata(directory)["has_test"]
    assert os.listdir(directory.parent) == [VERSION]


@pytest.mark.parametrize(
    ("error", "expected", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), SourceError, "data: No space left on device.$"),
        # As array_record says it.
        (
            RuntimeError("write() failed: No space left on device; writing F"),
            SourceError,
            "data: No space left on devi",
        ),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_failed_overwrite_keeps_the_earlier_set(drawn, chest_xray, tmp_path, monkeypatch, error, expected, sentence):
    directory = prepare("kermany", tmp_path / "data", source=drawn)
    before = read_files(tmp_path / "data")

    def fail(*_):
        raise error

    monkeypatch.setattr(builder_module.Builder, "_generate_examples", fail)
    with pytest.raises(expected, match=sentence):
        prepare("kermany", tmp_path / "data", source=chest_xray, overwrite=True)
    assert read_files(tmp_path / "data") == before
    assert verify(directory) == []


def test_failed_move_keeps_the_earlier_set(drawn, tmp_path, monkeypatch):
    prepare("kermany", tmp_path / "data", source=drawn)
    before = read_files(tmp_path / "data")
    rename = pathlib.Path.rename

    def fail_into_place(self, target):
        if "incomplete" in str(self) and self.name == VERSION:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail_into_place)
    with pytest.raises(SourceError, match="Input/output error"):
        prepare("kermany", tmp_path / "data", source=drawn, overwrite=True)
    assert read_files(tmp_path / "data") == before


def test_full_disk_read_only_folder_and_file_in_the_way_name_the_data_folder(drawn, tmp_path, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("a file")
    with pytest.raises(SourceError, match=f"data folder {in_the_way}: Not a directory"):
        prepare("kermany", in_the_way, source=drawn)
    assert in_the_way.read_text() == "a file"
    with monkeypatch.context() as patch:
        for free, sentence in ((1000, "MiB needed, 0 MiB free"), (-1, "Not enough disk space")):
            patch.setattr(shutil, "disk_usage", lambda _, free=free: types.SimpleNamespace(free=free))
            with pytest.raises(SourceError, match=f"data folder {tmp_path}/data: .*{sentence}"):
                prepare("kermany", tmp_path / "data", source=drawn)

    def refuse(*_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(SourceError, match=f"data folder {tmp_path}/data: Read-only"):
        prepare("kermany", tmp_path / "data", source=drawn)
    assert not (tmp_path / "data").exists()


def test_leftovers_of_a_killed_run_are_removed(drawn, tmp_path):
    leftover = tmp_path / "data" / "kermany_pneumonia" / "kermany" / "incomplete.killed"
    leftover.mkdir(parents=True)
    (leftover / "shard").write_text("half")
    directory = prepare("kermany", tmp_path / "data", source=drawn)
    assert os.listdir(directory.parent) == [VERSION]


def test_two_at_once_give_one_good_set(drawn, tmp_path):
    code = "import sys; from tfds_builder.kermany_pneumonia import prepare; prepare('kermany', *sys.argv[1:])"
    command = [sys.executable, "-c", code, tmp_path / "data", drawn]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    directory = dataset_dir("kermany", tmp_path / "data")
    assert verify(directory) == []
    assert os.listdir(directory.parent) == [VERSION]


def test_second_process_waits_for_the_first(drawn, tmp_path):
    folder = dataset_dir("kermany", tmp_path / "data").parent
    folder.mkdir(parents=True)
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    code = "import sys; from tfds_builder.kermany_pneumonia import prepare; prepare('kermany', *sys.argv[1:])"
    command = [sys.executable, "-c", code, tmp_path / "data", drawn]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert "waiting for another process" in process.stderr.readline()
    assert os.listdir(folder) == []
    os.close(handle)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert os.listdir(folder) == [VERSION]


# Verification


@pytest.fixture(scope="session")
def prepared(drawn, tmp_path_factory) -> pathlib.Path:
    """A prepared set; not to be changed."""
    return prepare("kermany", tmp_path_factory.mktemp("prepared"), source=drawn)


def test_verify_finds_a_flipped_bit_a_cut_and_a_missing_shard(prepared, tmp_path):
    assert verify(prepared) == []
    directory = shutil.copytree(prepared, tmp_path / "set")
    shard = next(directory.glob("*train*"))
    original = shard.read_bytes()
    image = read_split(prepared, "train")[5]["image"]
    place = original.index(image) + len(image) // 2
    shard.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
    assert any("train split" in problem for problem in verify(directory))
    shard.write_bytes(original[: len(original) // 2])
    assert any("train split" in problem for problem in verify(directory))
    shard.unlink()
    assert any("train split" in problem for problem in verify(directory))


def test_bytes_that_change_between_reading_and_writing_are_noticed(drawn, tmp_path, monkeypatch):
    read = sources.Source.read
    seen = set()

    def read_otherwise_the_second_time(self, path):
        data = read(self, path)
        is_first = path not in seen
        seen.add(path)
        return data if is_first else data + b"x"

    monkeypatch.setattr(sources.Source, "read", read_otherwise_the_second_time)
    with pytest.raises(SourceError, match=r"differ from what was read.* images of the train split have other bytes"):
        prepare("kermany", tmp_path / "data", source=drawn)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda metadata: metadata.update(fingerprint="0"), "fingerprint of the data set"),
        (lambda metadata: metadata["fingerprints"].update(test="0"), "fingerprint of the test split"),
        (lambda metadata: metadata["counts"]["validation"].update(VIRUS=99), "validation split holds"),
        (lambda metadata: metadata.clear(), "are damaged"),
    ],
)
def test_verify_compares_with_the_metadata(prepared, tmp_path, change, sentence):
    directory = shutil.copytree(prepared, tmp_path / "set")
    metadata = read_metadata(directory)
    change(metadata)
    (directory / "metadata.json").write_text(json.dumps(metadata))
    assert any(sentence in problem for problem in verify(directory))


def test_verify_finds_patients_and_bytes_in_two_splits(prepared, tmp_path):
    """Gives the set the train shard as validation shard, with a metadata that agrees."""
    directory = shutil.copytree(prepared, tmp_path / "set")
    train, validation = (next(directory.glob(f"*-{split}.*")) for split in ("train", "validation"))
    shutil.copyfile(train, validation)
    info = json.loads((directory / "dataset_info.json").read_text())
    by_name = {split["name"]: split for split in info["splits"]}
    by_name["validation"]["shardLengths"] = by_name["train"]["shardLengths"]
    (directory / "dataset_info.json").write_text(json.dumps(info))
    problems = "\n".join(verify(directory))
    assert "The patient train/" in problems
    assert "The image with sha256" in problems


def test_verify_of_nothing_is_a_sentence(tmp_path):
    assert "There is no prepared data set in" in verify(tmp_path)[0]


# Download


class _Handler(http.server.BaseHTTPRequestHandler):
    content = b""
    missing_bytes = 0
    status = 200

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("Content-Disposition", 'attachment; filename="ChestXRay2017.zip"')
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) - self.missing_bytes])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(drawn, tmp_path, monkeypatch):
    """A server on this machine in Mendeley's place, with the phantom set as the registered zip."""
    _Handler.content = write_zip(tmp_path / "served.zip", read_files(drawn, "chest_xray/")).read_bytes()
    _Handler.missing_bytes, _Handler.status = 0, 200
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/file_downloaded"
        registered = checksums.UrlInfo(
            size=len(_Handler.content),
            checksum=hashlib.sha256(_Handler.content).hexdigest(),
            filename="ChestXRay2017.zip",
        )
        monkeypatch.setattr(builder_module, "DOWNLOAD_URL", url)
        monkeypatch.setattr(builder_module.Builder, "url_infos", {url: registered})
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield _Handler
        running.shutdown()


def test_download_is_checked_and_kept(server, drawn, tmp_path):
    directory = prepare("kermany", tmp_path / "data")
    assert read_metadata(directory)["source"] == "ChestXRay2017.zip"
    kept = [path for path in (tmp_path / "data" / "downloads").rglob("*") if path.stat().st_size > 10_000]
    assert [path.read_bytes() for path in kept] == [server.content]
    server.status = 500  # Not asked again: the set is there.
    assert prepare("kermany", tmp_path / "data") == directory


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"content": b"another file"}, "has a wrong checksum"),
        ({"missing_bytes": 1000}, "cut short"),
        ({"status": 404}, "HTTP code: 404"),
    ],
)
def test_bad_download_is_a_sentence_and_leaves_nothing(server, tmp_path, change, sentence):
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(SourceError, match=sentence):
        prepare("kermany", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_no_connection_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(builder_module, "DOWNLOAD_URL", "http://127.0.0.1:9/file_downloaded")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(SourceError, match=r"There is no connection to http://127\.0\.0\.1:9"):
        prepare("kermany", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_registered_checksum_is_that_of_the_download():
    assert set(builder_module.Builder.url_infos) == {builder_module.DOWNLOAD_URL}


# The drawings


def test_radiographs_vary_and_are_not_told_apart_by_brightness(drawn):
    with Image.open(io.BytesIO(next(drawn.rglob("*bacteria*")).read_bytes())) as image:
        assert image.format == "JPEG"
    sizes, modes, means = set(), set(), {label: [] for label in sources.LABELS}
    for path in drawn.rglob("*.jpeg"):
        with Image.open(path) as image:
            sizes.add(image.size)
            modes.add(image.mode)
            means[path.parent.name].append(sum(image.convert("L").resize((8, 8)).tobytes()) / 64)
    assert len(sizes) > NUM_IMAGES // 2
    assert modes == {"L", "RGB"}
    assert min(means["PNEUMONIA"]) < max(means["NORMAL"])
    assert min(means["NORMAL"]) < max(means["PNEUMONIA"])
