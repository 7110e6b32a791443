"""Finds the chest X-rays in a folder or zip file of any known layout, and parses their file names."""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator

from tfds_builder.kermany_pneumonia.images import SWAPPED_SIDES, open_image, read_orientation
from tfds_builder.kermany_pneumonia.progress import map_in_threads

LABELS = ("NORMAL", "PNEUMONIA")
SUBTYPES = ("NORMAL", "BACTERIA", "VIRUS")
FOLDERS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
OCT_CLASSES = ("CNV", "DME", "DRUSEN")  # v3's zip also has retinal scans in OCT/train/{CNV,DME,DRUSEN,NORMAL}.

# The largest image that is accepted, 50 megapixels of 16 bits, takes 100 MB without any compression.
MAX_FILE_BYTES = 128 << 20

# The patterns of file names. Series and number identify a patient as far as file names can. In v2, the numbers start
# again in each folder, class and series.
LAYOUTS = {
    "person1_bacteria_2": re.compile(
        r"(?P<series>person)(?P<number>\d+)_(?P<subtype>bacteria|virus)_\d+(_\d+)*", re.ASCII
    ),
    "IM-0115-0001 (also NORMAL2-IM-...)": re.compile(r"(?P<series>(NORMAL2-)?IM)-(?P<number>\d+)(-\d+)+", re.ASCII),
    "BACTERIA-7422-0001 (also VIRUS-, NORMAL-)": re.compile(
        r"(?P<subtype>BACTERIA|VIRUS|NORMAL)-(?P<number>\d+)(-\d+)+", re.ASCII
    ),
}


class SourceError(ValueError):
    """An error of the source or of the data folder that the user can correct. The message is a full sentence."""


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A file of the source with an image, and the parts of its path.

    Attributes:
        path: path relative to the source, with slashes.
        folder: the official folder of the file: train, val or test.
        label: the class folder of the file: NORMAL or PNEUMONIA.
        filename: base name of the file.
        size: size of the file in bytes.
    """

    path: str
    folder: str
    label: str
    filename: str
    size: int


@dataclasses.dataclass(frozen=True)
class Name:
    """The parts of a file name: the subtype, and the series and number that identify the patient."""

    subtype: str
    series: str
    number: str


def parse_name(filename: str, label: str) -> Name:
    """Parses a file name of Mendeley v2, Kaggle or Mendeley v3.

    Args:
        filename: base name, such as `person1_bacteria_2.jpeg`.
        label: class folder of the file, NORMAL or PNEUMONIA.

    Raises:
        SourceError: the name has no known pattern, or it contradicts the class folder.
    """
    stem = filename.rsplit(".", 1)[0]
    for pattern in LAYOUTS.values():
        match = pattern.fullmatch(stem)
        if match:
            parts = match.groupdict()
            name = Name(
                subtype=parts.get("subtype", "NORMAL").upper(),
                series=parts.get("series", "patient"),
                number=parts["number"],
            )
            if (name.subtype == "NORMAL") != (label == "NORMAL"):
                raise SourceError(f"{filename} is in a {label} folder, but its name says {name.subtype}.")
            return name
    raise SourceError(f"The file name {filename} has no known pattern. Known patterns are: {', '.join(LAYOUTS)}.")


class Source:
    """An open folder or zip file. It lists its chest X-rays and reads their bytes.

    A zip file is not unpacked. Its members are read into memory, so a malicious path cannot write outside of a folder.

    Attributes:
        name: base name of the folder or zip file.
        images: all chest X-rays, sorted by official folder, class and name.
        skipped: {reason: number of files that are ignored}.
        layout: Mendeley v2, Kaggle or Mendeley v3.
        listing: sha256 of the folders, classes, names and sizes. It is the same for a zip file and its unpacked folder.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Opens the source and lists its images.

        Args:
            path: a folder at any level above `train`, or a zip file.

        Raises:
            SourceError: the path does not exist, or is not a complete set of chest X-rays.
        """
        self._path = pathlib.Path(path).expanduser()
        self.name = self._path.resolve().name
        self._zip: zipfile.ZipFile | None = None
        if self._path.is_dir():
            files = _list_folder(self._path)
        elif self._path.exists():
            self._zip = _open_zip(self._path)
            # Paths in zip files that were made on Windows may have backslashes.
            self._members = {member.filename.replace("\\", "/"): member for member in self._zip.infolist()}
            files = [(name, member.file_size) for name, member in self._members.items() if not name.endswith("/")]
        else:
            raise SourceError(f"The source {path} does not exist.")
        try:
            self._find_images(files)
        except SourceError:
            self.close()
            raise

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the zip file. Does nothing for a folder."""
        if self._zip:
            self._zip.close()

    def read(self, path: str) -> bytes:
        """Returns the bytes of one image.

        Raises:
            SourceError: the file or the member of the zip file can't be read, or is larger than MAX_FILE_BYTES.
        """
        try:
            data = self._read_member(self._zip, self._members[path]) if self._zip else _read_file(self._path / path)
        except Exception as error:  # zipfile raises many types for a damaged file.
            raise SourceError(f"{path} in {self.name} can't be read: {error}.") from error
        return data

    def _read_member(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
        # A few compressed bytes can expand to gigabytes. zipfile limits the output of a read only for deflate.
        _check_size(member.file_size)
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise OSError("its compression is not supported; use deflate")
        with archive.open(member) as file:
            # Without this limit, a member that is longer than its header declares would be decompressed completely.
            return file.read(member.file_size)

    def _find_images(self, files: list[tuple[str, int]]) -> None:
        self.skipped: collections.Counter[str] = collections.Counter()
        # {root: images in its class folders}. Kaggle's zip file has two such roots.
        roots: dict[tuple[str, ...], list[ImageFile]] = collections.defaultdict(list)
        split_paths = [(tuple(path.split("/")), size) for path, size in sorted(files)]
        oct_roots = {parts[:-3] for parts, _ in split_paths if len(parts) >= 3 and parts[-2].upper() in OCT_CLASSES}
        for parts, size in split_paths:
            reason = _litter(parts)
            if not reason and parts[:-3] in oct_roots:
                reason = "retinal scan (OCT)"
            if not reason and not (len(parts) >= 3 and parts[-3].lower() in FOLDERS and parts[-2].upper() in LABELS):
                reason = "outside the class folders"
            if reason:
                self.skipped[reason] += 1
                continue
            image = ImageFile("/".join(parts), parts[-3].lower(), parts[-2].upper(), parts[-1], size)
            roots[parts[:-3]].append(image)
        if not roots:
            raise SourceError(self._nothing_found(files))
        self.images = self._keep_one_copy(roots)
        self._check_class_folders()
        if any(re.match(r"(BACTERIA|VIRUS|NORMAL)-\d", image.filename) for image in self.images):
            self.layout = "Mendeley v3"
        elif any(image.folder == "val" for image in self.images):
            self.layout = "Kaggle"
        else:
            self.layout = "Mendeley v2"
        lines = sorted(f"{image.folder}/{image.label}/{image.filename} {image.size}" for image in self.images)
        self.listing = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

    def _keep_one_copy(self, roots: dict[tuple[str, ...], list[ImageFile]]) -> list[ImageFile]:
        """Keeps only the outermost copy of the images. Kaggle's zip file has a second one in chest_xray/chest_xray."""
        outermost = min(roots, key=lambda root: (len(root), root))
        images = roots.pop(outermost)
        known = {(image.folder, image.label, image.filename) for image in images}
        for root, copies in roots.items():
            if root[: len(outermost)] != outermost:
                one, other = "/".join(outermost), "/".join(root)
                raise SourceError(f"{self.name} holds two image sets, {one} and {other}; point to one of them.")
            for copy in copies:
                if (copy.folder, copy.label, copy.filename) not in known:
                    raise SourceError(
                        f"{copy.path} in {self.name} belongs to a second copy of the images, "
                        "and is missing from the first; the source looks incomplete."
                    )
                self.skipped["second copy of the set"] += 1
        return sorted(images, key=lambda image: (image.folder, image.label, image.filename))

    def _check_class_folders(self) -> None:
        present = {(image.folder, image.label) for image in self.images}
        for folder in FOLDERS:
            if folder == "train" or any((folder, label) in present for label in LABELS):
                for label in LABELS:
                    if (folder, label) not in present:
                        raise SourceError(f"The class folder {folder}/{label} of {self.name} is missing or empty.")

    def _nothing_found(self, files: list[tuple[str, int]]) -> str:
        """Returns the error message for a source without chest X-rays, with advice where they may be."""
        if not files:
            return f"The source {self._path} is empty."
        message = f"The source {self._path} holds no chest X-rays in train/NORMAL and train/PNEUMONIA"
        tops = {path.split("/")[0].upper() for path, _ in files}
        if tops & set(LABELS):
            return f"{message}; point to the folder above it."
        zips = sorted(path for path, _ in files if path.lower().endswith(".zip"))
        if zips:
            advice = "unpack that first" if self._zip else "point to that file"
            return f"{message}, but it holds {zips[0]}: {advice}."
        return f"{message}."


def _litter(parts: tuple[str, ...]) -> str | None:
    """Returns the reason to ignore a file because of its path, or None."""
    if parts == ("",):
        return "no name"
    if parts[0] == "" or ".." in parts:
        return "path leads out of the zip"
    if "__MACOSX" in parts or any(part.startswith(".") for part in parts):
        return "litter (__MACOSX, .DS_Store and the like)"
    if not parts[-1].lower().endswith(IMAGE_SUFFIXES):
        return "not an image by its name"
    return None


def _open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    no_zip = SourceError(f"The source {path} is neither a folder nor a zip file.")
    if not path.is_file():  # A pipe, for example: opening it would wait forever.
        raise no_zip
    try:
        with path.open("rb") as file:
            begins_as_zip = file.read(4) == b"PK\x03\x04"
        return zipfile.ZipFile(path)
    except OSError as error:
        raise SourceError(f"The source {path} can't be read: {error.strerror}.") from error
    except Exception as error:  # zipfile raises many types for a damaged file, from BadZipFile to UnicodeDecodeError.
        if not begins_as_zip:
            raise no_zip from error
        raise SourceError(f"The zip file {path} is cut short or damaged: {error}.") from error


def _read_file(path: pathlib.Path) -> bytes:
    if path.exists() and not path.is_file():  # A pipe, for example: reading it would wait forever.
        raise OSError("it is not a regular file")
    _check_size(path.stat().st_size)
    return path.read_bytes()


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise OSError(f"it has {size:,} bytes, more than the limit of {MAX_FILE_BYTES >> 20} MiB")


def _list_folder(folder: pathlib.Path) -> list[tuple[str, int]]:
    """Lists (relative path, size in bytes) of every file. Follows links to folders, but enters each folder once."""
    files = []
    seen = set()
    top = folder.resolve()

    def fail(error: OSError) -> None:
        raise SourceError(f"The folder {error.filename} can't be read: {error.strerror}.") from error

    for directory, subfolders, filenames in os.walk(folder, followlinks=True, onerror=fail):
        subfolders.sort()
        for subfolder in list(subfolders):
            target = pathlib.Path(directory, subfolder).resolve()
            if target in seen or top.is_relative_to(target):
                subfolders.remove(subfolder)
            seen.add(target)
        for filename in filenames:
            path = pathlib.Path(directory, filename)
            # A broken link is listed with size 0. Reading it will fail.
            size = path.stat().st_size if path.exists() else 0
            files.append((path.relative_to(folder).as_posix(), size))
    return files


@dataclasses.dataclass
class ImageFacts:
    """Properties of an image that are read from its bytes.

    Attributes:
        sha256: checksum of the bytes, in hex.
        height, width: size in pixels, after the rotation by the EXIF orientation.
        channels: 1 is grey, 3 is RGB.
    """

    sha256: str
    height: int
    width: int
    channels: int


def read_facts(source: Source, path: str) -> ImageFacts:
    """Reads one image, decodes it completely and returns its facts.

    Args:
        source: an open source.
        path: path of the image in the source.

    Raises:
        SourceError: the file can't be read, `images.open_image` does not accept it, or Pillow can't decode it.
    """
    data = source.read(path)
    if not data:
        raise SourceError(f"{path} in {source.name} is empty (zero bytes).")
    try:
        image = open_image(data)
        image.load()
    except Exception as error:  # Pillow raises many types for damaged bytes, from SyntaxError to struct.error.
        raise SourceError(f"{path} in {source.name} does not decode: {error}.") from error
    width, height = image.size
    if read_orientation(image) in SWAPPED_SIDES:
        width, height = height, width
    return ImageFacts(hashlib.sha256(data).hexdigest(), height, width, len(image.getbands()))


def map_images(source: Source) -> Iterator[tuple[ImageFile, ImageFacts | SourceError]]:
    """Reads all images of a source in threads.

    Yields:
        (image, facts) for each image, in order. If reading the image failed, its error is yielded instead of facts.
    """

    def describe(image: ImageFile) -> ImageFacts | SourceError:
        try:
            return read_facts(source, image.path)
        except SourceError as error:
            return error

    yield from zip(source.images, map_in_threads(describe, source.images, "reading images"), strict=True)
