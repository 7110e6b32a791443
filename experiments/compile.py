"""Compiles the training step for accelerators that are not here, and tells what a run needs and what bounds its speed.

    scripts/run pip install -e '.[aot-tpu,aot-cuda]'                  # the compilers: 150 MB and 2 GB
    scripts/run experiments/compile.py --target=h100,v5e:1x1 --model=resnet50 --image_px=224 --dtype=bfloat16 \\
        --batch_size=256
    scripts/run experiments/compile.py --target=v5e:2x4 --flagfile=experiments/presets/resnet.flags --largest_batch
    scripts/run experiments/compile.py --plot                         # write the page again

Each config field is a flag, as in train.py. The step is the one that train.py would run, sharded over all devices of
the target. Nothing is trained and no data set is read. For each target, the command prints whether the step fits in the
memory, its FLOP, the bytes that it reads and writes, its kernels, convolutions, copies and communication, and a lower
bound of its time. It appends a row to --results, and writes a Markdown page of all rows with the same name.

The bound is the roofline of the published peak rates; a real step takes longer. XLA chooses the algorithms of
convolutions on GPU when it runs there, so the memory that they need is not included.
"""

import datetime
import logging
import os
import pathlib
import shlex

from absl import flags

from experiments.benchmarks.compile_page import format_misfit, format_page, format_table
from experiments.benchmarks.compiling import compile_in_process, find_largest_batch, make_fits
from experiments.benchmarks.records import RESULTS, find_commit, list_measured_words
from experiments.cli import fail, run
from experiments.flags import config_from_flags, define_config_flags, find_changed_fields
from pneumojax.config import Config
from pneumojax.files import append_row, read_rows, write_text
from pneumojax.training.ahead import check_config
from pneumojax.training.targets import Target, check_packages, list_targets, parse_target

TARGETS = flags.DEFINE_list("target", [], f"targets to compile for, separated by commas: {list_targets()}")
LARGEST = flags.DEFINE_bool(
    "largest_batch", False, "find the largest batch that fits; it costs a compilation for each batch that is tried"
)
IMAGES = flags.DEFINE_integer(
    "num_images", 4449, "images of the training split, which --loader=resident keeps on each device", lower_bound=1
)
RESULT_FILE = flags.DEFINE_string("results", str(RESULTS / "compile.jsonl"), "file of JSON rows to append to")
PLOT = flags.DEFINE_bool("plot", False, "compile nothing; write the page with the rows of --results")

logger = logging.getLogger("experiments")


def main() -> int:
    results = pathlib.Path(RESULT_FILE.value).expanduser()
    if PLOT.value:
        return plot(results)
    config, targets = config_from_flags(), [parse_target(name) for name in TARGETS.value]
    if not targets:
        return fail(f"--target is missing. The targets are {list_targets()}.")
    for target in targets:  # Before the first compilation, which takes minutes.
        check_config(config, target)
        check_packages(target)
    same = {"commit": find_commit(), "command": shlex.join(["experiments/compile.py", *list_measured_words()])}
    results.parent.mkdir(parents=True, exist_ok=True)
    rows, failures = [], []
    for target in targets:
        logger.info("Compiling for %s", target.name)
        try:
            row = describe_work(config, target) | compile_for(config, target) | same
        except ChildProcessError as error:  # Another target may work.
            failures.append(str(error))
            continue
        rows.append(row)
        append_row(results, row)
        write_text(results.with_suffix(".md"), format_page(read_rows(results)))
        if not row["fits"]:
            failures.append(format_misfit(row))
    print(format_table(rows))
    print(f"{len(rows)} rows added to {results} and to the tables in {results.with_suffix('.md')}.")
    return fail(" ".join(failures)) if failures else 0


def describe_work(config: Config, target: Target) -> dict:
    """Returns the columns of a row that say what is compiled."""
    flags_set = {name: os.environ[name] for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if os.environ.get(name)}
    return {
        "what": "compile",
        "target": target.name,
        "model": config.model.model,
        "image_px": config.data.image_px,
        "batch_size": config.train.batch_size,
        "dtype": config.model.dtype,
        "num_images": IMAGES.value,
        "fields": find_changed_fields(config, ignore=("model", "image_px", "batch_size", "dtype", "data_dir")),
        "compiler_flags": flags_set,
    }


def compile_for(config: Config, target: Target) -> dict:
    """Compiles the config, and with --largest_batch other batches. Returns the measured columns of a row."""
    row = compile_in_process(config, target, IMAGES.value)
    if LARGEST.value:
        fits = make_fits(config, target, IMAGES.value, row)
        row["largest_batch"] = find_largest_batch(config.train.batch_size, row["memory"], target.count, fits)
    return row | {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def plot(results: pathlib.Path) -> int:
    """Writes the page of all rows."""
    rows = read_rows(results)
    if not rows:
        return fail(f"{results} holds no rows yet. Compile something first: --target=h100")
    page = results.with_suffix(".md")
    write_text(page, format_page(rows))
    print(f"Written: {page}")
    return 0


if __name__ == "__main__":
    define_config_flags()
    run(main)
