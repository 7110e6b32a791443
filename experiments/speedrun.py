"""Times whole trainings, from the decoded cache to weights that reach a target AUROC on validation.

    scripts/run experiments/speedrun.py --dataset=kermany --flagfile=experiments/presets/speedrun.flags
    scripts/run experiments/speedrun.py --dataset=kermany --flagfile=experiments/presets/speedrun.flags --dtype=bfloat16

The protocol is that of the CIFAR speedruns. The length of a training is fixed: nothing is scored while it runs, and
none is stopped or dropped by what it reached. The clock starts when the decoded cache is opened and stops when the
weights that are to be evaluated are ready on the device; init, order of the images and their way to the device are
inside. Validation is scored afterwards, outside of the clock; what that costs is printed. One training of another seed
(the one after the last) goes before and counts for nothing but the time with compilation: it starts from an empty
compile cache, in memory and on disk.

Each config field is a flag, as in train.py; --seed is the first seed. A row for each training is appended to --results,
and one for all of them at the end; beside it lies the table of all that was measured, as Markdown. Stopped at any time,
the same command with --resume goes on.
"""

import datetime
import logging
import math
import os
import pathlib
import shlex
import statistics
import tempfile
import time

from absl import flags

from experiments.flags import config_from_flags, define_config_flags, run
from experiments.record import RESULTS, count_cores, describe_machine, find_commit, own_words
from pneumojax.config import Config, config_to_dict, replace_fields
from pneumojax.errors import UserError
from pneumojax.writer import append_row, read_rows, write_text

SEEDS = flags.DEFINE_integer("seeds", 10, "trainings, with seeds seed, seed + 1, ...", lower_bound=2)
TARGET = flags.DEFINE_float("target", 0.99, "validation AUROC to be reached", lower_bound=0.5, upper_bound=1.0)
RESULT_FILE = flags.DEFINE_string("results", str(RESULTS / "speedrun.jsonl"), "file of JSON rows to append to")
RESUME = flags.DEFINE_bool("resume", False, "leave out the seeds that this command has already timed at this commit")

# Fields that would make it another race.
FIXED = ("pretrained", "cached_views", "replicas", "multihost", "selection_split")

logger = logging.getLogger("experiments")


def main() -> int:
    config = config_from_flags()
    check_rules(config)
    runs = [replace_fields(config, {"seed": config.train.seed + i}) for i in range(SEEDS.value + 1)]
    results = pathlib.Path(RESULT_FILE.value).expanduser()
    same = {"commit": find_commit(), "command": shlex.join(["experiments/speedrun.py", *own_words()])}
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
        logger.info("%s. Discarded; compiling the steps took %.1f s of it", format_training(warmup), compiled)
        for one in runs[:-1]:
            if one.train.seed in done:
                continue
            row = {"what": "training"} | racer.time(one.train.seed) | same
            logger.info("%s", format_training(row))
            append_row(results, row)
            done[row["seed"]] = row
    row = {"what": "speedrun", "fields": list_fields(config)} | summarise(list(done.values()), TARGET.value)
    row |= {"seconds_with_compilation": warmup["seconds"]} | racer.costs | describe_machine()
    row |= {"cores": count_cores(), "load": load, "created": _now()} | same
    append_row(results, row)
    write_text(results.with_suffix(".md"), format_page(read_rows(results)))
    print(f"\n{format_summary(row)}\nAdded to {results}, and to the table in {results.with_suffix('.md')}.")
    return 0


def check_rules(config: Config) -> None:
    """Raises a UserError where a field is set that would make it another race."""
    values, defaults = config_to_dict(config), config_to_dict(Config())
    for name in FIXED:
        if values[name] != defaults[name]:
            raise UserError(
                f"{name}={values[name]} is against the rules: a speedrun trains one network at a time, in one process "
                "and from a random start, and scores it on validation."
            )


class Racer:
    """The compiled training of a config, which any seed runs without compiling again.

    Args:
      config: the run; its seed does not count.
      compile_cache: empty folder, in which this process keeps what it compiles; None: the usual one.
    """

    def __init__(self, config: Config, compile_cache: pathlib.Path | None = None):
        # They import JAX: after the flags are known to be good.
        import jax

        from pneumojax import steps
        from pneumojax.data import split_epoch
        from pneumojax.losses import compute_class_weights
        from pneumojax.optimizer import make_optimizer
        from pneumojax.predict import make_predict_images
        from pneumojax.sharding import initialize, make_mesh
        from pneumojax.train import check_batch_size, load_splits

        if compile_cache:
            jax.config.update("jax_compilation_cache_dir", str(compile_cache))
        initialize(multihost=False)
        self.config, self.mesh = config, make_mesh()
        check_batch_size(config.train.batch_size, self.mesh)
        data, self.selection = load_splits(config)  # Makes the decoded cache if it is not there.
        self.chunks, chunk_steps = split_epoch(len(data), config.train.batch_size, config.train.chunk_steps)
        total_steps = config.train.epochs * self.chunks * chunk_steps
        tx, graph = make_optimizer(config.optimizer, total_steps), steps.make_graph(config)
        labels, task = data.labels(config.model.task), config.model.task
        class_weights = compute_class_weights(labels, task, config.optimizer.class_weights)
        self.sizes = config.data.progressive_px or (config.data.image_px,)
        self.train_chunks = [
            steps.make_train_chunk(config, graph, tx, class_weights, self.mesh, image_px) for image_px in self.sizes
        ]
        self.init = steps.make_init(config, tx, self.mesh)
        self.predict_images = make_predict_images(config, self.selection.images, self.mesh)
        self.images = total_steps * config.train.batch_size
        self.compiled = {}
        self.costs = {"compile_seconds": 0.0}

    def train(self, seed: int) -> dict:
        """Trains from the decoded cache on.

        Args:
          seed: of initialisation, order and augmentation.

        Returns:
          {"params", "batch_stats"} to evaluate, ready on the devices: those with which `fit` ends, bit by bit on CPU.
        """
        import jax

        from pneumojax import steps
        from pneumojax.data import load_split
        from pneumojax.train import feed

        config = replace_fields(self.config, {"seed": seed})
        data = load_split(config.data, "train")
        state, key = self.init(jax.random.key(seed)), steps.make_key(config, self.mesh)
        inputs_of_chunks = feed(config, (data.images, data.labels(config.model.task)), 0, self.mesh)
        for number, inputs in enumerate(inputs_of_chunks):
            size = number // self.chunks * len(self.sizes) // config.train.epochs
            state, _ = self._compile(size, (state, *inputs, key))(state, *inputs, key)
        return jax.block_until_ready(state.eval_variables())

    def _compile(self, size: int, arguments: tuple):
        """The compiled chunk for images of a size; what it cost is kept: the sum of seconds, else of the last size."""
        from pneumojax.timing import compile_chunk

        if size not in self.compiled:
            mapped = self.config.train.parallel != "jit"
            self.compiled[size], costs = compile_chunk(self.train_chunks[size], arguments, self.mesh.size, mapped)
            costs = {name.removeprefix("perf/"): number for name, number in costs.items()}
            costs["compile_seconds"] += self.costs["compile_seconds"]
            self.costs |= costs
        return self.compiled[size]

    def time(self, seed: int) -> dict:
        """Trains, and scores afterwards.

        Args:
          seed: as in `train`.

        Returns:
          {"seed", "seconds", "cpu_seconds" of all threads, "images", "evaluation_seconds", "auroc"}.

        Raises:
          UserError: the training has diverged.
        """
        from pneumojax.train import score_validation

        started, cpu_started = time.perf_counter(), time.process_time()
        variables = self.train(seed)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        started = time.perf_counter()
        scores = score_validation(self.selection.labels(self.config.model.task), self.predict_images(variables))
        if "val/auroc" not in scores:
            raise UserError(f"seed {seed} has diverged: its loss is not finite. A lower --learning_rate is the cure.")
        return {
            "seed": seed,
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "images": self.images,
            "evaluation_seconds": time.perf_counter() - started,
            "auroc": scores["val/auroc"],
        }


def is_of(row: dict, same: dict) -> bool:
    """Whether a row is of this command at this commit, or of that of another row."""
    return all(row[name] == same[name] for name in ("commit", "command"))


def find_trainings(rows: list[dict], same: dict) -> list[dict]:
    """The trainings of a command at a commit; of a seed that was timed twice the last one."""
    those = {row["seed"]: row for row in rows if row["what"] == "training" and is_of(row, same)}
    return sorted(those.values(), key=lambda row: row["seed"])


def list_fields(config: Config) -> dict:
    """What of the config is not its default, less the seed and where the data lie."""
    values, defaults = config_to_dict(config), config_to_dict(Config())
    return {
        name: value for name, value in values.items() if value != defaults[name] and name not in ("data_dir", "seed")
    }


def summarise(trainings: list[dict], target: float) -> dict:
    """The figures of all trainings of a command.

    Args:
      trainings: rows of `Racer.time`, at least two.
      target: AUROC to be reached.

    Returns:
      {"seconds", "cpu_seconds", "auroc"}: of each {"mean", "deviation", "low", "high"}: of the sample, and its
      extremes; "auroc_interval": of the mean, see `compute_interval`; "reached": how many have the target;
      "images_per_second" and "evaluation_seconds": medians; "seeds", "target", "images".
    """
    columns = {name: [row[name] for row in trainings] for name in trainings[0]}
    spread = {
        name: {
            "mean": statistics.fmean(columns[name]),
            "deviation": statistics.stdev(columns[name]),
            "low": min(columns[name]),
            "high": max(columns[name]),
        }
        for name in ("seconds", "cpu_seconds", "auroc")
    }
    return {
        "seeds": sorted(columns["seed"]),
        "target": target,
        "reached": sum(auroc >= target for auroc in columns["auroc"]),
        **spread,
        "auroc_interval": compute_interval(columns["auroc"]),
        "images": trainings[0]["images"],
        "images_per_second": statistics.median(row["images"] / row["seconds"] for row in trainings),
        "evaluation_seconds": statistics.median(columns["evaluation_seconds"]),
    }


def compute_interval(values: list[float]) -> list[float]:
    """The 95 % interval of the mean of at least two values, by Student's t: for other seeds, not for other images."""
    from scipy.special import stdtrit  # JAX does not go without scipy.

    half = stdtrit(len(values) - 1, 0.975) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


def format_training(row: dict) -> str:
    """A line of progress."""
    times = f"{row['seconds']:.3f} s ({row['cpu_seconds']:.3f} s of CPU)"
    return f"seed {row['seed']}: {times}, AUROC {row['auroc']:.4f}, scored in {row['evaluation_seconds']:.3f} s"


def format_summary(row: dict) -> str:
    """All that the row of a command says, in lines."""
    auroc, seconds, cpu = row["auroc"], row["seconds"], row["cpu_seconds"]
    low, high = row["auroc_interval"]
    reaches = "reaches" if auroc["mean"] >= row["target"] else "does not reach"
    device, versions = row["device"], ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return "\n".join(
        (
            f"Validation AUROC {auroc['mean']:.4f} ± {auroc['deviation']:.4f} over {len(row['seeds'])} seeds "
            f"({auroc['low']:.4f} to {auroc['high']:.4f}); 95 % interval of the mean {low:.4f} to {high:.4f} "
            f"(t, over seeds). The mean {reaches} {row['target']:g}; {row['reached']} of {len(row['seeds'])} seeds do.",
            f"Seconds {_format_seconds(seconds)} ({seconds['low']:.3f} to {seconds['high']:.3f}), of CPU "
            f"{_format_seconds(cpu)}; {row['images_per_second']:,.0f} images/s.",
            f"With compilation, from an empty compile cache: {row['seconds_with_compilation']:.2f} s, "
            f"{row['compile_seconds']:.2f} s of it for the steps. Warm-up: that training, of another seed.",
            f"Outside of the clock: validation, {row['evaluation_seconds']:.3f} s each time.",
            f"{device['count']} x {device['kind']}, {row['cores']} cores, load at the start {row['load']:.1f}; "
            f"{versions}; commit {row['commit']}.",
            f"Command: {row['command']}",
        )
    )


def format_page(rows: list[dict]) -> str:
    """The table of all commands as Markdown.

    Args:
      rows: of the results file. Of commands with the same fields on the same device the last one counts. The first
        command of a network on a device is what its others are compared with, seed by seed.
    """
    races, bases = {}, {}
    for row in rows:
        if row["what"] == "speedrun":
            races[str((row["fields"], row["device"]))] = row
    for row in races.values():
        bases.setdefault(_find_class(row), row)
    lines = [
        "# Speedrun",
        "",
        "Whole trainings of fixed length; the clock starts when the decoded cache is opened and stops when the weights "
        "are ready on the device. Warm-up: one discarded training of another seed. Mean ± standard deviation over the "
        "seeds; intervals are t-intervals of means over seeds. AUROC is of validation, where presets were tuned: it "
        "is optimistic. A network's first row has all its fields, the others what they change; difference: AUROC "
        "less that of the first row, seed by seed. Reached: how many seeds have the target, 0.99 unless a command says "
        "otherwise. Seconds under load mean little. Made by experiments/speedrun.py.",
        "",
        "| fields | seeds | AUROC | difference | reached | seconds | CPU seconds | with compilation | images/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in races.values():
        auroc, (low, high), base = row["auroc"], row["auroc_interval"], bases[_find_class(row)]
        lines.append(
            f"| {_format_fields(row, base)} | {_format_seeds(row['seeds'])} "
            f"| {auroc['mean']:.4f} ± {auroc['deviation']:.4f} ({low:.4f} to {high:.4f}) "
            f"| {_format_difference(rows, row, base)} | {row['reached']} of {len(row['seeds'])} "
            f"| {_format_seconds(row['seconds'])} | {_format_seconds(row['cpu_seconds'])} "
            f"| {row['seconds_with_compilation']:.1f} | {row['images_per_second']:,.0f} |"
        )
    lines += ["", "Commands, devices and loads, in this order:", ""]
    for row in races.values():
        device = f"{row['device']['count']} x {row['device']['kind']}, {row['cores']} cores, load {row['load']:.1f}"
        lines.append(f"- `{row['command']}`: {device}, jax {row['versions']['jax']}, commit {row['commit']}")
    return "\n".join(lines) + "\n"


def _format_fields(row: dict, base: dict) -> str:
    """All fields of a first row; of another those that are not the first's."""
    fields, defaults = row["fields"], config_to_dict(Config())
    if row is not base:
        names = [name for name in base["fields"] | fields if base["fields"].get(name) != fields.get(name)]
        fields = {name: fields.get(name, defaults[name]) for name in names}
    words = (f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in fields.items())
    return ", ".join(words)


def _find_class(row: dict) -> str:
    return str((row["fields"].get("model"), row["device"]))


def _format_seconds(spread: dict) -> str:
    digits = 3 if spread["mean"] < 1 else 2
    return f"{spread['mean']:.{digits}f} ± {spread['deviation']:.{digits}f}"


def _format_seeds(seeds: list[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if seeds[-1] - seeds[0] == len(seeds) - 1 else ", ".join(map(str, seeds))


def _format_difference(rows: list[dict], row: dict, base: dict) -> str:
    """The mean difference over the seeds of both, with its interval."""
    if row is base:
        return ""
    ours, theirs = ({one["seed"]: one["auroc"] for one in find_trainings(rows, of)} for of in (row, base))
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if len(differences) < 2:
        return ""
    low, high = compute_interval(differences)
    return f"{statistics.fmean(differences):+.4f} ({low:+.4f} to {high:+.4f}), {len(differences)} seeds"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    define_config_flags()
    run(main)
