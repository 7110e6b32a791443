"""Runs functions in other processes, alone or connected to each other."""

import os
import socket
import time

import jax
import pytest

from pneumojax.data import stream
from pneumojax.evaluation import operating_point
from pneumojax.reporting.figures import training as figures
from pneumojax.training import metric_log
from pneumojax.training import workdir as workdir_module
from pneumojax.training.fit import fit


def start(processes, function, *arguments):
    """Starts a function in a process of its own."""
    process = processes.Process(target=function, args=arguments)
    process.start()
    return process


def wait_for(condition, process, seconds=60):
    """Waits for a condition. Returns whether it was true before the process ended."""
    end = time.monotonic() + seconds
    while not condition():
        if not process.is_alive():
            return False
        assert time.monotonic() < end
        time.sleep(0.001)
    return True


def join_processes(number, count, port, devices):
    """Makes this process one of several, each with its own devices."""
    jax.config.update("jax_num_cpu_devices", devices)
    if number is not None:
        environment = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        os.environ.update(environment)


def start_together(processes, count, function, *arguments, devices=1):
    """Starts several processes that connect to each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(processes, function, number, count, port, devices, *arguments) for number in range(count)]


def join_all(started, seconds=200):
    """Returns the exit codes of the processes."""
    for process in started:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            pytest.fail("a process hangs")
    return [process.exitcode for process in started]


def count_rows(chosen):
    """stream_rows that adds the number of rows that this process reads for training to a list."""
    original = stream.stream_rows

    class Counted:
        def __init__(self, column):
            self.column, self.shape = column, column.shape

        def __getitem__(self, index):
            chosen.append(index.size)
            return self.column[index]

    def stream_counted(columns, *rest):
        if len(columns) > 1:  # Validation streams images without their labels.
            columns = (Counted(columns[0]), *columns[1:])
        return original(columns, *rest)

    return stream_counted


def fit_in_process(number, count, port, devices, config, workdir):
    """Runs as one process of several. Processes other than 0 must write only their part of a checkpoint."""
    join_processes(number, count, port, devices)
    reports, read = [], []
    stream.stream_rows = count_rows(read)
    if number:
        for module in (metric_log, workdir_module, operating_point, figures):
            for name in ("append_row", "write_json", "write_text", "truncate_rows", "save_learning_curves"):
                if hasattr(module, name):
                    setattr(module, name, None)
    result = fit(config, workdir, report=lambda row, total_steps: reports.append(row))
    assert jax.device_count() == devices * count
    assert result.threshold is not None
    assert bool(reports) == (not number)
    if config.train.loader == "stream":
        assert sum(read) == result.trained_steps * config.train.batch_size // count
