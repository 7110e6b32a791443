"""Tests of collections: the labels from a CSV file or from sub-folders, and files that cannot be read."""

import pytest
from encoded_images import encode, smooth_pixels

from pneumojax.data.collection import load_collection
from pneumojax.errors import UserError

SIZES = [(16, "squeeze")]


@pytest.fixture
def folder(tmp_path):
    """A folder with two images of each class of `folders`, one of them twice, and a file that is no image."""
    folder = tmp_path / "hospital"
    for i, kind in enumerate(("normal", "Bacteria", "VIRUS")):
        (folder / kind).mkdir(parents=True)
        for j in range(2):
            (folder / kind / f"é {j}.png").write_bytes(encode(smooth_pixels(40, 50, 2 * i + j)))
    (folder / "VIRUS" / "again.png").write_bytes((folder / "VIRUS" / "é 0.png").read_bytes())
    (folder / "VIRUS" / "notes.txt").write_text("no image")
    (folder / "VIRUS" / "cut.png").write_bytes(encode(smooth_pixels(40, 50))[:60])
    (folder / "VIRUS" / "empty.png").write_bytes(b"")
    return folder


def write_table(folder, *rows, header="file,label"):
    path = folder.parent / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def test_sub_folders_name_the_classes_whatever_their_case(folder):
    collection = load_collection(folder, "folders", [*SIZES, (8, "pad")])
    split = collection.split
    assert split.name == "hospital"
    assert split.subtypes.tolist() == [1, 1, 2, 2, 2, 0, 0]
    assert split.filenames.tolist()[:3] == ["Bacteria/é 0.png", "Bacteria/é 1.png", "VIRUS/again.png"]
    assert split.images.shape == (7, 16, 16) and collection.images[8, "pad"].shape == (7, 8, 8)
    assert split.duplicate_of.tolist() == ["", "", "", "VIRUS/again.png", "", "", ""]
    assert collection.has_kinds and not collection.has_patients
    assert dict(collection.unreadable).keys() == {"VIRUS/notes.txt", "VIRUS/cut.png", "VIRUS/empty.png"}
    assert dict(collection.unreadable)["VIRUS/empty.png"] == "it is empty"


def test_a_table_gives_labels_and_patients_and_pneumonia_of_unknown_kind_makes_two_classes(folder):
    rows = ("normal/é 0.png,normal,a", "VIRUS/é 0.png,Virus,b", "VIRUS/é 1.png,PNEUMONIA,b", "gone.png,VIRUS,c")
    collection = load_collection(folder, write_table(folder, *rows, header=" File ,LABEL,patient"), SIZES)
    assert collection.split.subtypes.tolist() == [0, 1, 1]
    assert collection.split.patient_ids.tolist() == ["a", "b", "b"]
    assert not collection.has_kinds and collection.has_patients
    assert collection.unreadable == [("gone.png", "there is no file of this name")]


def test_the_fingerprint_depends_on_labels_and_bytes(folder):
    rows = "normal/é 0.png,NORMAL", "VIRUS/é 0.png,VIRUS"
    first = load_collection(folder, write_table(folder, *rows), SIZES).split.fingerprint
    assert first == load_collection(folder, write_table(folder, *rows), SIZES).split.fingerprint
    other = load_collection(folder, write_table(folder, rows[0], "VIRUS/é 0.png,BACTERIA"), SIZES).split.fingerprint
    (folder / "VIRUS" / "é 0.png").write_bytes(encode(smooth_pixels(40, 50, 9)))
    changed = load_collection(folder, write_table(folder, *rows), SIZES).split.fingerprint
    assert len({first, other, changed}) == 3


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a.png,COVID"], "file,label", "row 2: the label 'COVID' is not one of NORMAL"),
        (["a.png"], "file,label", "row 2: the label '' is not one of"),
        (["a.png,NORMAL"], "name,label", "has no column file"),
        ([], "file,label", "has no rows"),
        ([",NORMAL"], "file,label", "row 2: the file is empty"),
        (["../a.png,NORMAL"], "file,label", "is not a path in"),
        (["/etc/passwd,NORMAL"], "file,label", "is not a path in"),
        (["a.png,NORMAL", "a.png,VIRUS"], "file,label", "names a.png 2 times"),
        (["a.png,NORMAL", "VIRUS,VIRUS"], "file,label", "none of its 2 files can be read as an image"),
    ],
)
def test_wrong_tables_are_refused(folder, rows, header, message):
    with pytest.raises(UserError, match=message):
        load_collection(folder, write_table(folder, *rows, header=header), SIZES)


def test_wrong_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load_collection(tmp_path / "gone", "folders", SIZES)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_collection(folder, str(tmp_path / "gone.csv"), SIZES)
    with pytest.raises(UserError, match="Give a CSV file"):
        load_collection(folder, str(folder / "normal" / "é 0.png"), SIZES)
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="Rename the folder"):
        load_collection(tmp_path / "test", "folders", SIZES)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="has no sub-folders"):
        load_collection(tmp_path / "bare", "folders", SIZES)
    (tmp_path / "bare" / "NORMAL").mkdir()
    with pytest.raises(UserError, match="contain no files"):
        load_collection(tmp_path / "bare", "folders", SIZES)
    (tmp_path / "bare" / "covid").mkdir()
    with pytest.raises(UserError, match="covid is not named after a class"):
        load_collection(tmp_path / "bare", "folders", SIZES)
