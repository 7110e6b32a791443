"""Mutation testing: how many small changes of the code do the tests notice?

    pip install --editable '.[dev,mutation]'
    python scripts/mutation.py --results=mutants.jsonl                # tries the sample, or resumes
    python scripts/mutation.py --results=mutants.jsonl --survivors    # tries the survivors again, after new tests

Cosmic Ray lists all mutants of the modules below. A random sample of them is tried, one at a time, each in a copy of
the working tree, and only with the tests of its module. A mutant is killed when a test fails, or when the tests take
longer than `limit_seconds`. The sample contains at most one mutant of each place in the code. It contains no mutants of
type annotations and strings (f-strings included), because no test should depend on them.

The results are appended to a file, one row for each attempt, so that a stopped command resumes.
"""

import ast
import collections
import compileall
import importlib.util
import os
import pathlib
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from absl import app, flags

from pneumojax.files import append_row, read_rows

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Tests of the longest module take a minute. A slower machine gets more: see `measure_limit`.
MIN_LIMIT_SECONDS = 60


class Module(NamedTuple):
    """A module that is mutated.

    Attributes:
      group: the row of the table.
      path: the file.
      mutants: the size of the sample.
      tests: arguments of pytest. The fastest tests come first, because the first failure ends a run.
    """

    group: str
    path: str
    mutants: int
    tests: str


EVALUATION, TESTS = "pneumojax/evaluation", "tests/evaluation"
STEPS = "tests/test_steps.py"
SPLITS = "tfds_builder/kermany_pneumonia/splits"
MODULES = [
    Module("metrics", f"{EVALUATION}/metrics.py", 40, f"{TESTS}/test_metrics.py {TESTS}/test_point_metrics.py"),
    Module("metrics", f"{EVALUATION}/bootstrap.py", 14, f"{TESTS}/test_bootstrap.py"),
    Module("metrics", f"{EVALUATION}/counts.py", 10, f"{TESTS}/test_counts.py {TESTS}/test_point_metrics.py"),
    Module("metrics", f"{EVALUATION}/curves.py", 12, f"{TESTS}/test_curves.py"),
    Module("metrics", f"{EVALUATION}/thresholds.py", 16, f"{TESTS}/test_thresholds.py"),
    Module("calibration", f"{EVALUATION}/calibration.py", 40, f"{TESTS}/test_calibration.py"),
    Module("splits", f"{SPLITS}.py", 30, f"{SPLITS}_test.py"),
    Module("checkpoint", "pneumojax/checkpoint.py", 26, "tests/test_checkpoint.py"),
    Module(
        "steps",
        "pneumojax/steps.py",
        26,
        f"tests/test_pretrain_steps.py::test_a_pretraining_step_reports_sums_over_images "
        f"{STEPS}::test_the_moving_average_follows_its_rule {STEPS} tests/training/test_pretrain.py",
    ),
]


class Mutant(NamedTuple):
    """One change of the code: the `occurrence`-th place where Cosmic Ray's `operator` applies in the file `path`."""

    path: str
    operator: str
    occurrence: int


def main(argv: list[str]) -> None:
    """Tries the mutants that have no result yet, and prints the table."""
    del argv
    results, commit = pathlib.Path(flags.FLAGS.results).resolve(), read_commit()
    history = read_history(results)
    tests = {module.path: module.tests for module in MODULES}
    limits: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pneumojax-mutants-") as folder:
        use_copy(pathlib.Path(folder))
        for mutant in draw_sample(flags.FLAGS.seed):
            outcomes = history.get(mutant, [])
            if outcomes and not (flags.FLAGS.survivors and outcomes[-1] == "survived"):
                continue
            command = f"{shlex.quote(sys.executable)} -m pytest -x -q -n 0 -p no:cacheprovider {tests[mutant.path]}"
            if mutant.path not in limits:
                limits[mutant.path] = measure_limit(command)
            row = {**mutant._asdict(), **try_mutant(mutant, command, limits[mutant.path]), "commit": commit}
            append_row(results, row)
            print(f"{row['outcome']:9} {row['seconds']:4.0f} s  {mutant.path} {row['line']}", flush=True)
    print(format_table(read_history(results)))


def read_history(results: pathlib.Path) -> dict[Mutant, list[str]]:
    """Returns the outcomes of all attempts at each mutant, from the first to the last."""
    history = collections.defaultdict(list)
    for row in read_rows(results):
        history[Mutant(row["path"], row["operator"], row["occurrence"])].append(row["outcome"])
    return dict(history)


def use_copy(folder: pathlib.Path) -> None:
    """Copies the working tree, and makes the copy the current folder and the source of all imports.

    A killed process then leaves a mutated copy, but never a mutated working tree.
    """
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
        if (ROOT / name).is_file():
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "tree" / name)
    os.chdir(folder / "tree")
    os.environ["PYTHONPATH"] = os.getcwd()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    # Cosmic Ray stops Python from writing bytecode, so the bytecode is written here. Mutated files must not have any.
    compileall.compile_dir(".", quiet=1)
    for module in MODULES:
        pathlib.Path(importlib.util.cache_from_source(module.path)).unlink(missing_ok=True)


def draw_sample(seed: int) -> list[Mutant]:
    """Draws the random sample of mutants, in the order of MODULES. Reads the modules in the current folder."""
    from cosmic_ray.commands.init import _all_work_items

    sample = []
    for module in MODULES:
        excluded = list(find_excluded(ast.parse(pathlib.Path(module.path).read_text())))
        specs = [item.mutations[0] for item in _all_work_items([pathlib.Path(module.path)], {})]
        random.Random(f"{seed} {module.path}").shuffle(specs)
        places: dict[tuple, Any] = {}
        for spec in specs:
            if not any(start <= spec.start_pos and spec.end_pos <= end for start, end in excluded):
                places.setdefault((spec.start_pos, spec.end_pos), spec)
        for spec in list(places.values())[: module.mutants]:
            sample.append(Mutant(module.path, spec.operator_name, spec.occurrence))
    return sample


def find_excluded(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yields the start and the end, as (line, column), of each type annotation and f-string."""
    for node in ast.walk(tree):
        nodes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        nodes.append(node if isinstance(node, ast.JoinedStr) else None)
        for found in filter(None, nodes):
            yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)


def measure_limit(command: str) -> float:
    """Returns the time limit of a run in seconds: four times as long as the tests take without a mutant.

    Exits if the tests fail without a mutant.
    """
    started = time.perf_counter()
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"mutation.py: the tests fail without a mutant:\n{done.stdout[-3000:]}")
    return max(MIN_LIMIT_SECONDS, 4 * (time.perf_counter() - started))


def try_mutant(mutant: Mutant, command: str, limit_seconds: float) -> dict[str, object]:
    """Runs the tests against a mutant. Returns the outcome, the seconds, and the lines that the mutant changes."""
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_item import MutationSpec

    spec = MutationSpec(pathlib.Path(mutant.path), mutant.operator, mutant.occurrence, (0, 0), (0, 1))
    started = time.perf_counter()
    result = mutate_and_test([spec], command, limit_seconds)
    if result.test_outcome is None or result.test_outcome.value == "incompetent":
        sys.exit(f"mutation.py: {mutant} could not be tried:\n{result.output}")
    outcome = "timeout" if result.output == "timeout" else result.test_outcome.value
    lines = result.diff.splitlines()
    return {
        "outcome": outcome,
        "seconds": round(time.perf_counter() - started, 1),
        "line": next(line for line in lines if line.startswith("@@")),
        "change": [line for line in lines if line[:1] in "+-" and not line.startswith(("---", "+++"))],
        "killed_by": next((line for line in result.output.splitlines() if line.startswith("FAILED")), None),
    }


def read_commit() -> str:
    """Returns the commit of the working tree, with "-dirty" if it has changes."""
    return subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, text=True).strip()


def format_table(history: dict[Mutant, list[str]]) -> str:
    """Returns a table in Markdown: a row for each group, with the first and the last outcome of its mutants."""
    groups = {module.path: module.group for module in MODULES}
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for mutant, outcomes in history.items():
        for row in (groups[mutant.path], "all"):
            counts[row]["mutants"] += 1
            for when, outcome in (("first", outcomes[0]), ("last", outcomes[-1])):
                counts[row][f"{outcome} {when}"] += 1
    lines = [
        "| module | mutants | killed | timed out | survived | killed, last | timed out, last | survived, last |",
        "| --- " * 8 + "|",
    ]
    for row in (*dict.fromkeys(groups.values()), "all"):
        cells = [f"{outcome} {when}" for when in ("first", "last") for outcome in ("killed", "timeout", "survived")]
        lines.append(f"| {' | '.join([row, *(str(counts[row][cell]) for cell in ('mutants', *cells))])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    # Not at the top, because a test imports this file, and flags of other commands have the same names.
    flags.DEFINE_string("results", None, "File of JSON lines to which the results are appended.", required=True)
    flags.DEFINE_integer("seed", 0, "Seed of the sample.")
    flags.DEFINE_bool("survivors", False, "Try the mutants that survived so far once more.")
    app.run(main)
