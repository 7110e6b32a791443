"""Loads a prepared data set as memory-mapped arrays. Images are decoded once for each size and then cached."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from pneumojax.config import CLASS_NAMES, DataConfig
from pneumojax.data.cache import DECODER_VERSION, read_cache, write_cache
from pneumojax.errors import UserError
from tfds_builder import kermany_pneumonia

logger = logging.getLogger(__name__)

SUBTYPES = CLASS_NAMES["three_class"]

# The columns of an example that are kept in addition to its image.
COLUMNS = ("subtype", "patient_id", "filename", "height", "width", "channels", "duplicate_of")

# The fields of a split that have an entry for each image.
SPLIT_COLUMNS = ("images", "subtypes", "patient_ids", "filenames", "heights", "widths", "channels", "duplicate_of")


@dataclasses.dataclass(frozen=True)
class Split:
    """A split of the data set. Its images are sorted by file name.

    Attributes:
      name: train, validation or test.
      images: [N, H, W] uint8, 0..255, grey; memory-mapped and read-only if they come from the cache.
      subtypes: [N] int32, index into NORMAL, BACTERIA, VIRUS.
      patient_ids: [N] strings. No patient is in two splits.
      filenames: [N] strings, unique in the split.
      heights, widths: [N] int32, size of the original images in pixels.
      channels: [N] int32, channels of the original images: 1 is grey, 3 is RGB.
      duplicate_of: [N] strings, the first byte-identical file of the split, or empty.
      fingerprint: sha256 of the split's file names, labels, patients and image bytes.
    """

    name: str
    images: np.ndarray
    subtypes: np.ndarray
    patient_ids: np.ndarray
    filenames: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    channels: np.ndarray
    duplicate_of: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.subtypes)

    def labels(self, task: str) -> np.ndarray:
        """Returns the [N] int32 class indices of a task, binary (1 = pneumonia) or three_class."""
        return self.subtypes if task == "three_class" else (self.subtypes > 0).astype(np.int32)

    def select(self, chosen: np.ndarray) -> "Split":
        """Returns a split with some of the images. It keeps the fingerprint of the whole split.

        Args:
          chosen: [N] bool, or indices of the images.
        """
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in SPLIT_COLUMNS})


def ensure_prepared(config: DataConfig) -> dict:
    """Reads the metadata of a data set. Prepares the synthetic data set first if it does not exist yet.

    Args:
      config: the data set and its folder.

    Returns:
      The content of metadata.json: fingerprints, counts, source, and more. If the config has folds, the fingerprints
      and counts describe the splits of its fold.

    Raises:
      UserError: the data set is not prepared, its metadata are damaged, or it is too small for the folds.
    """
    metadata = _read_prepared(config)
    if config.folds is None:
        return metadata
    splits = [_load_fold(config, name, config.folds) for name in ("train", "validation", "test")]
    fingerprints = {split.name: split.fingerprint for split in splits}
    counts = {
        split.name: dict(zip(SUBTYPES, np.bincount(split.subtypes, minlength=3).tolist(), strict=True))
        for split in splits
    }
    return metadata | {"fingerprint": _hash(fingerprints), "fingerprints": fingerprints, "counts": counts}


def _read_prepared(config: DataConfig) -> dict:
    directory = _dataset_dir(config)
    if not directory.exists():
        if config.dataset != "phantom":
            where = f" --data_dir={config.data_dir}" if config.data_dir else ""
            raise UserError(
                f"{config.dataset} is not prepared in {directory}. Prepare it first: "
                f"scripts/run scripts/prepare_data.py --source=PATH{where}"
            )
        logger.info("Preparing the synthetic radiographs (once) in %s", directory)
        try:
            kermany_pneumonia.prepare("phantom", _data_dir(config))
        except kermany_pneumonia.SourceError as error:
            raise UserError(str(error)) from error
    path = directory / "metadata.json"
    try:
        metadata = json.loads(path.read_text())
        metadata["fingerprint"], metadata["fingerprints"]["train"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Prepare the data set again with --overwrite.") from error
    return metadata


def load_split(config: DataConfig, name: str) -> Split:
    """Loads one split at the image size of the config, from the cache if possible.

    If the config has folds, the splits of its fold are loaded instead of the prepared ones: see `folds.split_fold`.
    If train_share is below 1, the training split has only this share of the images: see `folds.choose_patients`.

    Args:
      config: the data set, its folder, the image size and the fold.
      name: train, validation or test.

    Returns:
      The split.

    Raises:
      UserError: the data set is not prepared or damaged, has no such split, or is too small for the folds or for
        train_share.
    """
    split = _load_whole_split(config, name) if config.folds is None else _load_fold(config, name, config.folds)
    if name != "train" or config.train_share == 1:
        return split
    from pneumojax.data.folds import choose_patients

    return split.select(choose_patients(split.patient_ids, split.subtypes, config.train_share))


def load_training_images(config: DataConfig) -> Split:
    """Loads all official training images. They are the prepared train and validation splits; folds are made from them.

    Args:
      config: the data set, its folder and the image size.

    Returns:
      A split with the name out_of_fold, because in a cross-validation each image is scored by a run that did not train
      on it.

    Raises:
      UserError: the data set is not prepared or damaged.
    """
    parts = [_load_whole_split(config, name) for name in ("train", "validation")]
    fingerprint = _hash({part.name: part.fingerprint for part in parts})
    return _join(parts, [np.ones(len(part), bool) for part in parts], "out_of_fold", fingerprint)


def _load_fold(config: DataConfig, name: str, folds: int) -> Split:
    from pneumojax.data.folds import find_series, split_fold

    parts = [_load_whole_split(config, part) for part in ("train", "validation")]
    patient_ids = np.concatenate([part.patient_ids for part in parts])
    subtypes = np.concatenate([part.subtypes for part in parts])
    series = find_series(np.concatenate([part.filenames for part in parts])) if config.folds_by == "series" else None
    chosen = split_fold(patient_ids, subtypes, folds, config.fold, series)[name]
    if len(np.unique(subtypes[chosen] > 0)) < 2:
        raise UserError(f"folds={folds} is too many: a {name} split of this data set would have one class only.")
    masks = np.split(chosen, [len(parts[0])])
    filenames = [part.filenames[mask].tolist() for part, mask in zip(parts, masks, strict=True)]
    # The fingerprints of the prepared splits cover the labels, patients and bytes of all these files.
    fingerprint = _hash({"split": name, "of": [part.fingerprint for part in parts], "filenames": filenames})
    return _join(parts, masks, name, fingerprint)


def _join(parts: Sequence[Split], masks: Sequence[np.ndarray], name: str, fingerprint: str) -> Split:
    """Joins selected images of several splits. Each mask is [N] bool for one of them."""
    chosen = [part.select(mask) for part, mask in zip(parts, masks, strict=True)]
    columns = {column: np.concatenate([getattr(part, column) for part in chosen]) for column in SPLIT_COLUMNS}
    return Split(name=name, fingerprint=fingerprint, **columns)


def _hash(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load_whole_split(config: DataConfig, name: str) -> Split:
    metadata = _read_prepared(config)
    if name not in metadata["fingerprints"]:
        raise UserError(
            f"the data set in {_dataset_dir(config)} has no {name} split: "
            f"its source ({metadata['source']}) had no folder of that name."
        )
    fingerprint = metadata["fingerprints"][name]
    cache = _cache_dir(config, name, fingerprint)
    cached = read_cache(cache, config.image_px)
    if cached is None:
        images, examples = _decode_split(config, name)
        try:
            write_cache(cache, images, examples)
        except OSError as error:
            # The run can continue without a cache, for example if the folder is read-only or the disk is full.
            logger.warning("the decoded images cannot be cached in %s (%s): each start decodes them", cache, error)
            return _make_split(name, images, examples, fingerprint)
        cached = read_cache(cache, config.image_px) or (images, examples)
    return _make_split(name, *cached, fingerprint)


def _data_dir(config: DataConfig) -> pathlib.Path:
    return pathlib.Path(config.data_dir or kermany_pneumonia.default_data_dir()).expanduser().resolve()


def _dataset_dir(config: DataConfig) -> pathlib.Path:
    return pathlib.Path(kermany_pneumonia.dataset_dir(config.dataset, _data_dir(config)))


def _cache_dir(config: DataConfig, name: str, fingerprint: str) -> pathlib.Path:
    how = "" if config.resize == "squeeze" else f"{config.resize}-"
    folder = f"{name}-{config.image_px}px-{how}v{DECODER_VERSION}-{fingerprint[:16]}"
    return _dataset_dir(config).parent / "decoded" / folder


def _decode_split(config: DataConfig, name: str) -> tuple[np.ndarray, dict[str, list]]:
    """Decodes the images of a split. Returns them, [N, H, W] uint8, with {column: list of N values}."""
    try:
        import tensorflow_datasets as tfds  # Imported here, as a start from the cache does not need it.
    except ImportError as error:
        packed = f"no decoded {name} images of {config.image_px} px in {_data_dir(config)}"
        raise UserError(
            f"{packed}, and tensorflow_datasets is missing. Bring them with scripts/pack_data.py."
        ) from error

    from pneumojax.data.decode import decode_images

    directory = _dataset_dir(config)
    try:
        builder = tfds.builder_from_directory(directory)
        source = builder.as_data_source(split=name, decoders={"image": tfds.decode.SkipDecoding()})
        columns: dict[str, list] = {column: [] for column in COLUMNS}
        files = []
        for example in source:
            files.append(example["image"])
            for column, values in columns.items():
                value = example[column]
                values.append(value.decode() if isinstance(value, bytes) else int(value))
    except Exception as error:  # TFDS and array_record raise many types for damaged files.
        raise UserError(
            f"the data set in {directory} cannot be read ({error}). "
            f"Check it with scripts/prepare_data.py --verify, or prepare it again with --overwrite."
        ) from error
    logger.info("Decoding %d %s images to %d px (once)", len(files), name, config.image_px)
    return decode_images(files, columns["filename"], config.image_px, config.resize), columns


def _make_split(name: str, images: np.ndarray, examples: dict[str, list], fingerprint: str) -> Split:
    return Split(
        name=name,
        images=images,
        subtypes=np.array(examples["subtype"], np.int32),
        patient_ids=np.array(examples["patient_id"]),
        filenames=np.array(examples["filename"]),
        heights=np.array(examples["height"], np.int32),
        widths=np.array(examples["width"], np.int32),
        channels=np.array(examples["channels"], np.int32),
        duplicate_of=np.array(examples["duplicate_of"]),
        fingerprint=fingerprint,
    )
