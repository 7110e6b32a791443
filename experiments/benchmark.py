"""Measures speed on any device, optionally compared with PyTorch and Keras on the same work.

    scripts/run experiments/benchmark.py --what=step --model=resnet18,flatiron --image_px=112,224 --noaugment
    scripts/run experiments/benchmark.py --what=epoch --model=resnet18 --image_px=112 --images=chest_xray/train \\
        --peer=torch,keras --peer_python=PYTHON      # an environment with the extra `peers` of pyproject.toml
    scripts/run experiments/benchmark.py --suite=cpu       # the table of experiments/results; also growth
    scripts/run experiments/benchmark.py --suite=gpu --minutes=9     # the plan for a GPU; continue it with --resume
    scripts/run experiments/benchmark.py --plot            # a page of all results

Each config field is a flag, as in train.py. A flag with several values, separated by commas, gives a case for each
value. Each case runs in its own processes. With peers, all processes start first and then take turns with the repeats
(ours, torch, keras, ours, ...), so that other load on the machine affects all of them equally. The command prints
medians and quartiles, and appends a row for each case to --results. A case that fails has a row with the reason. The
same command with --resume skips the cases that have a row. With --minutes=9 it stops before the case that would start
later; give --resume for the rest. Measurements on a machine that does other work are unreliable.
"""

import hashlib
import logging
import pathlib
import shlex
import sys
import tempfile
import time
import typing
from typing import Any

from absl import flags

from experiments.benchmarks.cases import NO_FLAGS, PEERS, WHAT, describe_case, describe_choices, make_key, plan_cases
from experiments.benchmarks.page import format_table, write_page
from experiments.benchmarks.records import RESULTS, find_commit, list_measured_words
from experiments.benchmarks.workers import NEEDS, check_peer, describe_failure, measure_in_turn
from experiments.cli import fail, run
from pneumojax.config import config_fields
from pneumojax.errors import UserError
from pneumojax.files import append_row, read_rows

RESNET50 = "--model=resnet50 --image_px=224 --dtype=bfloat16 --case_minutes=7"
FLAGSHIP_SMALL = "--preset=flagship_small --dtype=bfloat16 --case_minutes=5"

# Flags of XLA whose effect on a step is measured, each set in a process of its own. All of them exist in jax 0.10.2 and
# 0.11.2. The file of stored autotuning results is written by the first of the two sets that name it.
AUTOTUNED = "pneumojax_autotuned.textproto"
FLAG_SETS = ",".join(
    (
        NO_FLAGS,
        "--xla_gpu_autotune_level=0",
        f"--xla_gpu_dump_autotune_results_to={{folder}}/{AUTOTUNED}",
        f"--xla_gpu_load_autotune_results_from={{folder}}/{AUTOTUNED}",
        "--xla_gpu_enable_command_buffer=",
        "--xla_gpu_enable_command_buffer=+WHILE",
        "--xla_gpu_experimental_enable_conv_fusion=true",
        "--xla_gpu_cudnn_gemm_fusion_level=2",
        "--xla_gpu_force_conv_nhwc=true",
        "--xla_gpu_force_conv_nchw=true",
        "--xla_gpu_enable_triton_gemm=false",
    )
)

# Each line is a command's flags. Flags that are given together with --suite replace them.
SUITES = {
    "cpu": (
        "--what=step --model=flatiron --image_px=224 --noaugment",
        "--what=step --model=resnet18 --image_px=112,224 --noaugment",
        "--what=epoch --model=resnet18 --image_px=112 --repeats=3",
        "--what=decode --image_px=224",
        "--what=predict --model=flatiron,resnet18 --image_px=112",
        "--what=fit --model=cnn,resnet18 --resnet_width=24 --epochs=2 --repeats=2",
        "--what=load,cache,evaluate,save,restore,start --model=cnn --repeats=4",
    ),
    # The plan for a rented GPU, described in experiments/results/accelerators.md. What matters most comes first.
    "gpu": (
        "--what=tests --case_minutes=7",
        f"--what=step {RESNET50} --batch_size=128 --peer=torch",
        f"--what=step {RESNET50} --batch_size=64,256,512,1024",
        "--what=train --preset=flagship --seed=0,1,2",
        "--what=train --preset=flagship --dtype=bfloat16 --replicas=5",
        "--what=speedrun --preset=speedrun --case_minutes=5",
        "--what=speedrun --preset=speedrun_cnn --case_minutes=5",
        f"--what=step {RESNET50} --batch_size=128 --xla_flags={FLAG_SETS}",
        f"--what=replicas {FLAGSHIP_SMALL} --replicas=2,5,10 --replica_map=vmap,map",
        f"--what=epoch {RESNET50} --batch_size=128 --repeats=3 --limit=800 --peer=torch",
        f"--what=step {RESNET50} --batch_size=256 --peer=torch",
        "--what=step --model=resnet50 --image_px=224 --batch_size=128 --case_minutes=5 --peer=torch",
        f"--what=predict {RESNET50} --eval_batch_size=256",
        f"--what=fit {RESNET50} --image_px=128 --batch_size=32 --epochs=3 --repeats=2",
    ),
    "growth": (
        "--what=step --model=resnet18 --resnet_width=16 --image_px=64 --batch_size=8,16,32,64,128",
        "--what=step --model=resnet18 --resnet_width=16 --image_px=32,64,128,256 --batch_size=16",
        "--what=step --model=cnn --image_px=64 --batch_size=64 --devices=1,2,4,8",
        "--what=decode,epoch --model=cnn --limit=100,200,400,800 --repeats=4",
    ),
}

logger = logging.getLogger("experiments")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command, and for each config field a flag that takes several values."""
    own: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_list("what", ["step"], f"what to measure: {'; '.join(f'{k}: {v}' for k, v in WHAT.items())}", **own)
    flags.DEFINE_list("peer", [], f"frameworks to compare with: {', '.join(PEERS)}", **own)
    flags.DEFINE_string("peer_python", sys.executable, "Python interpreter that has the packages of the peers", **own)
    flags.DEFINE_string(
        "images", None, "folder with JPEG files in NORMAL/ and PNEUMONIA/ (default: synthetic radiographs)", **own
    )
    flags.DEFINE_list("limit", [], "number of JPEG files to use (default: all)", **own)
    flags.DEFINE_list("devices", [], "number of devices: simulated on CPU, the first ones on GPU (default: all)", **own)
    flags.DEFINE_integer("steps", 8, "training or prediction steps of a call", lower_bound=1, **own)
    flags.DEFINE_integer("repeats", 8, "number of times that each case is measured after a warm-up", 2, **own)
    flags.DEFINE_bool("augment", True, "rotate, shift and zoom each image in the cases step and epoch", **own)
    flags.DEFINE_enum("suite", None, tuple(SUITES), "a set of cases; other flags replace those of the suite", **own)
    flags.DEFINE_bool("resume", False, "skip the cases that this command has already measured at this commit", **own)
    flags.DEFINE_float(
        "minutes",
        None,
        "start no case after this many minutes (default: no limit); --resume measures the rest",
        0,
        **own,
    )
    flags.DEFINE_float("case_minutes", None, "end a case after this many minutes (default: no limit)", 0, **own)
    flags.DEFINE_list(
        "xla_flags",
        [],
        f"sets of flags of XLA, separated by commas, of which each gives a case; {NO_FLAGS}: no flag. Spaces separate "
        "the flags of a set. {folder} is the folder of --results",
        **own,
    )
    flags.DEFINE_string("preset", None, "preset of experiments/presets that gives the other fields", **own)
    flags.DEFINE_bool("plot", False, "measure nothing; write a page with the rows of --results", **own)
    flags.DEFINE_string("results", str(RESULTS / "benchmarks.jsonl"), "file of JSON rows to append to", **own)
    for field in config_fields():
        # A field that is itself a list of numbers takes one value.
        define = flags.DEFINE_string if typing.get_origin(field.type) is tuple else flags.DEFINE_list
        define(field.name, None, f"{field.metadata['help']} (default: {field.default})", **own)


def main() -> int:
    values = flags.FLAGS
    results = pathlib.Path(values.results).expanduser()
    if values.plot:
        return plot(results)
    cases = plan_all_cases(values)
    for name in sorted(set(values.peer) & set(NEEDS)):  # A peer of a suite may be missing: its rows then say so.
        check_peer(values.peer_python, name)
    commit, command = find_commit(), shlex.join(["experiments/benchmark.py", *list_measured_words()])
    done = {make_key(row) for row in read_rows(results) if (row["commit"], row["command"]) == (commit, command)}
    results.parent.mkdir(parents=True, exist_ok=True)
    rows, started = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pneumojax-benchmark-") as folder:
        for number, case in enumerate(cases):
            logger.info("%d of %d: %s", number + 1, len(cases), describe_case(case))
            key = make_key(describe_choices(case, "pneumojax"))
            if values.resume and key in done:
                continue
            if values.minutes is not None and time.monotonic() - started > 60 * values.minutes:
                print(f"The {values.minutes:g} minutes are over before case {number + 1} of {len(cases)}.")
                print("To measure the rest: the same command with --resume.")
                break
            name = hashlib.sha256(f"{commit} {command} {key}".encode()).hexdigest()[:12]
            case |= {"folder": str(results.parent.resolve()), "resume": values.resume}
            case |= {"workdir": str(results.with_suffix("").resolve() / name)}
            for row in measure(case, pathlib.Path(folder), values.peer_python, bool(values.suite)):
                rows.append(row | {"commit": commit, "command": command})
                append_row(results, rows[-1])
    print(format_table(rows))
    print(f"{len(rows)} rows added to {results}. Next: scripts/run experiments/benchmark.py --plot --results={results}")
    failures = sum("error" in row for row in rows)
    return fail(f"{failures} of {len(rows)} rows have an error instead of a measurement.") if failures else 0


def measure(case: dict, folder: pathlib.Path, peer_python: str, of_suite: bool) -> list[dict]:
    """Measures a case, as `measure_in_turn` does. A case that fails gives a row with "error", because others may work.

    Args:
      case: a case from `plan_cases`.
      folder: folder for temporary files.
      peer_python: interpreter for the peers.
      of_suite: whether the case is one of a suite. Otherwise, a UserError ends the command.

    Raises:
      UserError: an error that the user can correct, in a case that is not of a suite.
    """
    try:
        return measure_in_turn(case, folder, peer_python)
    except ChildProcessError as error:  # The batch may not fit into memory, for example.
        reason = str(error)
    except UserError as error:
        if not of_suite:
            raise
        reason = str(error)
    logger.error("%s", reason)
    return [describe_failure(case, "pneumojax", reason)]


def plan_all_cases(values: flags.FlagValues) -> list[dict]:
    """Returns the cases that the flags describe. With --suite, these are the cases of the suite.

    Args:
      values: the parsed flags.

    Raises:
      UserError: a value is unknown or outside its limits, or a peer cannot do the same work.
    """
    own = [word for word in sys.argv[1:] if not word.lstrip("-").startswith(("suite", "resume", "minutes"))]
    lines = [parse([*shlex.split(line), *own]) for line in SUITES[values.suite]] if values.suite else [values]
    cases = []
    for case in (case for line in lines for case in plan_cases(line)):
        # Cases of a suite can become equal: a flag of the command line may replace the value in which they differ, and
        # `limit` is set to None for work that reads no files.
        if case not in cases:
            cases.append(case)
    return cases


def parse(words: list[str]) -> flags.FlagValues:
    """Parses a command line.

    Raises:
      UserError: a flag is unknown or its value is wrong.
    """
    values = flags.FlagValues()
    define_flags(values)
    try:
        values([sys.argv[0], *words])
    except flags.Error as error:
        raise UserError(f"{error}.") from error
    return values


def plot(results: pathlib.Path) -> int:
    """Writes the page of all rows and its figures."""
    rows = read_rows(results)
    if all("error" in row for row in rows):
        return fail(f"{results} holds no measurement yet. Measure something first: --what=step")
    print(f"Written: {write_page(results, rows)}")
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    run(main)
