"""Measures one thing in a process of its own: benchmark.py starts it with a case and asks for one repeat after another.

    python -m experiments.benchmarks.measure '{"what": "step", "config": {...}, ...}'

A case is a dict: what, one of MEASURES; config, as `config_to_dict` gives it; steps of a repeat, and files, the name of
a JSON file of [[path, label], ...]. Prints a JSON line when it is ready, with what that took, then one with
seconds for each line that it reads. {"error": sentence} is for what the user can mend.
"""

import atexit
import dataclasses
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from PIL import Image

from experiments.benchmarks.records import describe_machine
from pneumojax import checkpoint, steps
from pneumojax.config import Config, config_from_dict, config_to_dict
from pneumojax.data.dataset import load_split, make_epoch_batches, make_eval_batches, split_epoch
from pneumojax.data.decode import decode_image, decode_images
from pneumojax.errors import UserError
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.run import Run
from pneumojax.files import read_rows
from pneumojax.inference import make_predict
from pneumojax.ops.convolution import uses_xla_algorithms, xla_algorithms
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import initialize, make_mesh, put
from pneumojax.training.compile_cost import compile_chunk, find_peak_flops
from pneumojax.training.fit import describe_run, fit
from tfds_builder import kermany_pneumonia

TRAIN = pathlib.Path(__file__).parents[1] / "train.py"


class Training:
    """A network in training on images that lie on the devices."""

    def __init__(self, config: Config, num_images: int, chunk_steps: int):
        self.config, self.mesh = config, make_mesh()
        tx, graph = make_optimizer(config.optimizer, 10_000), steps.make_graph(config)
        chunk = steps.make_train_chunk(config, graph, tx, np.ones(2, np.float32), self.mesh)
        self.state = steps.init_state(config, tx, self.mesh)
        self.key = steps.make_key(config, self.mesh)
        self.put_images(*draw_images(num_images, config.data.image_px))
        batches = np.arange(chunk_steps * config.train.batch_size, dtype=np.int32) % num_images
        self.batches = steps.put_batches(batches.reshape(chunk_steps, -1), config, self.mesh)
        arguments = (self.state, self.images, self.labels, self.batches, self.key)
        self.chunk, self.ready = compile_counted(chunk, arguments, self.mesh.size, config.train.parallel != "jit")
        jax.block_until_ready(self.train(self.batches))
        self.ready["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    def put_images(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Puts [N, H, W] uint8 images and [N] int32 labels on the devices."""
        self.images, self.labels = put(images, self.mesh), put(labels, self.mesh)

    def train(self, batches: jax.Array) -> dict:
        """Dispatches one chunk; returns its sums, still on their way."""
        self.state, sums = self.chunk(self.state, self.images, self.labels, batches, self.key)
        return sums


def compile_counted(function: Callable, arguments: tuple, devices: int, mapped: bool) -> tuple[Callable, dict]:
    """`compile_chunk`, its costs named as a row names them; with the bytes that XLA's own forms move on CPU too."""
    compiled, costs = compile_chunk(function, arguments, devices, mapped)
    if not uses_xla_algorithms():
        with xla_algorithms(True):
            _, own = compile_chunk(function, arguments, devices, mapped)
        costs["perf/bytes_per_step"] = own["perf/bytes_per_step"]
    return compiled, {name.removeprefix("perf/"): number for name, number in costs.items()}


def draw_images(num_images: int, image_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and labels half of each class."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, image_px, image_px), dtype=np.uint8)
    return images, np.arange(num_images, dtype=np.int32) % 2


def start_step(config: Config, case: dict):
    """Steps of training in one call, on images that lie on the device."""
    training = Training(config, 4 * config.train.batch_size, case["steps"])

    def repeat():
        jax.block_until_ready(training.train(training.batches))
        return {"images": case["steps"] * config.train.batch_size}

    return training.ready, repeat


def start_epoch(config: Config, case: dict):
    """An epoch from JPEG files. The first decodes them all and keeps them as a cache would; the later ones need not."""
    files = json.loads(pathlib.Path(case["files"]).read_text())
    batch_size, image_px = config.train.batch_size, config.data.image_px
    chunks, chunk_steps = split_epoch(len(files), batch_size, case["steps"])
    training = Training(config, len(files), chunk_steps)
    epochs = iter(range(1_000_000))

    def repeat():
        if (epoch := next(epochs)) == 0:
            images = decode_images(_Files([path for path, _ in files]), [path for path, _ in files], image_px)
            with tempfile.TemporaryFile() as cache:
                np.save(cache, images)
            training.put_images(images, np.array([label for _, label in files], np.int32))
        for batches in make_epoch_batches(len(files), batch_size, chunks, chunk_steps, 0, epoch):
            sums = training.train(steps.put_batches(batches, config, training.mesh))
        jax.block_until_ready(sums)
        return {"images": chunks * chunk_steps * batch_size}

    return training.ready, repeat


class _Files:
    """Files' bytes, read when they are asked for."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> bytes:
        return pathlib.Path(self.paths[i]).read_bytes()


def start_fit(config: Config, case: dict):
    """A whole training as train.py does it, on the prepared data set; speed is that of its chunks, in the middle."""
    del case
    workdir = _make_folder()
    fit(config, workdir, restart=True)

    def repeat():
        result = fit(config, workdir, restart=True)
        rows = [row for row in read_rows(workdir / "metrics.jsonl") if "perf/images_per_second" in row]
        if not rows:
            raise UserError("a fit of one chunk has no speed: more --epochs, or fewer --chunk_steps.")
        middle = {
            name: statistics.median(row[name] for row in rows) for name in ("perf/images_per_second", "perf/host_share")
        }
        images = result.trained_steps * config.train.batch_size
        seconds = images / middle["perf/images_per_second"]
        return {"images": images, "seconds": seconds, "host_share": middle["perf/host_share"]}

    costs = next(row for row in read_rows(workdir / "metrics.jsonl") if "perf/compile_seconds" in row)
    return {name.removeprefix("perf/"): costs[name] for name in costs if name.startswith("perf/")}, repeat


def start_predict(config: Config, case: dict):
    """Prediction of images that lie on the device, in batches of eval_batch_size."""
    mesh = make_mesh()
    batches = make_eval_batches(case["steps"] * config.train.eval_batch_size, config.train.eval_batch_size, mesh.size)
    state = steps.init_state(config, make_optimizer(config.optimizer, 1), mesh)
    # One batch of images, named again and again.
    images = put(draw_images(batches.shape[1], config.data.image_px)[0], mesh)
    arguments = (state.eval_variables(), images, put(batches % batches.shape[1], mesh, axis=1))
    predict, ready = compile_counted(make_predict(steps.make_graph(config), mesh), arguments, mesh.size, False)
    jax.block_until_ready(predict(*arguments))

    def repeat():
        jax.block_until_ready(predict(*arguments))
        return {"images": batches.size}

    return ready, repeat


def start_evaluate(config: Config, case: dict):
    """evaluate.py's work on the validation split: prediction, 1,000 resamples, pictures. The network is untrained."""
    del case
    state = steps.init_state(config, make_optimizer(config.optimizer, 1), make_mesh())
    variables = jax.device_get(state.eval_variables())
    run = Run(_make_folder(), describe_run(config), config, variables, 0, "latest")
    images = evaluate(run, "validation")["counts"]["images"]

    def repeat():
        evaluate(run, "validation")
        return {"images": images}

    return {}, repeat


def start_load(config: Config, case: dict):
    """The training split from its decoded cache into memory."""
    del case

    def repeat():
        return {"images": len(np.array(load_split(config.data, "train").images))}

    repeat()  # Makes the cache if it is not there.
    return {}, repeat


def start_cache(config: Config, case: dict):
    """The training split from the prepared data set's bytes: read, decoded on all cores, the cache written."""
    del case
    prepared = kermany_pneumonia.dataset_dir(config.data.dataset, config.data.data_dir).resolve()
    load_split(config.data, "train")  # Draws the phantoms if they are not there yet.

    def repeat():
        with tempfile.TemporaryDirectory() as folder:
            beside = kermany_pneumonia.dataset_dir(config.data.dataset, folder)
            beside.parent.mkdir(parents=True)
            beside.symlink_to(prepared)
            there = dataclasses.replace(config.data, data_dir=folder)
            started = time.perf_counter()
            images = len(load_split(there, "train"))
            return {"images": images, "seconds": time.perf_counter() - started}

    return {}, repeat


def start_decode(config: Config, case: dict):
    """JPEG files to images, one at a time, by our decoder, or as one would with Pillow alone."""
    paths = [path for path, _ in json.loads(pathlib.Path(case["files"]).read_text())]
    image_px = config.data.image_px

    def decode_plainly(path):
        return np.asarray(Image.open(path).convert("L").resize((image_px, image_px), Image.Resampling.BILINEAR))

    def decode(path):
        return decode_image(pathlib.Path(path).read_bytes(), image_px)

    def repeat():
        for path in paths:
            (decode_plainly if case["framework"] == "pillow" else decode)(path)
        return {"images": len(paths)}

    repeat()  # The files come into the system's memory.
    return {}, repeat


def start_save(config: Config, case: dict):
    """A checkpoint, until it is on disk."""
    state, info = steps.init_state(config, make_optimizer(config.optimizer, 1), make_mesh()), describe_run(config)
    workdir, numbers = _make_folder(), iter(range(1_000_000))

    def repeat():
        with checkpoint.open_checkpoints(workdir) as checkpoints:
            started = time.perf_counter()
            checkpoint.save_checkpoint(checkpoints, next(numbers), state, info, auroc=0.5)
            checkpoint.wait_for_checkpoints(checkpoints)
            return {"seconds": time.perf_counter() - started}

    repeat()
    return {}, repeat


def start_restore(config: Config, case: dict):
    """A checkpoint from disk onto the devices."""
    mesh = make_mesh()
    state = steps.init_state(config, make_optimizer(config.optimizer, 1), mesh)
    workdir = _make_folder()
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        checkpoint.save_checkpoint(checkpoints, 0, state, describe_run(config), auroc=0.5)

    def repeat():
        with checkpoint.open_checkpoints(workdir) as checkpoints:
            jax.block_until_ready(checkpoint.restore_state(checkpoints, 0, state, mesh))
        return {}

    repeat()
    return {}, repeat


def start_start(config: Config, case: dict):
    """From the start of train.py to its first chunk of steps, with what it needs in the caches."""
    del case
    default = config_to_dict(Config())
    changed = {name: value for name, value in config_to_dict(config).items() if value != default[name]}
    words = [f"--{name}={_format_value(value)}" for name, value in changed.items()]
    command = [sys.executable, str(TRAIN), *words, "--epochs=1", "--restart", f"--workdir={_make_folder()}"]

    def repeat():
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1])
        return {"seconds": float(re.search(r"first steps after ([\d.]+) s", done.stdout)[1])}

    repeat()
    return {}, repeat


def _format_value(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _make_folder() -> pathlib.Path:
    """An empty folder that goes with this process."""
    folder = tempfile.TemporaryDirectory(prefix="pneumojax-benchmark-")
    atexit.register(folder.cleanup)
    return pathlib.Path(folder.name)


MEASURES = {
    "step": start_step,
    "epoch": start_epoch,
    "fit": start_fit,
    "predict": start_predict,
    "evaluate": start_evaluate,
    "load": start_load,
    "cache": start_cache,
    "decode": start_decode,
    "save": start_save,
    "restore": start_restore,
    "start": start_start,
}


def main() -> None:
    case = json.loads(sys.argv[1])
    # Libraries print too: what is ours goes where standard output was.
    out, sys.stdout = sys.stdout, sys.stderr

    def tell(content):
        print(json.dumps(content), file=out, flush=True)

    try:
        initialize(multihost=False)
        config = config_from_dict(case["config"])
        ready, repeat = MEASURES[case["what"]](config, case)
        machine = describe_machine()
        ready["peak_flops"] = find_peak_flops(machine["device"]["kind"], config.model.dtype)
        tell(ready | machine)
        for _ in sys.stdin:
            started = time.perf_counter()
            sample = repeat()
            tell({"seconds": time.perf_counter() - started} | sample)
    except UserError as error:
        tell({"error": str(error)})


if __name__ == "__main__":
    main()
