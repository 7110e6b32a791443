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

import dataclasses
import datetime
import logging
import os
import pathlib
import shlex
import tempfile
import time
from collections.abc import Callable

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


class Racer:
    """The compiled training of a config. All seeds use the same compiled program.

    Args:
      config: the config of the trainings. Its seed is not used.
      compile_cache: empty folder for the programs that this process compiles; None: JAX's usual folder.
    """

    def __init__(self, config: Config, compile_cache: pathlib.Path | None = None):
        # These import JAX, so they come after the flag checks.
        import jax

        from pneumojax import steps
        from pneumojax.evaluation.aspect import add_swapped
        from pneumojax.evaluation.predict import make_predict_images
        from pneumojax.training.fit import make_train_chunks
        from pneumojax.training.plan import load_selection_split, make_plan

        if compile_cache:
            jax.config.update("jax_compilation_cache_dir", str(compile_cache))
        self.config, self.plan = config, make_plan(config)  # Also writes the decoded cache if it does not exist yet.
        self.selection, self.mesh = add_swapped(load_selection_split(config)), self.plan.mesh
        self.train_chunks = make_train_chunks(self.plan)
        self.init = steps.make_init(config, self.plan.tx, self.mesh)
        self.predict_images = make_predict_images(config, self.selection.images, self.mesh)
        self.images = self.plan.total_steps * config.train.batch_size
        self.compiled: dict[int, Callable] = {}
        self.costs = {"compile_seconds": 0.0}

    def train(self, seed: int) -> dict:
        """Trains, starting from the decoded cache.

        Args:
          seed: seed of initialisation, order and augmentation.

        Returns:
          {"params", "batch_stats"} to evaluate, ready on the devices. On CPU, `fit` gives bitwise equal arrays.
        """
        import jax

        from pneumojax import steps
        from pneumojax.data.dataset import load_split
        from pneumojax.training.input_pipeline import make_chunk_inputs

        config = replace_fields(self.config, {"seed": seed})
        # The images are loaded again, because loading is part of what is timed.
        plan = dataclasses.replace(self.plan, config=config, data=load_split(config.data, "train"))
        state, key = self.init(jax.random.key(seed)), steps.make_key(config, self.mesh)
        chunk_inputs = make_chunk_inputs(plan, (plan.data.images, plan.labels()), key, 0)
        for number, inputs in enumerate(chunk_inputs):
            size = plan.find_size(number * plan.chunk_steps)
            state, _ = self._compile(size, (state, *inputs))(state, *inputs)
        return jax.block_until_ready(state.eval_variables())

    def _compile(self, size: int, arguments: tuple) -> Callable:
        """Returns the compiled chunk for a size and stores its costs. Compile times are summed over the sizes."""
        from pneumojax.training.compile_cost import compile_chunk

        if size not in self.compiled:
            mapped = self.config.train.parallel != "jit"
            self.compiled[size], costs = compile_chunk(self.train_chunks[size], arguments, self.mesh.size, mapped)
            costs = {name.removeprefix("perf/"): number for name, number in costs.items()}
            costs["compile_seconds"] += self.costs["compile_seconds"]
            self.costs |= costs
        return self.compiled[size]

    def time(self, seed: int) -> dict:
        """Measures the time of a training, and evaluates it on validation afterwards.

        Args:
          seed: as in `train`.

        Returns:
          {"seed", "seconds", "cpu_seconds" (of all threads), "images", "evaluation_seconds", "auroc"}.

        Raises:
          UserError: the training has diverged.
        """
        from pneumojax.training.validation import score_validation

        started, cpu_started = time.perf_counter(), time.process_time()
        variables = self.train(seed)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        started = time.perf_counter()
        labels = self.selection.labels(self.config.model.task)
        scores = score_validation(labels, self.predict_images(variables))
        if "val/auroc" not in scores:
            raise UserError(f"seed {seed} has diverged: its loss is not finite. Set a lower --learning_rate.")
        return {
            "seed": seed,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "images": self.images,
            "evaluation_seconds": time.perf_counter() - started,
            "auroc": scores["val/auroc"],
        }


if __name__ == "__main__":
    define_config_flags()
    run(main)
