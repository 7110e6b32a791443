"""Writes sources of images and prepared data sets."""

import json
import pathlib
import shutil
import zipfile

NUM_IMAGES = 60


def read_split(directory: pathlib.Path, split: str) -> list[dict]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    return list(builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}))


def write_zip(path: pathlib.Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read_files(folder: pathlib.Path, prefix: str = "") -> dict[str, bytes]:
    return {
        prefix + path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def first_image(folder: pathlib.Path) -> pathlib.Path:
    return sorted((folder / "train" / "NORMAL").iterdir())[3]


def edit_metadata(data_dir, copy, edit):
    """Copies a data folder, and changes the metadata of the copy in place with `edit`. Returns the path of the copy."""
    shutil.copytree(data_dir, copy)
    (path,) = copy.rglob("metadata.json")
    metadata = json.loads(path.read_text())
    edit(metadata)
    path.write_text(json.dumps(metadata))
    return str(copy)
