"""The cases of a benchmark: what is measured, with which config, and which peers do the same work.

A case is a dict that JSON can hold, because each case is measured in processes of its own:
  what: one of WHAT.
  config: as `config_to_dict` returns it.
  steps: training or prediction steps of a call.
  repeats: how often the case is measured after a warm-up.
  augment: whether a step or an epoch augments its images; None for other work.
  images, limit: folder of JPEG files and how many of them are read; None for work that reads no files.
  devices: number of devices; None: all.
  cores: CPU cores of the machine.
  peers: names of the frameworks that do the same work.
"""

import itertools
import json
import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.benchmarks.records import count_cores
from experiments.flags import parse_config
from pneumojax.config import Config, config_fields, config_to_dict
from pneumojax.errors import UserError

WHAT = {
    "step": "training steps in one call, images on the device",
    "epoch": "epochs from JPEG files: decode, augment, train",
    "fit": "a whole training on the prepared data set, as train.py does it",
    "predict": "prediction, images on the device",
    "evaluate": "evaluate.py on validation",
    "load": "the training split from its decoded cache",
    "cache": "the training split decoded on all cores, the cache written",
    "decode": "JPEG files to images, one at a time",
    "save": "a checkpoint to disk",
    "restore": "a checkpoint from disk",
    "start": "from the start of train.py to its first steps",
}
PEERS = {"torch": ("step", "epoch"), "keras": ("step", "epoch"), "pillow": ("decode",)}
READS_FILES = ("epoch", "decode")

# The config fields that the peers implement. Another field would make their work a different one.
PEER_FIELDS = ("model", "image_px", "batch_size", "dtype", "resnet_width", "dropout", "rotate_degrees", "shift", "zoom")
PEER_MODELS = ("flatiron", "resnet18", "resnet34", "resnet50")

# A step and an epoch augment by geometry only, because the peers have the same operations.
GEOMETRY = ("rotate_degrees", "shift", "zoom")
INTENSITY = ("brightness", "contrast", "gamma")

SYNTHETIC_FILES = 400  # Number of synthetic JPEG files where --limit is not set.

# What identifies the work that a row of results measured.
KEY_COLUMNS = ("what", "framework", "model", "image_px", "batch_size", "dtype", "augment", "devices", "limit", "fields")


def plan_cases(values: flags.FlagValues) -> list[dict]:
    """Returns a case for each combination of the flags' values.

    Args:
      values: flags of benchmark.py.

    Raises:
      UserError: a value is unknown or outside its limits, or a peer cannot do the same work.
    """
    for name, known in (("what", WHAT), ("peer", PEERS)):
        if wrong := [word for word in getattr(values, name) if word not in known]:
            raise UserError(f"--{name}={wrong[0]} is unknown: there are {', '.join(known)}.")
    numbers: list[list[int | None]] = [
        [_read_number(name, word) for word in getattr(values, name)] or [None] for name in ("devices", "limit")
    ]
    given = {field.name: values[field.name].value for field in config_fields() if values[field.name].value is not None}
    choices = [value if isinstance(value, list) else [value] for value in given.values()]
    cases = []
    for what, devices, limit, *chosen in itertools.product(values.what, *numbers, *choices):
        fields = dict(zip(given, chosen, strict=True))
        config = make_config(fields, what, values.augment)
        reads_files = what in READS_FILES
        peers = [peer for peer in values.peer if what in PEERS[peer]]
        _check_peer_fields(peers, fields, config)
        if devices and config.train.batch_size % devices:
            raise UserError(f"--batch_size={config.train.batch_size} is not divisible by --devices={devices}.")
        cases.append(
            {
                "what": what,
                "config": config_to_dict(config),
                "steps": values.steps,
                "repeats": values.repeats,
                "augment": values.augment if what in PEERS["torch"] else None,
                "images": values.images if reads_files else None,
                "limit": limit if reads_files else None,
                "devices": devices,
                "cores": count_cores(),
                "peers": peers,
            }
        )
    return cases


def make_config(fields: dict[str, str], what: str, augment: bool) -> Config:
    """Builds the config of a case.

    Args:
      fields: {name of a config field: its value as a flag takes it}.
      what: one of WHAT. A step and an epoch have no augmentation of intensity.
      augment: whether a step and an epoch augment by geometry.

    Raises:
      UserError: a value is outside its limits.
    """
    preset = {}
    if what in PEERS["torch"]:
        preset = dict.fromkeys(INTENSITY if augment else (*GEOMETRY, *INTENSITY), "0")
    return parse_config([f"--{name}={value}" for name, value in (preset | fields).items()])


def list_files(images: str | None, limit: int | None, folder: pathlib.Path) -> pathlib.Path:
    """Writes the list of the JPEG files that a case reads: [[path, label], ...] as JSON.

    Args:
      images: folder with the folders NORMAL and PNEUMONIA; None: synthetic radiographs.
      limit: number of files, taken at even distances from all; None: all, or SYNTHETIC_FILES.
      folder: where the list, and synthetic radiographs, are written.

    Raises:
      UserError: there are no files, or fewer than the limit.
    """
    if images:
        root = pathlib.Path(images).expanduser()
    else:
        from tfds_builder.kermany_pneumonia import phantom

        drawn = folder / f"drawn-{limit or SYNTHETIC_FILES}"
        if not drawn.exists():
            # A quarter of them is test, and some are validation.
            phantom.draw_folder(drawn, max(60, 3 * (limit or SYNTHETIC_FILES) // 2))
        root = drawn / "chest_xray" / "train"
    files = [
        (str(path.resolve()), label)
        for label, name in enumerate(("NORMAL", "PNEUMONIA"))
        for path in sorted((root / name).glob("*.jp*g"))
    ]
    if not files or len(files) < (limit or 0):
        raise UserError(f"--images={root}: there are {len(files)} JPEG files in its folders NORMAL and PNEUMONIA.")
    count = limit or (len(files) if images else SYNTHETIC_FILES)
    files = [files[i * len(files) // count] for i in range(count)]
    path = folder / f"files-{len(files)}.json"
    path.write_text(json.dumps(files))
    return path


def describe_choices(case: dict, framework: str) -> dict:
    """Returns the columns of KEY_COLUMNS and "steps" for a row of results.

    Args:
      case: one of `plan_cases`.
      framework: who does the work.

    Returns:
      {column: value}; "fields" holds each config field that has no column and is not at its default.
    """
    named = {name: case["config"][name] for name in ("model", "image_px", "batch_size", "dtype")}
    named["batch_size"] = find_batch_size(case)
    default = config_to_dict(make_config({}, case["what"], bool(case["augment"])))
    fields = {
        name: value
        for name, value in case["config"].items()
        if name not in (*named, "data_dir") and value != default[name]
    }
    chosen = {name: case[name] for name in ("augment", "devices", "limit", "steps")}
    return {"what": case["what"], "framework": framework} | named | chosen | {"fields": fields}


def find_batch_size(case: dict) -> int:
    """Returns the batch size of the work: prediction has its own."""
    return case["config"]["eval_batch_size" if case["what"] == "predict" else "batch_size"]


def make_key(row: dict) -> str:
    """Returns a text that is equal for rows that measure the same work."""
    return json.dumps([row[name] for name in KEY_COLUMNS], sort_keys=True)


def describe_case(case: dict) -> str:
    """Describes a case in a line, as in "step, resnet18, 112 px, batch 32, float32, compared with torch"."""
    row = describe_choices(case, "pneumojax")
    parts = [row["what"], row["model"], f"{row['image_px']} px", f"batch {row['batch_size']}", row["dtype"]]
    parts += [f"{row[name]} {name}" for name in ("devices", "limit") if row[name]]
    return ", ".join(parts) + (f", compared with {', '.join(case['peers'])}" if case["peers"] else "")


def _read_number(name: str, word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise UserError(f"--{name}={word} must be a whole number above 0.")
    return int(word)


def _check_peer_fields(peers: Sequence[str], fields: dict[str, str], config: Config) -> None:
    """Raises a UserError if a peer has no implementation of a field or of the model. Pillow only decodes."""
    foreign = [f"{name}={value}" for name, value in fields.items() if name not in PEER_FIELDS]
    if config.model.model not in PEER_MODELS:
        foreign.append(f"model={config.model.model}")
    for peer in peers:
        if foreign and peer != "pillow":
            raise UserError(f"--peer={peer} does not implement --{foreign[0]}, so it would not do the same work.")
