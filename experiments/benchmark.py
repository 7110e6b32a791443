"""Measures how fast things are, on whatever device there is, and PyTorch and Keras doing the same work beside.

    scripts/run experiments/benchmark.py --what=step --model=resnet18,flatiron --image_px=112,224 --noaugment
    scripts/run experiments/benchmark.py --what=epoch --model=resnet18 --image_px=112 --images=chest_xray/train \\
        --peer=torch,keras --peer_python=PYTHON      # an environment with the extra `peers` of pyproject.toml
    scripts/run experiments/benchmark.py --suite=cpu       # what README.md shows; also gpu, and growth
    scripts/run experiments/benchmark.py --plot            # a page of all that was measured

Each config field is a flag, as in train.py; several values, separated by commas, are measured one after another. Each
case runs in a process of its own. With peers, all are ready at once and work in turn (ours, torch, keras, ours ...), so
that what else the machine does hits all alike. Prints medians and quartiles, and appends a row for each to --results.
Stopped at any time, the same command with --resume goes on. Figures of a machine that does other work mean little.
"""

import contextlib
import datetime
import itertools
import json
import logging
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import typing

from absl import flags

from experiments.benchmarks.page import COLUMNS, format_table, write_page
from experiments.benchmarks.records import RESULTS, ROOT, count_cores, find_commit, own_words
from experiments.flags import config_from_flags, define_config_flags, fail, run
from pneumojax.config import Config, config_fields, config_to_dict
from pneumojax.errors import UserError
from pneumojax.files import append_row, read_rows

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
NEEDS = {"torch": "torch, PIL", "keras": "keras, tensorflow"}

# What the peers know of a config; a field that is set and not among these would make it other work.
PEER_FIELDS = ("model", "image_px", "batch_size", "dtype", "resnet_width", "dropout", "rotate_degrees", "shift", "zoom")
PEER_MODELS = ("flatiron", "resnet18", "resnet34", "resnet50")

# In a step and an epoch, augmentation is geometry only, which the peers have too.
GEOMETRY = ("rotate_degrees", "shift", "zoom")
INTENSITY = ("brightness", "contrast", "gamma")

# Lines of flags; flags beside --suite win over them.
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
    "gpu": (
        "--what=step --model=resnet50 --image_px=224 --dtype=bfloat16 --batch_size=32,64,128,256,512",
        "--what=step --model=resnet50 --image_px=224 --batch_size=128",
        "--what=epoch --model=resnet50 --image_px=224 --dtype=bfloat16 --batch_size=128 --repeats=3",
        "--what=fit --model=resnet50 --image_px=224 --dtype=bfloat16 --batch_size=32 --epochs=3 --repeats=2",
        "--what=predict --model=resnet50 --image_px=224 --dtype=bfloat16 --eval_batch_size=256",
    ),
    "growth": (
        "--what=step --model=resnet18 --resnet_width=16 --image_px=64 --batch_size=8,16,32,64,128",
        "--what=step --model=resnet18 --resnet_width=16 --image_px=32,64,128,256 --batch_size=16",
        "--what=step --model=cnn --image_px=64 --batch_size=64 --devices=1,2,4,8",
        "--what=decode,epoch --model=cnn --limit=100,200,400,800 --repeats=4",
    ),
}

DRAWN = 400  # JPEG files, where --limit does not tell.

logger = logging.getLogger("experiments")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the script's own flags, and for each config field one that takes several values."""
    own = {"flag_values": values}
    flags.DEFINE_list("what", ["step"], f"what to measure: {'; '.join(f'{k}: {v}' for k, v in WHAT.items())}", **own)
    flags.DEFINE_list("peer", [], f"what to set beside it: {', '.join(PEERS)}", **own)
    flags.DEFINE_string("peer_python", sys.executable, "Python that has what the peers need", **own)
    flags.DEFINE_string(
        "images", None, "folder with JPEG files in NORMAL/ and PNEUMONIA/ (default: some are drawn)", **own
    )
    flags.DEFINE_list("limit", [], "how many of the JPEG files are used (default: all)", **own)
    flags.DEFINE_list("devices", [], "how many devices: simulated on CPU, the first ones on GPU (default: all)", **own)
    flags.DEFINE_integer("steps", 8, "training or prediction steps of a call", lower_bound=1, **own)
    flags.DEFINE_integer("repeats", 8, "times that each case is measured, after a warm-up", lower_bound=2, **own)
    flags.DEFINE_bool("augment", True, "of a step and an epoch: rotate, shift and zoom each image", **own)
    flags.DEFINE_enum("suite", None, tuple(SUITES), "a set of cases; flags beside it win", **own)
    flags.DEFINE_bool("resume", False, "leave out what this command has already measured at this commit", **own)
    flags.DEFINE_bool("plot", False, "measure nothing: write a page of --results beside it", **own)
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
    own = [word for word in sys.argv[1:] if not word.lstrip("-").startswith(("suite", "resume"))]
    lines = [parse([*line.split(), *own]) for line in SUITES[values.suite]] if values.suite else [values]
    cases = []
    for case in (case for line in lines for case in plan_cases(line)):
        if case not in cases:  # A flag that wins over two lines may make them one; a limit is no choice without files.
            cases.append(case)
    for name in sorted({peer for case in cases for peer in case["peers"]} & set(NEEDS)):
        check_peer(values.peer_python, name)
    commit, command = find_commit(), shlex.join(["experiments/benchmark.py", *own_words()])
    done = {make_key(row) for row in read_rows(results) if (row["commit"], row["command"]) == (commit, command)}
    results.parent.mkdir(parents=True, exist_ok=True)
    rows, failures = [], 0
    with tempfile.TemporaryDirectory(prefix="pneumojax-benchmark-") as folder:
        for number, case in enumerate(cases):
            logger.info("%d of %d: %s", number + 1, len(cases), describe_case(case))
            if values.resume and make_key(describe_choices(case, "pneumojax")) in done:
                continue
            try:
                measured = measure_in_turn(case, pathlib.Path(folder), values.peer_python)
            except ChildProcessError as error:  # As a batch that does not fit the memory: the others may.
                logger.error("%s", error)
                failures += 1
                continue
            for row in measured:
                rows.append(row | {"commit": commit, "command": command})
                append_row(results, rows[-1])
    print(format_table(rows))
    print(f"{len(rows)} rows added to {results}. Next: scripts/run experiments/benchmark.py --plot --results={results}")
    return fail(f"{failures} of {len(cases)} cases failed; why is said above.") if failures else 0


def parse(words: list[str]) -> flags.FlagValues:
    """Flags from a list of words.

    Raises:
      UserError: a flag is unknown or its value no good.
    """
    values = flags.FlagValues()
    define_flags(values)
    try:
        values([sys.argv[0], *words])
    except flags.Error as error:
        raise UserError(f"{error}.") from error
    return values


def plan_cases(values: flags.FlagValues) -> list[dict]:
    """All combinations of the flags' values, each as `measure.py` takes it, with its peers.

    Raises:
      UserError: a value is no good, or a peer cannot do the same work.
    """
    for name, known in (("what", WHAT), ("peer", PEERS)):
        if wrong := [word for word in values[name].value if word not in known]:
            raise UserError(f"--{name}={wrong[0]} is unknown: there are {', '.join(known)}.")
    numbers = {name: [_read_number(name, word) for word in values[name].value] or [None] for name in _COUNTS}
    given = {field.name: values[field.name].value for field in config_fields() if values[field.name].value is not None}
    choices = [value if isinstance(value, list) else [value] for value in given.values()]
    cases = []
    for what, devices, limit, *chosen in itertools.product(values.what, numbers["devices"], numbers["limit"], *choices):
        fields = dict(zip(given, chosen, strict=True))
        case = {
            "what": what,
            "config": config_to_dict(make_config(fields, what, values.augment)),
            "steps": values.steps,
            "repeats": values.repeats,
            "augment": values.augment if what in PEERS["torch"] else None,
            "images": values.images if what in _FROM_FILES else None,
            "limit": limit if what in _FROM_FILES else None,
            "devices": devices,
            "cores": count_cores(),
        }
        case["peers"] = [peer for peer in values.peer if what in PEERS[peer]]
        for peer in set(case["peers"]) - {"pillow"}:
            foreign = [name for name in fields if name not in PEER_FIELDS]
            if foreign or case["config"]["model"] not in PEER_MODELS:
                wrong = f"{foreign[0]}={fields[foreign[0]]}" if foreign else f"model={case['config']['model']}"
                raise UserError(f"--peer={peer} does not know --{wrong}, so it would not do the same work.")
        if devices and case["config"]["batch_size"] % devices:
            raise UserError(f"--batch_size={case['config']['batch_size']} is not divisible by --devices={devices}.")
        cases.append(case)
    return cases


_COUNTS = ("devices", "limit")
_FROM_FILES = ("epoch", "decode")


def _read_number(name: str, word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise UserError(f"--{name}={word} must be a whole number above 0.")
    return int(word)


def make_config(fields: dict[str, str], what: str, augment: bool) -> Config:
    """The config of these fields, as flags give them; a step and an epoch have no augmentation but geometry.

    Raises:
      UserError: a value is no good.
    """
    values = flags.FlagValues()
    define_config_flags(values)
    preset = {}
    if what in PEERS["torch"]:
        preset = dict.fromkeys(INTENSITY if augment else (*GEOMETRY, *INTENSITY), "0")
    try:
        values([sys.argv[0], *(f"--{name}={value}" for name, value in (preset | fields).items())])
    except flags.Error as error:
        raise UserError(f"{error}.") from error
    return config_from_flags(values)


def check_peer(python: str, name: str) -> None:
    """Makes sure that a Python has what a peer needs.

    Raises:
      UserError: it has not; says what to do.
    """
    try:
        done = subprocess.run([python, "-c", f"import {NEEDS[name]}"], capture_output=True, text=True, env=_clean())
    except OSError as error:
        raise UserError(f"--peer_python={python} cannot be started: {error.strerror}.") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it fails"
        raise UserError(
            f"--peer_python={python} cannot import {NEEDS[name]} ({reason}). Make an environment with the packages of "
            "the extra `peers` in pyproject.toml and name its Python."
        )


def _clean() -> dict[str, str]:
    """The environment without what belongs to our own Python."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


class Worker:
    """A process that measures one case in one framework, when it is asked to."""

    def __init__(self, case: dict, framework: str, python: str):
        self.framework = framework
        ours = framework in ("pneumojax", "pillow")
        program = (
            [sys.executable, "-m", "experiments.benchmarks.measure"]
            if ours
            else [python, str(ROOT / "experiments/benchmarks/peers.py")]
        )
        environment = _clean() | ({"PYTHONPATH": str(ROOT)} if ours else {})
        if case["peers"]:
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # The peers need memory of the GPU too.
        if case["devices"]:
            environment["JAX_NUM_CPU_DEVICES"] = str(case["devices"])
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(case["devices"])))
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*program, json.dumps(case | {"framework": framework})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def read(self) -> dict:
        """What the process says next.

        Raises:
          UserError: what it says is for the user.
          ChildProcessError: it has ended.
        """
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            lines = [line for line in self.log.read().splitlines() if re.match(r"[\w.]+(Error|Exception)\b", line)]
            raise ChildProcessError(
                f"{self.framework}: {lines[-1] if lines else f'ended with {self.process.returncode}'}"
            )
        content = json.loads(line)
        if "error" in content:
            raise UserError(content["error"])
        return content

    def repeat(self) -> dict:
        """Measures once: {"seconds", "images"}."""
        with contextlib.suppress(BrokenPipeError):  # read() tells why.
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(BrokenPipeError):
                file.close()


def measure_in_turn(case: dict, folder: pathlib.Path, peer_python: str) -> list[dict]:
    """Measures a case in all its frameworks in turn; a row for each.

    Raises:
      UserError: bad input, or a peer's network is another one.
      ChildProcessError: a process ended.
    """
    load = os.getloadavg()[0]
    if case["what"] in _FROM_FILES:
        case = case | {"files": str(list_files(case["images"], case["limit"], folder))}
    with contextlib.ExitStack() as stack:

        def start(framework):
            worker = Worker(case, framework, peer_python)
            stack.callback(worker.close)
            return worker, worker.read()

        # One after another, so that their compile times do not disturb each other.
        started = [start("pneumojax")]
        device = started[0][1]["device"]
        if case["devices"] not in (None, device["count"]):
            raise UserError(f"--devices={case['devices']}: there are {device['count']} of {device['kind']}.")
        started += [start(name) for name in list_frameworks(case["peers"], device["platform"])]
        sizes = {worker.framework: ready["parameters"] for worker, ready in started if "parameters" in ready}
        if len(set(sizes.values())) > 1:
            raise UserError(f"the networks differ, so this is not the same work: parameters {sizes}.")
        samples = [[] for _ in started]
        for _ in range(case["repeats"]):
            for (worker, _), those in zip(started, samples, strict=True):
                those.append(worker.repeat())
    rows = [
        describe_choices(case, worker.framework) | summarise(case, ready, those) | {"load": load}
        for (worker, ready), those in zip(started, samples, strict=True)
    ]
    set_ratio(rows)
    return rows


def list_frameworks(peers: list[str], platform: str) -> list[str]:
    """The ways in which the peers are tried."""
    ways = {"torch": ["torch", "torch channels_last"]}
    if platform != "cpu":
        ways["torch"].append("torch compile channels_last")
    return [way for peer in peers for way in ways.get(peer, [peer])]


def list_files(images: str | None, limit: int | None, folder: pathlib.Path) -> pathlib.Path:
    """Writes the list of JPEG files that a case reads, evenly taken from all; draws them if there are none.

    Raises:
      UserError: the folder has none, or fewer than the limit.
    """
    if images:
        root = pathlib.Path(images).expanduser()
    else:
        from tfds_builder.kermany_pneumonia import phantom

        drawn = folder / f"drawn-{limit or DRAWN}"
        if not drawn.exists():
            phantom.draw_folder(drawn, max(60, 3 * (limit or DRAWN) // 2))  # A quarter is test, and a few are val.
        root = drawn / "chest_xray" / "train"
    files = [
        (str(path.resolve()), label)
        for label, name in enumerate(("NORMAL", "PNEUMONIA"))
        for path in sorted((root / name).glob("*.jp*g"))
    ]
    if not files or len(files) < (limit or 0):
        raise UserError(f"--images={root}: there are {len(files)} JPEG files in its folders NORMAL and PNEUMONIA.")
    count = limit or (len(files) if images else DRAWN)
    files = [files[i * len(files) // count] for i in range(count)]
    path = folder / f"files-{len(files)}.json"
    path.write_text(json.dumps(files))
    return path


def describe_choices(case: dict, framework: str) -> dict:
    """What tells a row from others: the case's choices, and of the config also each field that is not its default."""
    config, default = case["config"], config_to_dict(make_config({}, case["what"], bool(case["augment"])))
    named = {name: config[name] for name in ("model", "image_px", "batch_size", "dtype")}
    named["batch_size"] = config["eval_batch_size"] if case["what"] == "predict" else config["batch_size"]
    fields = {name: value for name, value in config.items() if name not in named and value != default[name]}
    fields.pop("data_dir", None)
    chosen = {name: case[name] for name in ("augment", "devices", "limit", "steps")}
    return {"what": case["what"], "framework": framework} | named | chosen | {"fields": fields}


def make_key(row: dict) -> str:
    """Rows with the same key measure the same."""
    return json.dumps([row[name] for name in COLUMNS], sort_keys=True)


def describe_case(case: dict) -> str:
    """As "step, resnet18, 112 px, batch 32, float32, beside torch"."""
    row = describe_choices(case, "pneumojax")
    parts = [row["what"], row["model"], f"{row['image_px']} px", f"batch {row['batch_size']}", row["dtype"]]
    parts += [f"{row[name]} {name}" for name in ("devices", "limit") if row[name]]
    return ", ".join(parts) + (f", beside {', '.join(case['peers'])}" if case["peers"] else "")


def summarise(case: dict, ready: dict, samples: list[dict]) -> dict:
    """Medians and quartiles of the samples; an epoch's first one stands apart."""
    later = samples[1:] if case["what"] == "epoch" else samples
    seconds = [sample["seconds"] for sample in later]
    row = {"seconds": compute_spread(seconds), "images_per_second": None, "repeats": len(later)}
    if "images" in samples[0]:
        row["images"] = samples[0]["images"]
        row["images_per_second"] = compute_spread([sample["images"] / sample["seconds"] for sample in later])
    if case["what"] == "epoch":
        row["first_seconds"] = samples[0]["seconds"]
    if "host_share" in samples[0]:
        row["host_share"] = statistics.median(sample["host_share"] for sample in samples)
    peak = ready.pop("peak_flops", None)
    if peak and ready.get("flops_per_step") and row["images_per_second"]:
        size = describe_choices(case, "")["batch_size"]
        reached = ready["flops_per_step"] * row["images_per_second"]["median"] / size
        row["model_flop_utilisation"] = reached / (peak * ready["device"]["count"])
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return row | ready | {"cores": case["cores"], "created": created}


def compute_spread(numbers: list[float]) -> dict:
    """{"median", "low", "high"}: the median and the quartiles."""
    if len(numbers) == 1:
        return {"median": numbers[0], "low": numbers[0], "high": numbers[0]}
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def set_ratio(rows: list[dict]) -> None:
    """Gives our row, the first, its speed as a share of the best peer's; in an epoch also for the first epoch."""
    ours, *peers = rows
    if peers:
        speeds = [row["images_per_second"]["median"] for row in peers]
        ours["ratio"] = ours["images_per_second"]["median"] / max(speeds)
        if "first_seconds" in ours:
            rates = [row["images"] / row["first_seconds"] for row in rows]
            ours["first_ratio"] = rates[0] / max(rates[1:])


def plot(results: pathlib.Path) -> int:
    """Writes the page of all rows and its pictures."""
    rows = read_rows(results)
    if not rows:
        return fail(f"{results} holds no rows yet. Measure something first: --what=step")
    print(f"Written: {write_page(results, rows)}")
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    run(main)
