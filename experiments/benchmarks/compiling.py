"""Compiles a config for a target in a process of its own, and finds the largest batch that fits.

    python -m experiments.benchmarks.compiling '{"target": "h100", "num_images": 4449, "config": {...}}'

The compilers need variables that JAX reads when it is imported, they keep memory, and they cannot be interrupted. So
each compilation has its own process, which prints the result of `ahead.compile_ahead` as a JSON line, or a line
{"error": message} if the user can correct the error.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from experiments.benchmarks.records import ROOT
from experiments.benchmarks.workers import find_reason
from pneumojax.config import Config, config_from_dict, config_to_dict, replace_fields
from pneumojax.errors import UserError
from pneumojax.training.ahead import compile_ahead
from pneumojax.training.targets import ENVIRONMENT, Target, parse_target

logger = logging.getLogger("experiments")


def compile_in_process(config: Config, target: Target, num_images: int) -> dict:
    """Compiles in a new process. The arguments and the result are those of `ahead.compile_ahead`.

    If the call is interrupted, the process is killed. If this process is killed, the new one ends itself.

    Raises:
      UserError: the compiler is missing or does not accept the target.
      ChildProcessError: the compiler has failed.
    """
    case = {"target": target.name, "num_images": num_images, "config": config_to_dict(config)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmarks.compiling", json.dumps(case)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        )
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode or not printed.strip():
            log.seek(0)
            raise ChildProcessError(f"{target.name}: {find_reason(log.read(), process.returncode)}")
    content = json.loads(printed.splitlines()[-1])
    if "error" in content:
        raise UserError(content["error"])
    return content


def estimate_batch(batch_size: int, memory: dict, count: int) -> int:
    """Estimates the largest batch that fits, from the memory of a batch that was compiled.

    Args:
      batch_size: the batch that was compiled, over all devices.
      memory: of the result of `compile_ahead`.
      count: number of devices.

    Returns:
      A multiple of `count`; 0 if no image fits.
    """
    # Arguments, such as the weights, do not grow with the batch. If they are unknown, the estimate is too low.
    fixed = memory.get("arguments", 0)
    free, grows = memory["usable"] - fixed, max(memory["needed"] - fixed, 1)
    return max(0, int(batch_size / count * free / grows)) * count


def find_largest_batch(batch_size: int, memory: dict, count: int, fits: Callable[[int], bool]) -> int | None:
    """Finds the largest batch that fits, among the number of devices times the powers of two.

    Args:
      batch_size: a batch that was compiled, over all devices.
      memory: its memory, of the result of `compile_ahead`.
      count: number of devices.
      fits: compiles a batch, over all devices, and returns whether it fits.

    Returns:
      The batch over all devices, or None if not even one image for each device fits.
    """
    images = max(1, estimate_batch(batch_size, memory, count) // count)
    batch = count << (images.bit_length() - 1)
    if fits(batch):
        while fits(2 * batch):
            batch *= 2
        return batch
    while batch > count:
        batch //= 2
        if fits(batch):
            return batch
    return None


def make_fits(config: Config, target: Target, num_images: int, first: dict) -> Callable[[int], bool]:
    """Makes `fits(batch)` for `find_largest_batch`.

    Args:
      config: the run.
      target: the devices.
      num_images: images of the training split.
      first: result of `compile_ahead` for the config itself, which is not compiled again.
    """

    def fits(batch: int) -> bool:
        if batch == config.train.batch_size:
            return first["fits"]
        row = compile_in_process(replace_fields(config, {"batch_size": batch}), target, num_images)
        logger.info("%s: batch %d %s", target.name, batch, "fits" if row["fits"] else "does not fit")
        return row["fits"]

    return fits


def end_with_caller() -> None:
    """Ends this process within a second after the process that started it, which may have been killed.

    Otherwise a compilation, for example, would continue for minutes, although nothing waits for its result.
    """
    caller = os.getppid()

    def watch() -> None:
        while os.getppid() == caller:  # The children of a process that ends get another parent.
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python would handle Ctrl-C only after the compilation.
    end_with_caller()
    case = json.loads(sys.argv[1])
    try:
        row = compile_ahead(config_from_dict(case["config"]), parse_target(case["target"]), case["num_images"])
    except UserError as error:
        row = {"error": str(error)}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
