"""Measures the time of whole trainings, from the decoded cache to weights that reach a target AUROC on validation.

    scripts/run experiments/speedrun.py --dataset=kermany --flagfile=experiments/presets/speedrun.flags
    scripts/run experiments/speedrun.py --dataset=kermany --flagfile=experiments/presets/speedrun.flags --dtype=bfloat16

The protocol follows the CIFAR speedruns. The length of a training is fixed: nothing is evaluated while it runs, and no
training is stopped or discarded because of its AUROC. The measured time starts when the decoded cache is opened and
ends when the weights are ready on the device. It includes initialisation, shuffling and the transfer of the images to
the device. The evaluation on validation comes afterwards. Its time is reported separately.

A warm-up training precedes the measured trainings. It starts with an empty compile cache, in memory and on disk, so it
measures the time with compilation. Its seed is one higher than the last measured seed, and its AUROC is discarded.

Each config field is a flag, as in train.py; --seed is the first seed. The command appends a row for each training to
the file --results, and a row with the summary at the end. It then writes all summaries in this file as a Markdown table
with the same file name. If the command was stopped, the same command with --resume skips the seeds that were measured.
"""

import datetime
import logging
import os
import pathlib
import shlex
import tempfile

from absl import flags

from experiments.benchmarks.records import RESULTS, count_cores, describe_machine, find_commit, list_measured_words
from experiments.benchmarks.speedrun_page import (
    find_trainings,
    format_page,
    format_summary,
    format_training,
    is_of,
    summarise,
)
from experiments.cli import run
from experiments.flags import config_from_flags, define_config_flags, find_changed_fields
from pneumojax.config import Config, replace_fields
from pneumojax.errors import UserError
from pneumojax.files import append_row, read_rows, write_text

SEEDS = flags.DEFINE_integer("seeds", 10, "number of trainings, with the seeds --seed, --seed + 1, ...", lower_bound=2)
TARGET = flags.DEFINE_float("target", 0.99, "validation AUROC to reach", lower_bound=0.5, upper_bound=1.0)
RESULT_FILE = flags.DEFINE_string("results", str(RESULTS / "speedrun.jsonl"), "file of JSON rows to append to")
RESUME = flags.DEFINE_bool("resume", False, "skip the seeds that this command has already measured at this commit")

# Fields that must keep their default, because they would change the protocol.
FIXED = ("pretrained", "cached_views", "replicas", "multihost", "selection_split")

logger = logging.getLogger("experiments")


def main() -> int:
    config = config_from_flags()
    check_rules(config)
    runs = [replace_fields(config, {"seed": config.train.seed + i}) for i in range(SEEDS.value + 1)]
    results = pathlib.Path(RESULT_FILE.value).expanduser()
    same = {"commit": find_commit(), "command": shlex.join(["experiments/speedrun.py", *list_measured_words()])}
    rows = [row for row in read_rows(results) if is_of(row, same)] if RESUME.value else []
    done = {row["seed"]: row for row in find_trainings(rows, same)}
    if any(row["what"] == "speedrun" for row in rows):
        print(f"Nothing to do: {results} holds all {SEEDS.value} trainings of this command.")
        return 0
    from experiments.benchmarks.racer import Racer  # It imports JAX, so it comes after the flag checks.

    results.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="pneumojax-speedrun-") as folder:
        racer = Racer(config, pathlib.Path(folder))
        warmup = racer.time(runs[-1].train.seed)
        compiled = racer.costs["compile_seconds"]
        logger.info("Warm-up, discarded: %s. Compiling the steps took %.1f s of it", format_training(warmup), compiled)
        for one in runs[:-1]:
            if one.train.seed in done:
                continue
            row = {"what": "training"} | racer.time(one.train.seed) | same
            logger.info("%s", format_training(row))
            append_row(results, row)
            done[row["seed"]] = row
    row = {"what": "speedrun", "fields": find_changed_fields(config, ignore=("data_dir", "seed"))}
    row |= summarise(list(done.values()), TARGET.value)
    row |= {"seconds_with_compilation": warmup["seconds"]} | racer.costs | describe_machine()
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row |= {"cores": count_cores(), "load": load, "created": created} | same
    append_row(results, row)
    write_text(results.with_suffix(".md"), format_page(read_rows(results)))
    print(f"\n{format_summary(row)}\nAdded to {results} and to the table in {results.with_suffix('.md')}.")
    return 0


def check_rules(config: Config) -> None:
    """Checks that the config follows the protocol.

    Raises:
      UserError: a field of FIXED is not at its default.
    """
    for name, value in find_changed_fields(config).items():
        if name in FIXED:
            raise UserError(
                f"{name}={value} is not allowed: a speedrun trains one network at a time, in one process and from "
                "random weights, and evaluates it on validation."
            )


if __name__ == "__main__":
    define_config_flags()
    run(main)
