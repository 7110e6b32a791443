"""Commands of which one write fails, or all from one on, end in a sentence, and resume once there is room.

A small library is loaded into the command's processes. It counts every call of the C library that needs room on the
disk (open to create, write, fsync, rename, mkdir and their variants) on a file in the command's folders, and has the
k-th call fail as on a full disk. So it also sees what TensorFlow, array_record, Orbax and SQLite write. It does not see
stores to mapped memory; the small disks of test_full_disk.py do.

FAULTS_WRITES sets how many calls, evenly spaced, are tried for each command (10; 0: all). Each is tried twice: this
call alone fails, and this and all later ones fail.
"""

import multiprocessing.forkserver
import os
import pathlib
import shutil
import struct
import subprocess

import numpy as np
import pytest
from commands import COMMANDS, find_differences, finish, make_folder, read_errors, read_result, start

WRITES = int(os.environ.get("FAULTS_WRITES", "10"))
NEVER = 2**62


@pytest.fixture(scope="module")
def preloaded(processes, data_dir, trained, tmp_path_factory):
    """The fixture `processes`, of processes that count their writes."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("only a C compiler can make the library that counts the writes")
    library = tmp_path_factory.mktemp("library") / "failing_writes.so"
    source = pathlib.Path(__file__).with_name("failing_writes.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    # The server of processes may already run without the library: it is loaded when a program starts.
    server = multiprocessing.forkserver._forkserver
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        server._stop()
        yield processes
    server._stop()


def run(processes, command, folder, first, last):
    """Returns the exit code, what the command said, and how many calls it made."""
    counter = folder.parent / "counter"
    counter.write_bytes(struct.pack("q", 0))
    environment = {
        "FAULTS_FOLDER": str(folder),
        "FAULTS_COUNTER": str(counter),
        "FAULTS_FIRST": str(first),
        "FAULTS_LAST": str(last),
    }
    process = start(processes, command, folder, **environment)
    finish(process)
    return process.exitcode, read_errors(folder), struct.unpack("q", counter.read_bytes())[0]


def find_problems(command, code, errors):
    """What is wrong with the end of a disturbed command."""
    problems = ["Traceback"] * ("Traceback" in errors) + [f"exit code {code}"] * (code not in (0, 1))
    sentences = [line for line in errors.splitlines() if line.startswith(f"{pathlib.Path(command.script).name}: ")]
    return problems + [f"{len(sentences)} sentences"] * (code == 1 and len(sentences) != 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[*COMMANDS])
def test_a_write_that_fails_ends_in_a_sentence_and_the_command_resumes(
    preloaded, data_dir, trained, tmp_path, record_property, number
):
    name, command = [*COMMANDS.items()][number]
    folder = tmp_path / "folder"
    make_folder(command, folder, data_dir, trained)
    code, errors, writes = run(preloaded, command, folder, NEVER, NEVER)
    assert code == 0, errors
    assert writes > 0
    expected = read_result(folder)
    shutil.rmtree(folder)
    # Halfway between the edges of equal parts, so that the calls differ from the first and the last one.
    tried = np.unique((np.arange(WRITES) + 0.5) * writes // WRITES + 1).astype(int) if WRITES else range(1, writes + 1)
    survived, failures = 0, []
    for first in tried:
        for last in (first, NEVER):
            make_folder(command, folder, data_dir, trained)
            code, errors, _ = run(preloaded, command, folder, first, last)
            problems = find_problems(command, code, errors)
            if code == 0:
                # A command that cannot write the cache of decoded images says so and continues without it.
                uncached = "the decoded images cannot be cached" in errors
                differences = find_differences(read_result(folder), expected)
                problems += [one for one in differences if not (uncached and "/decoded/" in one)]
            if not problems:
                code, errors, _ = run(preloaded, command, folder, NEVER, NEVER)
                problems = [f"exit code {code}"] if code else find_differences(read_result(folder), expected)
            if problems:
                calls = "only" if last == first else "and all later ones"
                failures.append(f"call {first} of {writes} {calls}: {problems} {errors[-3000:]}")
            survived += not problems
            shutil.rmtree(folder)
    record_property("survived", f"{name}: {survived} of {2 * len(tried)} failing writes of {writes} survived")
    assert not failures, "\n".join(failures)
