"""The TFDS builder: finds the images of a source, checks them, splits them, and writes their bytes unchanged."""

import errno
import functools
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import requests
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import download_manager, util

from tfds_builder.kermany_pneumonia import phantom, sources, splits
from tfds_builder.kermany_pneumonia.location import VERSION
from tfds_builder.kermany_pneumonia.progress import show_progress

# Mendeley Data rscbjbr9sj, version 2. Its size and sha256 are in checksums.tsv.
DOWNLOAD_NAME = "ChestXRay2017.zip"
DOWNLOAD_URL = (
    "https://data.mendeley.com/public-files/datasets/rscbjbr9sj/files/"
    "f12eaf6d-6023-432f-acc9-80c9d7393433/file_downloaded"
)
SHARD_BYTES = 64 << 20  # TFDS keeps one shard in memory while it writes it.


class Builder(tfds.core.GeneratorBasedBuilder):
    """Chest X-rays of children: `kermany` from a folder, a zip file or a download; `phantom` is synthetic."""

    pkg_dir_path = epath.Path(__file__).parent  # TFDS looks for README.md, CITATIONS.bib and TAGS.txt here.
    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES: ClassVar = {
        "1.1.0": "patient_id is the unit of the split: it no longer holds the subtype. Same splits, same fingerprints.",
        "1.0.0": "First release: original image bytes, splits by patient.",
    }
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name="kermany", description="The real images (Kermany, Zhang, Goldbaum 2018)."),
        tfds.core.BuilderConfig(name="phantom", description="Synthetic radiographs, made by a program."),
    ]

    def __init__(
        self,
        *,
        source: str | os.PathLike[str] | None = None,
        skip_bad_images: bool = False,
        phantom_images: int = phantom.NUM_IMAGES,
        file_format: str | None = None,
        **kwargs: Any,
    ):
        """Makes a builder; see `tfds.core.GeneratorBasedBuilder`.

        Args:
            source: folder or zip file of the real images; None downloads Mendeley v2. Ignored for the phantom set.
            skip_bad_images: leave out images that do not decode, instead of raising an error.
            phantom_images: number of synthetic radiographs.
            file_format: a format of TFDS; None chooses array_record on Linux and parquet on other systems, for which
                array_record has no package.
            **kwargs: arguments of `tfds.core.GeneratorBasedBuilder`: data_dir, config, version.
        """
        self._source = source
        self._skip_bad_images = skip_bad_images
        self._phantom_images = phantom_images
        super().__init__(file_format=file_format, **kwargs)
        if file_format is None and not self.info.initialized:
            self.info.set_file_format("array_record" if sys.platform == "linux" else "parquet", override=True)

    def _info(self) -> tfds.core.DatasetInfo:
        text, scalar = tfds.features.Text, functools.partial(tfds.features.Scalar, np.int32)
        info = self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg", doc="The bytes of the file, JPEG or PNG."),
                    "label": tfds.features.ClassLabel(names=sources.LABELS),
                    "subtype": tfds.features.ClassLabel(names=sources.SUBTYPES),
                    "patient_id": text(
                        doc="Official folder, series and number of the file name; no patient is in two splits."
                    ),
                    "filename": text(doc="Base name, unique within a split."),
                    "height": scalar(doc="Pixels, as EXIF orients the image."),
                    "width": scalar(doc="Pixels, as EXIF orients the image."),
                    "channels": scalar(doc="1 is grey, 3 is RGB."),
                    "sha256": text(doc="Checksum of the image's bytes, in hex."),
                    "duplicate_of": text(doc="First byte-identical file of the test split, or empty."),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://data.mendeley.com/datasets/rscbjbr9sj/2",
            license="CC BY 4.0",
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )
        # Otherwise TFDS looks for this data set in its cloud bucket, and leaves an empty temporary folder each time.
        info.initialize_from_bucket = lambda: None
        return info

    def _log_download_bytes(self) -> None:
        """Prints nothing, because the folder that TFDS would print is temporary."""

    def _log_download_done(self) -> None:
        """Prints nothing, because TFDS would print the same temporary folder here."""

    def _download_and_prepare(
        self, dl_manager: tfds.download.DownloadManager, download_config: tfds.download.DownloadConfig
    ) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="phantom") as scratch,
            sources.Source(self._locate_source(dl_manager, scratch)) as self._images,
        ):
            # TFDS's loop for generators keeps a whole split in memory to shuffle it, and needs TensorFlow above
            # 1,000 MiB. Its loop for shards writes one shard after another. The files need no shuffling, because
            # array_record has random access.
            tfds.core.ShardBasedBuilder._download_and_prepare(self, dl_manager, download_config)

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[Callable]]:
        by_split = self._split_generators(dl_manager)
        writing = show_progress([xray for xrays in by_split.values() for xray in xrays], "writing images")
        return {
            split: [
                functools.partial(self._generate_examples, itertools.islice(writing, length))
                for length in _shard_lengths(xrays)
            ]
            for split, xrays in by_split.items()
        }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, list[splits.Xray]]:
        """Reads every image of the source once, assigns it to a split, and fills in the metadata."""
        xrays, bad_images = [], []
        for image, facts in sources.map_images(self._images):
            if not isinstance(facts, sources.SourceError):
                xrays.append(splits.make_xray(image, facts))
            elif self._skip_bad_images:
                bad_images.append({"filename": image.filename, "reason": str(facts)})
            else:
                raise facts
        by_split, duplicates = splits.assign_splits(xrays)
        needed_bytes = sum(xray.size for xrays in by_split.values() for xray in xrays)
        free_bytes = shutil.disk_usage(self.data_dir).free
        if needed_bytes > free_bytes:
            raise OSError(errno.ENOSPC, f"{needed_bytes >> 20} MiB needed, {free_bytes >> 20} MiB free")
        is_phantom = self.builder_config.name == "phantom"
        self.info.metadata.update(
            **splits.describe_splits(by_split),
            duplicates=duplicates,
            source=name_source(self.builder_config.name, self._source, self._phantom_images),
            listing=self._images.listing,
            layout=self._images.layout,
            synthetic=is_phantom,
            has_test="test" in by_split,
            skipped=dict(self._images.skipped),
            bad_images=bad_images,
        )
        return by_split

    def _generate_examples(self, xrays: Iterator[splits.Xray]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the examples of one shard. Reads the images again, so that only one shard is in memory."""
        for xray in xrays:
            example = {
                "image": self._images.read(xray.path),
                "label": xray.label,
                "subtype": xray.subtype,
                "patient_id": xray.patient_id,
                "filename": xray.filename,
                "height": xray.facts.height,
                "width": xray.facts.width,
                "channels": xray.facts.channels,
                "sha256": xray.facts.sha256,
                "duplicate_of": xray.duplicate_of,
            }
            yield xray.filename, example

    def _locate_source(self, dl_manager: tfds.download.DownloadManager, scratch: str) -> str | os.PathLike[str]:
        if self.builder_config.name == "phantom":
            return phantom.draw_folder(scratch, self._phantom_images)
        return _download(dl_manager) if self._source is None else self._source


def name_source(dataset: str, source: str | os.PathLike[str] | None, phantom_images: int) -> str:
    """Returns the name of a source for the metadata: its base name, without the path on this machine."""
    if dataset == "phantom":
        return f"{phantom_images} synthetic radiographs"
    return DOWNLOAD_NAME if source is None else os.path.basename(os.path.realpath(os.path.expanduser(source)))


def _download(dl_manager: tfds.download.DownloadManager) -> os.PathLike[str]:
    """Downloads Mendeley v2 and checks its sha256.

    Raises:
        SourceError: the server cannot be reached, or the file has a wrong checksum.
    """
    by_hand = f"Or download {DOWNLOAD_NAME} by hand and pass it as source."
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        # Without a network, TFDS tries again for minutes. One request before it fails at once.
        requests.get(DOWNLOAD_URL, stream=True, timeout=30).close()
        print(f"downloading {DOWNLOAD_NAME} (1.2 GB) ...", file=sys.stderr)
        return dl_manager.download(DOWNLOAD_URL)
    except download_manager.NonMatchingChecksumError as error:
        raise sources.SourceError(f"The file from {DOWNLOAD_URL} has a wrong checksum. {by_hand}") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise sources.SourceError(f"The download from {DOWNLOAD_URL} was cut short. Try again. {by_hand}") from error
    except requests.exceptions.RequestException as error:
        raise sources.SourceError(f"There is no connection to {DOWNLOAD_URL}. {by_hand}") from error
    except util.DownloadError as error:  # Its message holds the HTTP status.
        raise sources.SourceError(f"{error} {by_hand}") from error


def _shard_lengths(xrays: list[splits.Xray]) -> list[int]:
    """Partitions a split into shards of about SHARD_BYTES. Returns the number of images in each shard."""
    lengths, filled = [0], 0
    for xray in xrays:
        if filled > SHARD_BYTES:
            lengths.append(0)
            filled = 0
        lengths[-1] += 1
        filled += xray.size
    return lengths
