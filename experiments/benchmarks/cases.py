"""Plans the cases of a benchmark: the work that is measured, the config, and the peers that do the same work.

A case is a dict that can be stored as JSON, because each case is measured in its own processes:
  what: the kind of work, a key of WHAT.
  config: the config, from `config_to_dict`.
  steps: training or prediction steps in a call.
  repeats: number of measurements after a warm-up.
  minutes: time after which a process of the case is ended; None: no limit.
  xla_flags: flags of XLA for our process, or NO_FLAGS; None: those of the environment.
  preset: name of the preset in experiments/presets that gives the other fields, or None.
  augment: whether a step or an epoch augments its images; None for other work.
  images, limit: folder of JPEG files and how many of them are read; None for work that reads no files.
  devices: number of devices; None: all.
  cores: number of CPU cores that the process may use.
  peers: names of the frameworks that do the same work.
"""

import itertools
import json
import pathlib
from collections.abc import Sequence

from absl import flags

from experiments.benchmarks.records import count_cores
from experiments.flags import find_changed_fields, format_value, parse_config, read_preset
from pneumojax.config import Config, config_fields, config_to_dict
from pneumojax.errors import UserError

WHAT = {
    "step": "training steps in one call, on images that are already on the device",
    "epoch": "epochs from JPEG files: decoding, augmentation and training",
    "fit": "a whole training on the prepared data set, as in train.py",
    "predict": "prediction of images that are already on the device",
    "evaluate": "evaluate.py on validation",
    "load": "reading the training split from its decoded cache",
    "cache": "decoding the training split on all cores and writing the cache",
    "decode": "decoding JPEG files one at a time",
    "save": "writing a checkpoint to disk",
    "restore": "reading a checkpoint from disk",
    "start": "the time from the start of train.py to its first steps",
    "replicas": "as step, for all replicas of a config in one program",
    "speedrun": "whole trainings as in speedrun.py, with a new seed for each repeat",
    "train": "one training into a folder beside --results, which --resume continues",
    "tests": "the tests with the marker gpu",
}
PEERS = {"torch": ("step", "epoch"), "keras": ("step", "epoch"), "pillow": ("decode",)}
READS_FILES = ("epoch", "decode")
ONCE = ("train", "tests")  # Work that is not repeated.
REPLICATED = ("replicas", "train")  # Work that a config with several replicas can do.
NO_FLAGS = "none"  # The value of --xla_flags that sets no flag. Its row is the baseline of the rows with flags.

# The config fields that the peers implement. With any other field, they would not do the same work.
PEER_FIELDS = ("model", "image_px", "batch_size", "dtype", "resnet_width", "dropout", "rotate_degrees", "shift", "zoom")
# The config fields that a step and an epoch do not read: those of the data set, and those of a whole training.
UNREAD_FIELDS = ("dataset", "data_dir", "progressive_px", "epochs", "chunk_steps", "eval_batch_size")
PEER_MODELS = ("flatiron", "resnet18", "resnet34", "resnet50")

# A step and an epoch use geometric augmentation only, because the peers implement the same operations.
GEOMETRY = ("rotate_degrees", "shift", "zoom")
INTENSITY = ("brightness", "contrast", "gamma")

PRESETS = pathlib.Path(__file__).parents[1] / "presets"
SYNTHETIC_FILES = 400  # Number of synthetic JPEG files if --limit is not set.

# The columns of a row of results that identify the work.
KEY_COLUMNS: tuple[str, ...] = (
    "what",
    "framework",
    "model",
    "image_px",
    "batch_size",
    "dtype",
    "augment",
    "devices",
    "limit",
    "fields",
)
KEY_COLUMNS += ("preset", "xla_flags")  # Rows of earlier versions do not have them.


def plan_cases(values: flags.FlagValues) -> list[dict]:
    """Returns a case for each combination of the flags' values.

    Args:
      values: parsed flags of benchmark.py.

    Raises:
      UserError: a value is unknown or outside its limits, or a peer cannot do the same work.
    """
    for name, known in (("what", WHAT), ("peer", PEERS)):
        if wrong := [word for word in getattr(values, name) if word not in known]:
            raise UserError(f"--{name}={wrong[0]} is unknown: there are {', '.join(known)}.")
    numbers: list[list[int | None]] = [
        [_read_number(name, word) for word in getattr(values, name)] or [None] for name in ("devices", "limit")
    ]
    given: dict = read_fields(values.preset)
    given |= {field.name: values[field.name].value for field in config_fields() if values[field.name].value is not None}
    choices = [value if isinstance(value, list) else [value] for value in given.values()]
    flag_sets = values.xla_flags or [None]
    cases = []
    for what, devices, limit, flag_set, *chosen in itertools.product(values.what, *numbers, flag_sets, *choices):
        fields = dict(zip(given, chosen, strict=True))
        config = make_config(fields, what, values.augment)
        reads_files = what in READS_FILES
        peers = [peer for peer in values.peer if what in PEERS[peer] and not flag_set]
        _check_peer_fields(peers, fields, config)
        if devices and config.train.batch_size % devices:
            raise UserError(f"--batch_size={config.train.batch_size} is not divisible by --devices={devices}.")
        if config.train.replicas > 1 and what not in REPLICATED:
            raise UserError(f"--what={what} measures one network: --replicas is only for {' and '.join(REPLICATED)}.")
        cases.append(
            {
                "what": what,
                "config": config_to_dict(config),
                "steps": values.steps,
                "repeats": 1 if what in ONCE else values.repeats,
                "minutes": values.case_minutes,
                "xla_flags": flag_set,
                "preset": values.preset,
                "augment": values.augment if what in PEERS["torch"] else None,
                "images": values.images if reads_files else None,
                "limit": limit if reads_files else None,
                "devices": devices,
                "cores": count_cores(),
                "peers": peers,
            }
        )
    return cases


def read_fields(preset: str | None) -> dict[str, str]:
    """Returns {name of a field: text of its flag} for the fields that a preset sets.

    Args:
      preset: name of a file in experiments/presets, without ".flags"; None: no preset, so no fields.

    Raises:
      UserError: there is no such preset.
    """
    if preset is None:
        return {}
    fields = find_changed_fields(read_preset(PRESETS / f"{preset}.flags"))
    return {name: format_value(value) for name, value in fields.items()}


def make_config(fields: dict[str, str], what: str, augment: bool) -> Config:
    """Builds the config of a case.

    Args:
      fields: {name of a config field: its value as the text of a flag}.
      what: a key of WHAT. A step and an epoch have no intensity augmentation.
      augment: whether a step and an epoch have geometric augmentation.

    Raises:
      UserError: a value is outside its limits.
    """
    preset = {}
    if what in PEERS["torch"]:
        preset = dict.fromkeys(INTENSITY if augment else (*GEOMETRY, *INTENSITY), "0")
    return parse_config([f"--{name}={value}" for name, value in (preset | fields).items()])


def list_files(images: str | None, limit: int | None, folder: pathlib.Path) -> pathlib.Path:
    """Writes the list of the JPEG files that a case reads.

    Args:
      images: folder with the subfolders NORMAL and PNEUMONIA; None: synthetic radiographs.
      limit: number of files, evenly spaced in the list of all files; None: all, or SYNTHETIC_FILES if synthetic.
      folder: folder to write to. Synthetic radiographs are also written there.

    Returns:
      Path of the list, a JSON file with [[path, label], ...].

    Raises:
      UserError: there are no files, or fewer than the limit.
    """
    if images:
        root = pathlib.Path(images).expanduser()
    else:
        from tfds_builder.kermany_pneumonia import phantom

        synthetic = folder / f"synthetic-{limit or SYNTHETIC_FILES}"
        if not synthetic.exists():
            # More images than the limit, because a quarter of them is test and some are validation.
            phantom.draw_folder(synthetic, max(60, 3 * (limit or SYNTHETIC_FILES) // 2))
        root = synthetic / "chest_xray" / "train"
    files = [
        (str(path.resolve()), label)
        for label, name in enumerate(("NORMAL", "PNEUMONIA"))
        for path in sorted((root / name).glob("*.jp*g"))
    ]
    if not files or len(files) < (limit or 0):
        raise UserError(
            f"--images={root}: its folders NORMAL and PNEUMONIA have {len(files)} JPEG files; {limit or 1} are needed."
        )
    count = limit or (len(files) if images else SYNTHETIC_FILES)
    files = [files[i * len(files) // count] for i in range(count)]
    path = folder / f"files-{len(files)}.json"
    path.write_text(json.dumps(files))
    return path


def describe_choices(case: dict, framework: str) -> dict:
    """Returns the columns of a row of results that describe the work.

    Args:
      case: a case from `plan_cases`.
      framework: name of the framework that does the work.

    Returns:
      {column: value} for KEY_COLUMNS and "steps". "fields" has each config field that is not at its default, or at the
      value of the preset, and has no column.
    """
    named = {name: case["config"][name] for name in ("model", "image_px", "batch_size", "dtype")}
    named["batch_size"] = find_batch_size(case)
    default = config_to_dict(make_config(read_fields(case["preset"]), case["what"], bool(case["augment"])))
    fields = {
        name: value
        for name, value in case["config"].items()
        if name not in (*named, "data_dir") and value != default[name]
    }
    chosen = {name: case[name] for name in ("augment", "devices", "limit", "steps", "preset", "xla_flags")}
    return {"what": case["what"], "framework": framework} | named | chosen | {"fields": fields}


def find_batch_size(case: dict) -> int:
    """Returns the batch size of a case: `eval_batch_size` for prediction, otherwise `batch_size`."""
    return case["config"]["eval_batch_size" if case["what"] == "predict" else "batch_size"]


def make_key(row: dict) -> str:
    """Returns a string that identifies the work of a row. It is equal for rows that measure the same work."""
    return json.dumps([row.get(name) for name in KEY_COLUMNS], sort_keys=True)


def describe_case(case: dict) -> str:
    """Describes a case in one line, such as "step, resnet18, 112 px, batch 32, float32, compared with torch"."""
    row = describe_choices(case, "pneumojax")
    parts = [row["what"], row["model"], f"{row['image_px']} px", f"batch {row['batch_size']}", row["dtype"]]
    parts += [f"{row[name]} {name}" for name in ("devices", "limit") if row[name]]
    parts += [f"preset {row['preset']}"] if row["preset"] else []
    parts += [f"{name} {value}" for name, value in row["fields"].items()]
    parts += [f"XLA flags: {row['xla_flags']}"] if row["xla_flags"] else []
    return ", ".join(parts) + (f", compared with {', '.join(case['peers'])}" if case["peers"] else "")


def _read_number(name: str, word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise UserError(f"--{name}={word} must be a whole number above 0.")
    return int(word)


def _check_peer_fields(peers: Sequence[str], fields: dict[str, str], config: Config) -> None:
    """Raises a UserError if a peer has no implementation of a field or of the model. Pillow only decodes."""
    foreign = [f"{name}={value}" for name, value in fields.items() if name not in (*PEER_FIELDS, *UNREAD_FIELDS)]
    if config.model.model not in PEER_MODELS:
        foreign.append(f"model={config.model.model}")
    for peer in peers:
        if foreign and peer != "pillow":
            raise UserError(f"--peer={peer} does not implement --{foreign[0]}, so it would not do the same work.")
