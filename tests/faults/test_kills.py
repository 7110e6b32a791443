"""Tests that commands that are killed at random times and started again give the result of the uninterrupted command.

    pytest -m slow tests/faults

The environment variable FAULTS_KILLS sets the number of kills over all commands (50), FAULTS_SEED the seed of their
times (0).
"""

import os
import shutil
import time

import numpy as np
import pytest
from commands import COMMANDS, find_differences, finish, kill, make_folder, read_errors, read_result, start

KILLS = int(os.environ.get("FAULTS_KILLS", "50"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))

# A search does not resume a trial after its process was killed three times.
KILLS_OF_ONE_CHAIN = 2


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[*COMMANDS])
def test_a_killed_command_resumes_to_the_undisturbed_result(
    processes, data_dir, trained, tmp_path, record_property, number
):
    name, command = [*COMMANDS.items()][number]
    kills = KILLS // len(COMMANDS) + (number < KILLS % len(COMMANDS))
    expected, duration = run_undisturbed(processes, command, data_dir, trained, tmp_path)
    draws = np.random.default_rng((SEED, number))
    killed, survived, failures = 0, 0, []
    while killed < kills:
        folder = tmp_path / "folder"
        make_folder(command, folder, data_dir, trained)
        moments = []
        for moment in draws.uniform(0, duration, min(kills - killed, int(draws.integers(1, KILLS_OF_ONE_CHAIN + 1)))):
            process = start(processes, command, folder)
            time.sleep(moment)
            moments += [round(moment, 3)] * kill(process)
            time.sleep(command.pause)
        process = start(processes, command, folder)
        finish(process)
        differences = [f"exit code {process.exitcode}: {read_errors(folder)[-1000:]}"] if process.exitcode else []
        differences = differences or find_differences(read_result(folder), expected)
        killed += len(moments)
        if differences:
            failures.append(f"killed after {moments} s of {duration:.2f}: {differences}")
        else:
            survived += len(moments)
        shutil.rmtree(folder)
    record_property("survived", f"{name}: {survived} of {killed} kills survived")
    assert not failures, "\n".join(failures)


def run_undisturbed(processes, command, data_dir, trained, tmp_path):
    """Returns the result and the seconds of a command. It runs twice, because the first time includes compilation."""
    results = []
    for _ in range(2):
        folder = tmp_path / "folder"
        make_folder(command, folder, data_dir, trained)
        process = start(processes, command, folder)
        seconds = finish(process)
        assert process.exitcode == 0, read_errors(folder)
        results.append(read_result(folder))
        shutil.rmtree(folder)
    assert find_differences(*results) == []
    return results[0], seconds
