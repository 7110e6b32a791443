"""Measures one case in its own process. benchmark.py starts the process and requests each repeat.

    python -m experiments.benchmarks.measure '{"what": "step", "config": {...}, ...}'

The keys of a case are described in cases.py. In addition, "files" is the path of a JSON file with [[path, label], ...].
"folder" is the folder of the results, "workdir" the folder of a training, and "resume" whether the training continues
the run in its folder. When the process is ready, it prints a JSON line with the costs of the compiled program. For each
line that it then reads, it repeats the work and prints a JSON line with the seconds. If the user can correct an error,
it prints a line {"error": message}.
"""

import atexit
import dataclasses
import itertools
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

from experiments.benchmarks.compiled_steps import ReplicaTraining, Training, compile_counted, draw_images
from experiments.benchmarks.compiling import end_with_caller
from experiments.benchmarks.racer import Racer
from experiments.benchmarks.records import ROOT, describe_machine
from experiments.flags import find_changed_fields, format_flags
from pneumojax import checkpoint, parallel, steps
from pneumojax.config import Config, config_from_dict
from pneumojax.data.batches import make_epoch_batches, make_eval_batches, split_epoch
from pneumojax.data.dataset import load_split
from pneumojax.data.decode import decode_image, decode_images
from pneumojax.errors import UserError
from pneumojax.evaluation.evaluate import evaluate
from pneumojax.evaluation.run import Run
from pneumojax.files import read_rows
from pneumojax.inference import make_predict
from pneumojax.optimizer import make_optimizer
from pneumojax.sharding import initialize, make_mesh, put
from pneumojax.training.chips import find_peak_flops
from pneumojax.training.fit import fit
from pneumojax.training.replicas import fit_replicas
from pneumojax.training.workdir import describe_run
from tfds_builder import kermany_pneumonia

TRAIN = ROOT / "experiments" / "train.py"
GPU_TESTS = ROOT / "tests" / "test_accelerator.py"


# The costs of the compiled program, and a function that does the work once. The function returns {"images": number of
# images} if the work is counted in images, and {"seconds": time} if it also does work that must not be counted.
Measure = tuple[dict, Callable[[], dict]]


def start_step(config: Config, case: dict) -> Measure:
    """Measures training steps in one call, on images that are already on the device."""
    training = Training(config, 4 * config.train.batch_size, case["steps"])

    def repeat() -> dict:
        jax.block_until_ready(training.train(training.batches))
        return {"images": case["steps"] * config.train.batch_size}

    return training.ready, repeat


def start_replicas(config: Config, case: dict) -> Measure:
    """Measures training steps of all replicas in one call, on images that are already on the device."""
    training = ReplicaTraining(config, 4 * config.train.batch_size, case["steps"])

    def repeat() -> dict:
        jax.block_until_ready(training.train(training.batches))
        return {"images": config.train.replicas * case["steps"] * config.train.batch_size}

    return training.ready, repeat


def start_epoch(config: Config, case: dict) -> Measure:
    """Measures epochs from JPEG files. The first epoch decodes the files and writes the cache; later ones do not."""
    files = json.loads(pathlib.Path(case["files"]).read_text())
    batch_size, image_px = config.train.batch_size, config.data.image_px
    chunks, chunk_steps = split_epoch(len(files), batch_size, case["steps"])
    training = Training(config, len(files), chunk_steps)
    epochs = itertools.count()

    def repeat() -> dict:
        if (epoch := next(epochs)) == 0:
            images = decode_images(_Files([path for path, _ in files]), [path for path, _ in files], image_px)
            with tempfile.TemporaryFile() as cache:
                np.save(cache, images)
            training.put_images(images, np.array([label for _, label in files], np.int32))
        for batches in make_epoch_batches(len(files), batch_size, chunks, chunk_steps, 0, epoch):
            sums = training.train(parallel.put_batches(batches, config, training.mesh))
        jax.block_until_ready(sums)
        return {"images": chunks * chunk_steps * batch_size}

    return training.ready, repeat


class _Files:
    """A sequence with the bytes of each file. A file is read when it is indexed."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> bytes:
        return pathlib.Path(self.paths[i]).read_bytes()


def start_fit(config: Config, case: dict) -> Measure:
    """Measures a whole training on the prepared data set, as in train.py. Its speed is the median over the chunks."""
    del case
    workdir = _make_folder()
    fit(config, workdir, restart=True)

    def repeat() -> dict:
        result = fit(config, workdir, restart=True)
        rows = [row for row in read_rows(workdir / "metrics.jsonl") if "perf/images_per_second" in row]
        if not rows:
            raise UserError("a training of one chunk has no speed. Set more --epochs or fewer --chunk_steps.")
        medians = {
            name: statistics.median(row[name] for row in rows) for name in ("perf/images_per_second", "perf/host_share")
        }
        images = result.trained_steps * config.train.batch_size
        seconds = images / medians["perf/images_per_second"]
        return {"images": images, "seconds": seconds, "host_share": medians["perf/host_share"]}

    costs = next(row for row in read_rows(workdir / "metrics.jsonl") if "perf/compile_seconds" in row)
    return {name.removeprefix("perf/"): costs[name] for name in costs if name.startswith("perf/")}, repeat


def start_predict(config: Config, case: dict) -> Measure:
    """Measures prediction of images that are already on the device, in batches of `eval_batch_size`."""
    mesh = make_mesh()
    batches = make_eval_batches(case["steps"] * config.train.eval_batch_size, config.train.eval_batch_size, mesh.size)
    state = steps.init_state(config, make_optimizer(config.optimizer, 1), mesh)
    # All batches contain the same images, to save memory.
    images = put(draw_images(config, batches.shape[1])[0], mesh)
    arguments = (state.eval_variables(), images, put(batches % batches.shape[1], mesh, axis=1))
    predict, ready = compile_counted(make_predict(steps.make_graph(config), mesh), arguments, mesh.size, False)
    jax.block_until_ready(predict(*arguments))

    def repeat() -> dict:
        jax.block_until_ready(predict(*arguments))
        return {"images": batches.size}

    return ready, repeat


def start_evaluate(config: Config, case: dict) -> Measure:
    """Measures evaluate.py on validation: prediction, 1,000 bootstrap resamples and figures of an untrained network."""
    del case
    state = steps.init_state(config, make_optimizer(config.optimizer, 1), make_mesh())
    variables = jax.device_get(state.eval_variables())
    run = Run(_make_folder(), describe_run(config), config, variables, 0, "latest")
    images = evaluate(run, "validation")["counts"]["images"]

    def repeat() -> dict:
        evaluate(run, "validation")  # An untrained network has other errors, and more of them.
        return {"images": images}

    return {}, repeat


def start_load(config: Config, case: dict) -> Measure:
    """Measures the time to read the training split from its decoded cache into memory."""
    del case

    def repeat() -> dict:
        return {"images": len(np.array(load_split(config.data, "train").images))}

    repeat()  # Writes the cache if it does not exist yet.
    return {}, repeat


def start_cache(config: Config, case: dict) -> Measure:
    """Measures the time to read the prepared training split, decode it on all cores and write it to the cache."""
    del case
    prepared = kermany_pneumonia.dataset_dir(config.data.dataset, config.data.data_dir).resolve()
    load_split(config.data, "train")  # Prepares the synthetic data set if it does not exist yet.

    def repeat() -> dict:
        with tempfile.TemporaryDirectory() as folder:
            link = kermany_pneumonia.dataset_dir(config.data.dataset, folder)
            link.parent.mkdir(parents=True)
            link.symlink_to(prepared)
            uncached = dataclasses.replace(config.data, data_dir=folder)
            started = time.perf_counter()
            images = len(load_split(uncached, "train"))
            return {"images": images, "seconds": time.perf_counter() - started}

    return {}, repeat


def start_decode(config: Config, case: dict) -> Measure:
    """Measures the time to decode JPEG files one at a time, with our decoder or with Pillow alone."""
    paths = [path for path, _ in json.loads(pathlib.Path(case["files"]).read_text())]
    image_px = config.data.image_px

    def decode_plainly(path: str) -> np.ndarray:
        return np.asarray(Image.open(path).convert("L").resize((image_px, image_px), Image.Resampling.BILINEAR))

    def decode(path: str) -> np.ndarray:
        return decode_image(pathlib.Path(path).read_bytes(), image_px)

    def repeat() -> dict:
        for path in paths:
            (decode_plainly if case["framework"] == "pillow" else decode)(path)
        return {"images": len(paths)}

    repeat()  # Reads the files into the system's file cache.
    return {}, repeat


def start_save(config: Config, case: dict) -> Measure:
    """Measures the time to write a checkpoint to disk."""
    state, info = steps.init_state(config, make_optimizer(config.optimizer, 1), make_mesh()), describe_run(config)
    workdir, numbers = _make_folder(), itertools.count()

    def repeat() -> dict:
        with checkpoint.open_checkpoints(workdir) as checkpoints:
            started = time.perf_counter()
            checkpoint.save_checkpoint(checkpoints, next(numbers), state, info, auroc=0.5)
            checkpoint.wait_for_checkpoints(checkpoints)
            return {"seconds": time.perf_counter() - started}

    repeat()
    return {}, repeat


def start_restore(config: Config, case: dict) -> Measure:
    """Measures the time to read a checkpoint from disk onto the devices."""
    mesh = make_mesh()
    state = steps.init_state(config, make_optimizer(config.optimizer, 1), mesh)
    workdir = _make_folder()
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        checkpoint.save_checkpoint(checkpoints, 0, state, describe_run(config), auroc=0.5)

    def repeat() -> dict:
        with checkpoint.open_checkpoints(workdir) as checkpoints:
            jax.block_until_ready(checkpoint.restore_state(checkpoints, 0, state, mesh))
        return {}

    repeat()
    return {}, repeat


def start_start(config: Config, case: dict) -> Measure:
    """Measures the time from the start of train.py to its first chunk of steps, with warm caches."""
    del case
    words = format_flags(find_changed_fields(config))
    command = [sys.executable, str(TRAIN), *words, "--epochs=1", "--restart", f"--workdir={_make_folder()}"]

    def repeat() -> dict:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise UserError(done.stderr.strip().splitlines()[-1])
        seconds = re.findall(r"first steps after ([\d.]+) s", done.stdout)
        return {"seconds": float(seconds[0])}

    repeat()
    return {}, repeat


def start_speedrun(config: Config, case: dict) -> Measure:
    """Measures whole trainings as speedrun.py does. Each repeat has its own seed."""
    racer = Racer(config)
    racer.time(config.train.seed + case["repeats"])  # Compiles.
    seeds = itertools.count(config.train.seed)

    def repeat() -> dict:
        measured = racer.time(next(seeds))
        return {name: measured[name] for name in ("seconds", "images", "auroc")}

    return racer.costs, repeat


def start_train(config: Config, case: dict) -> Measure:
    """Measures one training, with compilation and validation. If its folder has an unfinished run, that run resumes."""

    def repeat() -> dict:
        train = fit_replicas if config.train.replicas > 1 else lambda *args: [fit(*args)]
        results = train(config, case["workdir"], not case["resume"])
        if any(result.stopped_by for result in results):
            raise UserError(f"the training in {case['workdir']} was stopped. To continue it: --resume.")
        sample = {"auroc": statistics.mean(result.best_auroc for result in results if result.best_auroc is not None)}
        # The time of a training that was resumed does not include its first steps, so it has no speed.
        if all(result.trained_steps == result.total_steps for result in results):
            sample["images"] = len(results) * results[0].total_steps * config.train.batch_size
        return sample

    return {}, repeat


def start_tests(config: Config, case: dict) -> Measure:
    """Runs the tests with the marker gpu. It needs pytest."""
    del config, case
    # The options of pyproject.toml would start a process for each core, and they share one GPU.
    command = [sys.executable, "-m", "pytest", "--override-ini=addopts=", "--import-mode=importlib", "-q", "-m", "gpu"]

    def repeat() -> dict:
        done = subprocess.run([*command, str(GPU_TESTS)], capture_output=True, text=True, cwd=ROOT)
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
        if done.returncode:
            failed = re.findall(r"^(?:FAILED|ERROR) (.*)", done.stdout, re.MULTILINE)
            raise UserError(f"the tests of {GPU_TESTS.name} fail: {'; '.join(failed) or done.stderr.strip()}")
        return {"tests": counts}

    return {}, repeat


def _make_folder() -> pathlib.Path:
    """Returns an empty folder that is deleted when this process ends."""
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
    "replicas": start_replicas,
    "speedrun": start_speedrun,
    "train": start_train,
    "tests": start_tests,
}


def main() -> None:
    end_with_caller()  # Otherwise a training would continue, and the command with --resume could not open its folder.
    case = json.loads(sys.argv[1])
    # Libraries may print too, so only the lines for benchmark.py go to the original standard output.
    out, sys.stdout = sys.stdout, sys.stderr

    def send(content: dict) -> None:
        print(json.dumps(content), file=out, flush=True)

    try:
        initialize(multihost=False)
        config = config_from_dict(case["config"])
        ready, repeat = MEASURES[case["what"]](config, case)
        machine = describe_machine()
        ready["peak_flops"] = find_peak_flops(machine["device"]["kind"], config.model.dtype)
        send(ready | machine)
        for _ in sys.stdin:
            started = time.perf_counter()
            sample = repeat()
            send({"seconds": time.perf_counter() - started} | sample)
    except UserError as error:
        send({"error": str(error)})


if __name__ == "__main__":
    main()
