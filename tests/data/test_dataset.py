"""Tests of prepared data sets and their splits."""

import dataclasses
import json
import logging
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pneumojax.config import DataConfig
from pneumojax.data import dataset
from pneumojax.data.cache import DECODER_VERSION
from pneumojax.data.dataset import ensure_prepared, load_split
from pneumojax.data.decode import decode_image
from pneumojax.errors import UserError
from tfds_builder import kermany_pneumonia
from tfds_builder.kermany_pneumonia import phantom

SPLITS = ("train", "validation", "test")


@pytest.fixture
def config(data_dir, tmp_path):
    """The phantom set in a folder of this test, without decoded images."""
    source = pathlib.Path(kermany_pneumonia.dataset_dir("phantom", data_dir))
    shutil.copytree(source, kermany_pneumonia.dataset_dir("phantom", tmp_path))
    return DataConfig(data_dir=str(tmp_path), image_px=16)


def dataset_dir(config):
    return pathlib.Path(kermany_pneumonia.dataset_dir("phantom", config.data_dir))


def decoded(config):
    folder = dataset_dir(config).parent / "decoded"
    return sorted(folder.iterdir()) if folder.exists() else []


def edit_record(config, change):
    path = dataset_dir(config) / "metadata.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def refuse_to_decode(*args):
    raise AssertionError("decoded again")


def assert_same(one, other):
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.subtypes, other.subtypes)
    np.testing.assert_array_equal(one.patient_ids, other.patient_ids)
    np.testing.assert_array_equal(one.filenames, other.filenames)
    assert (one.name, one.fingerprint) == (other.name, other.fingerprint)


def test_a_split_holds_the_prepared_examples_in_their_order(config):
    import tensorflow_datasets as tfds

    split = load_split(config, "validation")
    builder = tfds.builder_from_directory(dataset_dir(config))
    source = builder.as_data_source("validation", decoders={"image": tfds.decode.SkipDecoding()})
    assert len(split) == len(source)
    for i, example in enumerate(source):
        np.testing.assert_array_equal(split.images[i], decode_image(example["image"], 16))
        assert split.subtypes[i] == example["subtype"]
        assert split.labels("binary")[i] == example["label"]
        assert split.patient_ids[i] == example["patient_id"].decode()
        assert split.filenames[i] == example["filename"].decode()


def test_labels_of_both_tasks(config):
    split = load_split(config, "train")
    assert set(split.subtypes) == {0, 1, 2}
    np.testing.assert_array_equal(split.labels("three_class"), split.subtypes)
    np.testing.assert_array_equal(split.labels("binary"), np.minimum(split.subtypes, 1))
    assert split.labels("binary").dtype == split.labels("three_class").dtype == np.int32


def test_counts_are_those_of_the_record_and_no_patient_is_in_two_splits(config):
    patients = {}
    for name in SPLITS:
        split = load_split(config, name)
        counts = ensure_prepared(config)["counts"][name]
        assert np.bincount(split.subtypes).tolist() == [counts[subtype] for subtype in dataset.SUBTYPES]
        assert len(set(split.filenames)) == len(split)
        patients[name] = set(split.patient_ids)
    assert sum(map(len, patients.values())) == len(set().union(*patients.values()))


def test_a_share_of_the_training_images_is_of_whole_patients_of_each_class(config):
    whole = load_split(config, "train")
    share = load_split(dataclasses.replace(config, train_share=0.25), "train")
    assert_same(share, load_split(dataclasses.replace(config, train_share=0.25), "train"))
    rest = whole.select(~np.isin(whole.filenames, share.filenames))
    assert len(rest) == len(whole) - len(share)
    assert not set(rest.patient_ids) & set(share.patient_ids)
    for subtype in range(3):
        assert abs(np.mean(share.subtypes == subtype) - np.mean(whole.subtypes == subtype)) < 0.1
    assert abs(len(share) / len(whole) - 0.25) < 0.03
    for i in range(len(share)):
        np.testing.assert_array_equal(share.images[i], whole.images[list(whole.filenames).index(share.filenames[i])])
    validation = load_split(dataclasses.replace(config, train_share=0.25), "validation")
    assert_same(validation, load_split(config, "validation"))


def test_patients_of_a_split_are_those_that_its_metadata_count(config):
    for name in SPLITS:
        split = load_split(config, name)
        assert len(set(split.patient_ids)) == ensure_prepared(config)["groups"][name]
        # Bacteria and virus of one number are one patient, both in the splits and in the counts.
        assert set(split.patient_ids) == {"/".join(id.split("/")[:1] + id.split("/")[-2:]) for id in split.patient_ids}


def test_a_second_load_is_mapped_from_the_cache_and_decodes_nothing(config, monkeypatch):
    first = load_split(config, "train")
    monkeypatch.setattr(dataset, "_decode_split", refuse_to_decode)
    second = load_split(config, "train")
    assert_same(first, second)
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable


def test_a_load_from_the_cache_needs_no_package_that_only_preparing_needs(config):
    """An environment for GPUs often has JAX but not TFDS. Decoded images can be copied there."""
    expected = load_split(config, "train")
    program = f"""
import importlib, pkgutil, sys
for name in ("tensorflow", "tensorflow_datasets", "array_record", "grain", "importlib_resources", "etils", "requests"):
    sys.modules[name] = None  # Importing it fails, as if it was not installed.
import tfds_builder.kermany_pneumonia as builder
from pneumojax.config import DataConfig
from pneumojax.data.dataset import ensure_prepared, load_split
config = DataConfig(data_dir={config.data_dir!r}, image_px=16)
assert "jax" not in sys.modules
print(ensure_prepared(config)["fingerprints"]["train"], load_split(config, "train").images.sum())
sys.modules.pop("etils")  # JAX itself needs it.
import pneumojax.data
for module in pkgutil.iter_modules(pneumojax.data.__path__):
    importlib.import_module(f"pneumojax.data.{{module.name}}")
for name in ("images", "location", "phantom", "preparation", "progress", "sources", "splits"):
    importlib.import_module(f"tfds_builder.kermany_pneumonia.{{name}}")
"""
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.split() == [expected.fingerprint, str(expected.images.sum())]


def test_each_size_and_each_fingerprint_has_its_own_cache(config, monkeypatch):
    load_split(config, "validation")
    assert load_split(DataConfig(data_dir=config.data_dir, image_px=20), "validation").images.shape[1:] == (20, 20)
    assert len(decoded(config)) == 2
    edit_record(config, lambda record: record["fingerprints"].update(validation="0" * 64))
    assert load_split(config, "validation").fingerprint == "0" * 64
    assert len(decoded(config)) == 3
    monkeypatch.setattr(dataset, "_decode_split", refuse_to_decode)
    with pytest.raises(AssertionError, match="decoded again"):
        load_split(config, "train")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"])
def test_a_write_cut_short_leaves_no_cache(config, monkeypatch, error, caplog):
    def write_half(path, images):
        np.asarray(images[:1]).tofile(path)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(dataset.np, "save", write_half)
        if isinstance(error, OSError):
            # On a full disk, the run continues without a cache.
            split = load_split(config, "validation")
            assert "the decoded images cannot be cached" in caplog.text
        else:
            with pytest.raises(KeyboardInterrupt):
                load_split(config, "validation")
    assert decoded(config) == []
    whole = load_split(config, "validation")
    assert [path.name for path in decoded(config)] == [f"validation-16px-v{DECODER_VERSION}-{whole.fingerprint[:16]}"]
    if isinstance(error, OSError):
        assert_same(split, whole)


def test_a_read_only_data_folder_is_read_without_a_cache(config, monkeypatch, caplog):
    def refuse(self, *args, **kwargs):
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with caplog.at_level(logging.WARNING):
        split = load_split(config, "validation")
    assert "Read-only file system" in caplog.text
    assert split.images.shape == (len(split), 16, 16)
    assert decoded(config) == []


def test_a_cache_that_is_deleted_while_it_is_written_costs_nothing_but_the_cache(config, monkeypatch):
    write_cache = dataset.write_cache

    def write_and_lose(folder, *content):
        write_cache(folder, *content)
        shutil.rmtree(folder)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "write_cache", write_and_lose)
        split = load_split(config, "validation")
    assert decoded(config) == []
    assert_same(split, load_split(config, "validation"))


def test_two_processes_that_make_the_cache_at_once_do_not_disturb_each_other(config, monkeypatch, caplog):
    decode_split = dataset._decode_split
    others = []

    def decode_while_another_process_finishes(*args):
        monkeypatch.setattr(dataset, "_decode_split", decode_split)
        result = decode_split(*args)
        others.append(load_split(config, "validation"))
        return result

    monkeypatch.setattr(dataset, "_decode_split", decode_while_another_process_finishes)
    assert_same(load_split(config, "validation"), others[0])
    assert len(decoded(config)) == 1
    assert "could not keep" not in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: (cache / "images.npy").write_bytes(b""),
        lambda cache: (cache / "images.npy").write_bytes((cache / "images.npy").read_bytes()[:1000]),
        lambda cache: (cache / "images.npy").write_bytes(b"nonsense"),
        lambda cache: (cache / "images.npy").unlink(),
        lambda cache: np.save(cache / "images.npy", np.load(cache / "images.npy")[1:]),
        lambda cache: np.save(cache / "images.npy", np.load(cache / "images.npy").astype(np.float32)),
        lambda cache: (cache / "examples.json").write_text('{"subtype": [0, 1'),
        lambda cache: (cache / "examples.json").write_text("{}"),
    ],
    ids=["empty", "cut", "nonsense", "gone", "short", "float", "json cut", "json empty"],
)
def test_a_damaged_cache_is_named_and_mended_by_its_removal(config, damage):
    mapped = load_split(config, "validation")
    whole = dataclasses.replace(mapped, images=np.array(mapped.images))  # A memory map is truncated with its file.
    (cache,) = decoded(config)
    damage(cache)
    with pytest.raises(UserError, match="are damaged .* Delete that folder") as caught:
        load_split(config, "validation")
    assert str(cache) in str(caught.value)
    shutil.rmtree(cache)
    assert_same(load_split(config, "validation"), whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text('{"fingerprint": "12'),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"fingerprint": "12"}'),
    ],
    ids=["gone", "cut", "list", "no fingerprints"],
)
def test_a_damaged_record_is_named(config, damage):
    record = dataset_dir(config) / "metadata.json"
    damage(record)
    with pytest.raises(UserError, match="is damaged .* Prepare the data set again with --overwrite") as caught:
        load_split(config, "train")
    assert str(caught.value).startswith(str(record))


def test_damaged_records_of_the_data_set_are_told_and_not_cached(config):
    (shard,) = dataset_dir(config).glob("*-validation.array_record*")
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read .* --verify"):
        load_split(config, "validation")
    assert decoded(config) == []


def test_a_data_set_that_is_not_prepared_is_told_with_the_command(tmp_path):
    with pytest.raises(UserError, match="kermany is not prepared in .* Prepare it first: .* --source=PATH --data_dir="):
        load_split(DataConfig(dataset="kermany", data_dir=str(tmp_path)), "train")


def test_a_source_without_a_test_folder_has_no_test_split(tmp_path):
    source = phantom.draw_folder(tmp_path / "drawn", 40)
    shutil.rmtree(source / "test")
    kermany_pneumonia.prepare("kermany", tmp_path / "data", source=source)
    config = DataConfig(dataset="kermany", data_dir=str(tmp_path / "data"), image_px=16)
    assert len(load_split(config, "validation"))
    with pytest.raises(UserError, match=r"has no test split: its source \(chest_xray\) had no folder of that name"):
        load_split(config, "test")


def test_the_phantom_set_is_drawn_on_first_use(tmp_path, monkeypatch):
    calls = []

    def prepare(dataset, data_dir):
        calls.append((dataset, pathlib.Path(data_dir)))
        folder = pathlib.Path(kermany_pneumonia.dataset_dir(dataset, data_dir))
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text('{"fingerprint": "f", "fingerprints": {"train": "t"}}')

    monkeypatch.setattr(kermany_pneumonia, "prepare", prepare)
    for _ in range(2):
        assert ensure_prepared(DataConfig(data_dir=str(tmp_path)))["fingerprint"] == "f"
    assert calls == [("phantom", tmp_path)]
