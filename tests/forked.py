"""Runs scripts in processes that are forked from a server that has done the imports. Their figures are white."""

import os
import pathlib
import runpy
import subprocess
import sys

import jax
from matplotlib.figure import Figure
from pictures import save_white_pixel

ROOT = pathlib.Path(__file__).parents[1]


def run_script(processes, folder, script, *arguments, devices=1, timeout=100, **environment):
    """Runs a script and returns the result of `subprocess.run`.

    Args:
      processes: the fixture.
      folder: folder for the output of the script.
      script: path of the script in the project.
      *arguments: the arguments of the command line.
      devices: number of devices for the script.
      timeout: limit in seconds.
      **environment: additional environment variables.
    """
    printed = folder / "stdout", folder / "stderr"
    arguments = [os.fspath(argument) for argument in arguments]
    process = processes.Process(target=_start, args=(printed, script, arguments, devices, environment))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise subprocess.TimeoutExpired([script, *arguments], timeout)
    return subprocess.CompletedProcess(script, process.exitcode, *(path.read_text() for path in printed))


def _start(printed, script, arguments, devices, environment):
    for descriptor, path in enumerate(printed, 1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(ROOT)
    os.environ.update(environment)
    jax.config.update("jax_num_cpu_devices", devices)
    Figure.savefig = save_white_pixel
    sys.argv = [script, *arguments]
    runpy.run_path(str(ROOT / script), run_name="__main__")
