"""Tests of the builder on synthetic radiographs: stored examples, sources, and download."""

import hashlib
import http.server
import io
import json
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest
from PIL import Image
from source_files import NUM_IMAGES, read_files, read_split, write_zip

from tfds_builder.kermany_pneumonia import (
    VERSION,
    SourceError,
    dataset_dir,
    default_data_dir,
    prepare,
    read_metadata,
    sources,
    verify,
)

tfds = pytest.importorskip("tensorflow_datasets")
from tensorflow_datasets.core.download import checksums  # noqa: E402

from tfds_builder.kermany_pneumonia import kermany_pneumonia_dataset_builder as builder_module  # noqa: E402


def test_image_bytes_and_facts_are_those_of_the_files(chest_xray, tmp_path):
    Image.new("RGB", (31, 17)).save(chest_xray / "train" / "NORMAL" / "IM-9999-0001.PNG", "PNG")
    directory = prepare("kermany", tmp_path / "data", source=chest_xray)
    # A file of the test folder may have the same name as one in train.
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
    """A local server that replaces the server of Mendeley. Its zip file contains synthetic radiographs."""
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
    server.status = 500  # The server is not used again because the data set exists.
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
