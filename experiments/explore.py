"""Draws what a prepared data set holds: classes, average images, sizes, brightness, patients, samples.

    scripts/run experiments/explore.py                        # drawn radiographs
    scripts/run experiments/explore.py --dataset=kermany      # the X-rays (scripts/prepare_data.py)

Writes explore.html and its pictures to --output and prints the facts. Seconds on any machine.
"""

import dataclasses
import pathlib
import shlex

from absl import flags

from experiments.cli import run
from experiments.flags import define_config_flags, format_flags
from pneumojax.config import DataConfig

OUTPUT = flags.DEFINE_string(
    "output", None, "folder to write to (default: runs/explore/<dataset>, which git ignores: the page holds X-rays)"
)
FIELDS = [field for field in dataclasses.fields(DataConfig) if field.name in ("dataset", "data_dir", "image_px")]


def main() -> int:
    config = DataConfig(**{field.name: flags.FLAGS[field.name].value for field in FIELDS})
    directory = pathlib.Path(OUTPUT.value or f"runs/explore/{config.dataset}").expanduser()
    from pneumojax.reporting.dataset_report import explore  # Imports numpy: after the flags are known to be good.

    for table in explore(config, directory):
        print(table.format_text(), end="\n\n")
    preset = "experiments/presets/resnet.flags" if config.dataset == "kermany" else None
    words = format_flags({"dataset": config.dataset, "flagfile": preset, "data_dir": config.data_dir})
    train = shlex.join(["experiments/train.py", *words])
    print(f"Written to {directory}: explore.html and its pictures")
    print(f"Next: scripts/run {train}")
    return 0


if __name__ == "__main__":
    define_config_flags(fields=FIELDS)
    run(main)
