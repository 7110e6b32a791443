"""Summarises a prepared data set: classes, average images, sizes, brightness, patients and samples.

    scripts/run experiments/explore.py                        # synthetic radiographs
    scripts/run experiments/explore.py --dataset=kermany      # X-rays from scripts/prepare_data.py

Writes explore.html and its figures to --output, and prints the tables. It takes seconds.
"""

import dataclasses
import pathlib
import shlex
from typing import Any

from absl import flags

from experiments.cli import run
from experiments.flags import define_config_flags, format_flags
from pneumojax.config import DataConfig

OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "folder to write to (default: runs/explore/<dataset>, which git ignores because the page has X-rays)",
)
FIELDS = [field for field in dataclasses.fields(DataConfig) if field.name in ("dataset", "data_dir", "image_px")]


def main() -> int:
    fields: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in FIELDS}
    config = DataConfig(**fields)
    directory = pathlib.Path(OUTPUT.value or f"runs/explore/{config.dataset}").expanduser()
    from pneumojax.reporting.dataset_report import explore  # Imports numpy, so it comes after the flag checks.

    for table in explore(config, directory):
        print(table.format_text(), end="\n\n")
    preset = "experiments/presets/resnet.flags" if config.dataset == "kermany" else None
    words = format_flags({"dataset": config.dataset, "flagfile": preset, "data_dir": config.data_dir})
    train = shlex.join(["experiments/train.py", *words])
    print(f"Written to {directory}: explore.html and its figures.")
    print(f"Next: scripts/run {train}")
    return 0


if __name__ == "__main__":
    define_config_flags(fields=FIELDS)
    run(main)
