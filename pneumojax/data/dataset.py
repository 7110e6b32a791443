"""A prepared data set as arrays: decoded once for each size, kept beside the data set, memory-mapped on reading."""

import dataclasses
import hashlib
import json
import logging
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from pneumojax.config import CLASS_NAMES, DataConfig
from pneumojax.data.cache import read_cache, write_cache
from pneumojax.data.decode import DECODER_VERSION, decode_images
from pneumojax.errors import UserError
from tfds_builder import kermany_pneumonia

logger = logging.getLogger(__name__)

SUBTYPES = CLASS_NAMES["three_class"]

# What is kept of each example beside its image.
COLUMNS = ("subtype", "patient_id", "filename", "height", "width", "channels", "duplicate_of")

# What a split has of each image.
SPLIT_COLUMNS = ("images", "subtypes", "patient_ids", "filenames", "heights", "widths", "channels", "duplicate_of")


@dataclasses.dataclass(frozen=True)
class Split:
    """One split, in the order of the prepared data set.

    Attributes:
      name: train, validation or test.
      images: [N, H, W] uint8, 0..255, grey; memory-mapped, read-only.
      subtypes: [N] int32, index into NORMAL, BACTERIA, VIRUS.
      patient_ids: N strings; no patient is in two splits.
      filenames: N strings, unique in the split.
      heights, widths: [N] int32, of the original files, in pixels.
      channels: [N] int32, of the original files: 1 is grey, 3 is RGB.
      duplicate_of: N strings: the first byte-identical file of the split, or empty.
      fingerprint: sha256 of the split's names, labels, patients and image bytes.
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
        """[N] int32 class indices of the task (binary: 1 = pneumonia)."""
        return self.subtypes if task == "three_class" else (self.subtypes > 0).astype(np.int32)

    def select(self, chosen: np.ndarray) -> "Split":
        """The chosen images, by [N] bool or by indices; the fingerprint stays that of the whole."""
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in SPLIT_COLUMNS})


def read_record(config: DataConfig) -> dict:
    """The prepared data set's record: fingerprints, counts, source. Draws the phantom set if it is not there yet.

    Where the config cuts folds, fingerprints and counts are those of its fold's splits.

    Raises:
      UserError: the data set is not prepared, its record is damaged, or it is too small for the folds.
    """
    record = _read_prepared(config)
    if config.folds is None:
        return record
    splits = [_load_fold(config, name) for name in ("train", "validation", "test")]
    fingerprints = {split.name: split.fingerprint for split in splits}
    counts = {
        split.name: dict(zip(SUBTYPES, np.bincount(split.subtypes, minlength=3).tolist(), strict=True))
        for split in splits
    }
    return record | {"fingerprint": _hash(fingerprints), "fingerprints": fingerprints, "counts": counts}


def _read_prepared(config: DataConfig) -> dict:
    directory = _dataset_dir(config)
    if not directory.exists():
        if config.dataset != "phantom":
            where = f" --data_dir={config.data_dir}" if config.data_dir else ""
            raise UserError(
                f"{config.dataset} is not prepared in {directory}. Prepare it first: "
                f"scripts/run scripts/prepare_data.py --source=PATH{where}"
            )
        logger.info("Drawing the phantom data set (once) in %s", directory)
        try:
            kermany_pneumonia.prepare("phantom", _data_dir(config))
        except kermany_pneumonia.SourceError as error:
            raise UserError(str(error)) from error
    path = directory / "metadata.json"
    try:
        record = json.loads(path.read_text())
        record["fingerprint"], record["fingerprints"]["train"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Prepare the data set again with --overwrite.") from error
    return record


def load_split(config: DataConfig, name: str) -> Split:
    """Loads one split at the config's size, from the cache if it is there.

    Args:
      config: which data set, where, at what size, and cut into which folds.
      name: train, validation or test. Of folds, test is the fold that is held out, and validation is cut by patient
        from the others, the same share as in the prepared set.

    Raises:
      UserError: the data set is not prepared or damaged, has no such split, or is too small for the folds.
    """
    split = _load_whole_split(config, name) if config.folds is None else _load_fold(config, name)
    return _take_share(split, config.train_share) if name == "train" else split


def load_training_images(config: DataConfig) -> Split:
    """All official training images, which are the prepared train and validation split: what folds are cut from.

    It is named out_of_fold, as what it is scored for.

    Raises:
      UserError: the data set is not prepared or damaged.
    """
    parts = [_load_whole_split(config, name) for name in ("train", "validation")]
    fingerprint = _hash({part.name: part.fingerprint for part in parts})
    return _join(parts, [np.ones(len(part), bool) for part in parts], "out_of_fold", fingerprint)


def _load_fold(config: DataConfig, name: str) -> Split:
    parts = [_load_whole_split(config, part) for part in ("train", "validation")]
    patient_ids = np.concatenate([part.patient_ids for part in parts])
    subtypes = np.concatenate([part.subtypes for part in parts])
    chosen = cut_fold(patient_ids, subtypes, config.folds, config.fold)[name]
    if len(np.unique(subtypes[chosen] > 0)) < 2:
        raise UserError(f"folds={config.folds} is too many: a {name} split of this data set would have one class only.")
    masks = np.split(chosen, [len(parts[0])])
    filenames = [part.filenames[mask].tolist() for part, mask in zip(parts, masks, strict=True)]
    # The prepared splits' fingerprints stand for labels, patients and bytes of the files that are named.
    fingerprint = _hash({"split": name, "of": [part.fingerprint for part in parts], "filenames": filenames})
    return _join(parts, masks, name, fingerprint)


def cut_fold(patient_ids: np.ndarray, subtypes: np.ndarray, folds: int, fold: int) -> dict[str, np.ndarray]:
    """Cuts all training images into the splits of one fold, by whole persons, of each subtype the same share.

    Persons are those whom the prepared splits keep together: patients of one number, whatever their subtype. The
    prepared splits also join persons who share an image's bytes. That is not on record, as only one of them kept the
    image; the Kermany images have no such persons.

    Args:
      patient_ids: [N] strings.
      subtypes: [N] int, index into NORMAL, BACTERIA, VIRUS.
      folds: how many.
      fold: which of them, from 0.

    Returns:
      {"train", "validation", "test"}: [N] bool each. test is the fold; validation is for choosing, as in the prepared
      set, and differs from fold to fold.
    """
    persons = np.array([kermany_pneumonia.name_person(patient_id) for patient_id in patient_ids])

    def choose(among: np.ndarray, share: float, salt: str) -> np.ndarray:
        chosen = kermany_pneumonia.choose_share(persons[among].tolist(), subtypes[among].tolist(), share, salt)
        return among & np.isin(persons, list(chosen))

    rest = np.ones(len(persons), bool)
    for i in range(fold + 1):
        test = choose(rest, 1 / (folds - i), "folds") if i < folds - 1 else rest
        rest = rest & ~test
    validation = choose(~test, kermany_pneumonia.VALIDATION_FRACTION, f"fold {fold}")
    return {"train": ~test & ~validation, "validation": validation, "test": test}


def _join(parts: Sequence[Split], masks: Sequence[np.ndarray], name: str, fingerprint: str) -> Split:
    """The images of several splits that their masks, [N] bool each, choose."""
    chosen = [part.select(mask) for part, mask in zip(parts, masks, strict=True)]
    columns = {column: np.concatenate([getattr(part, column) for part in chosen]) for column in SPLIT_COLUMNS}
    return Split(name=name, fingerprint=fingerprint, **columns)


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load_whole_split(config: DataConfig, name: str) -> Split:
    record = _read_prepared(config)
    if name not in record["fingerprints"]:
        raise UserError(
            f"the data set in {_dataset_dir(config)} has no {name} split: "
            f"its source ({record['source']}) had no folder of that name."
        )
    fingerprint = record["fingerprints"][name]
    cache = _cache_dir(config, name, fingerprint)
    cached = read_cache(cache, config.image_px)
    if cached is None:
        images, examples = _decode_split(config, name)
        try:
            write_cache(cache, images, examples)
        except OSError as error:
            # A read-only or full data set folder costs time at the next start, not the run.
            logger.warning("could not keep the decoded images in %s (%s); each start decodes them anew", cache, error)
            return _make_split(name, images, examples, fingerprint)
        cached = read_cache(cache, config.image_px)
    return _make_split(name, *cached, fingerprint)


def _take_share(split: Split, share: float) -> Split:
    """The images of a share of the patients, always the same ones; at least one patient of each class stays."""
    if share == 1:
        return split
    patients, first = np.unique(split.patient_ids, return_index=True)
    order = np.random.default_rng(0).permutation(len(patients))
    taken = []
    for subtype in np.unique(split.subtypes):
        of_subtype = [patient for patient in order if split.subtypes[first[patient]] == subtype]
        taken += [patients[patient] for patient in of_subtype[: max(1, round(share * len(of_subtype)))]]
    return split.select(np.isin(split.patient_ids, taken))


def split_epoch(num_images: int, batch_size: int, chunk_steps: int) -> tuple[int, int]:
    """Cuts an epoch into chunks of equal length, so that the chunk compiles once.

    The length is near `chunk_steps`. What is left over (less than one batch, and less than one step for each chunk)
    sits out this epoch; each shuffle leaves out other images.

    Args:
      num_images: N, images of the training split.
      batch_size: B.
      chunk_steps: the wished length of a chunk in steps.

    Returns:
      (chunks of an epoch, steps of a chunk).

    Raises:
      UserError: the batch is larger than the split.
    """
    steps = num_images // batch_size
    if steps == 0:
        raise UserError(f"batch_size {batch_size} is larger than the training split of {num_images} images.")
    chunks = max(1, round(steps / chunk_steps))
    return chunks, steps // chunks


def make_epoch_batches(num_images: int, batch_size: int, chunks: int, steps: int, seed: int, epoch: int) -> np.ndarray:
    """The image indices of one epoch, shuffled; a function of its arguments alone, so that a run can be continued.

    Returns:
      [chunks, steps, batch_size] int32, each index at most once.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_images).astype(np.int32)
    return order[: chunks * steps * batch_size].reshape(chunks, steps, batch_size)


def make_eval_batches(num_images: int, batch_size: int, devices: int) -> np.ndarray:
    """Indices of all images in order, padded at the end with image 0 to whole batches.

    Args:
      num_images: N.
      batch_size: wished batch; raised to a multiple of `devices`, and not much larger than the split.
      devices: D.

    Returns:
      [S, B] int32; the first N in row order are 0..N-1, what follows is to be dropped.
    """
    batch_size = math.ceil(min(batch_size, num_images) / devices) * devices
    batches = np.zeros((math.ceil(num_images / batch_size), batch_size), np.int32)
    batches.reshape(-1)[:num_images] = np.arange(num_images)
    return batches


def _data_dir(config: DataConfig) -> pathlib.Path:
    return pathlib.Path(config.data_dir or kermany_pneumonia.default_data_dir()).expanduser().resolve()


def _dataset_dir(config: DataConfig) -> pathlib.Path:
    return pathlib.Path(kermany_pneumonia.dataset_dir(config.dataset, _data_dir(config)))


def _cache_dir(config: DataConfig, name: str, fingerprint: str) -> pathlib.Path:
    return _dataset_dir(config).parent / "decoded" / f"{name}-{config.image_px}px-v{DECODER_VERSION}-{fingerprint[:16]}"


def _decode_split(config: DataConfig, name: str) -> tuple[np.ndarray, dict[str, list]]:
    """Reads the stored bytes and decodes them; returns [N, H, W] uint8 and the columns of the examples."""
    import tensorflow_datasets as tfds  # Only here: a start from the cache need not wait for it.

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
    except Exception as error:  # TFDS and array_record raise many kinds for a damaged folder.
        raise UserError(
            f"the data set in {directory} cannot be read ({error}). "
            f"Check it with scripts/prepare_data.py --verify, or prepare it again with --overwrite."
        ) from error
    logger.info("Decoding %d %s images to %d px (once)", len(files), name, config.image_px)
    return decode_images(files, columns["filename"], config.image_px), columns


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
