"""Tests that commands on a full disk or in a read-only folder end with a message, and resume once there is space.

Only root can mount the small file systems that these tests need. FAULTS_DISKS sets how many sizes are tried for each
command (4).
"""

import os
import shutil
import subprocess

import numpy as np
import pytest
from commands import COMMANDS, find_differences, finish, make_folder, read_errors, read_result, start

DISKS = int(os.environ.get("FAULTS_DISKS", "4"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))

PAGE = 4096


def mount(path, options):
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True).returncode == 0


def remount(path, options):
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


@pytest.fixture
def disk(tmp_path):
    """A mounted file system of limited size."""
    path = tmp_path / "disk"
    path.mkdir()
    if not mount(path, "size=64m"):
        pytest.skip("only root can mount a small file system")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def run(processes, command, folder):
    """Returns the exit code and the messages of the command."""
    process = start(processes, command, folder)
    finish(process)
    return process.exitcode, read_errors(folder)


def measure(path):
    """Returns the number of used bytes of a file system."""
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.fixture
def prepared(processes, data_dir, trained, disk, tmp_path):
    """`prepared(command) -> (folder, expected, bytes before, bytes after)` of the uninterrupted command."""

    def make(command):
        # The output of the command is next to its folder, on a disk that is not full.
        folder = tmp_path / "disk" / "folder"
        make_folder(command, folder, data_dir, trained)
        before = measure(disk)
        code, errors = run(processes, command, folder)
        assert code == 0, errors
        expected, after = read_result(folder), measure(disk)
        shutil.rmtree(folder)
        return folder, expected, before, after

    return make


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[*COMMANDS])
def test_a_full_disk_ends_in_a_sentence_and_the_command_resumes(
    processes, data_dir, trained, disk, prepared, record_property, number
):
    name, command = [*COMMANDS.items()][number]
    folder, expected, before, after = prepared(command)
    draws = np.random.default_rng((SEED, number))
    survived, failures = 0, []
    for size in draws.uniform(before, after, DISKS).astype(int) // PAGE * PAGE:
        make_folder(command, folder, data_dir, trained)
        remount(disk, f"size={max(size, measure(disk) + PAGE)}")
        code, errors = run(processes, command, folder)
        problems = ["Traceback"] * ("Traceback" in errors) + [f"exit code {code}"] * (code not in (0, 1))
        remount(disk, "size=64m")
        if not problems:
            code, errors = run(processes, command, folder)
            problems = [f"exit code {code}"] if code else find_differences(read_result(folder), expected)
        if problems:
            failures.append(f"{size - before} of {after - before} bytes: {problems} {errors[-3000:]}")
        survived += not problems
        shutil.rmtree(folder)
    record_property("survived", f"{name}: {survived} of {DISKS} full disks survived")
    assert not failures, "\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=[*COMMANDS])
def test_a_read_only_folder_ends_in_a_sentence_and_nothing_is_changed(
    processes, data_dir, trained, disk, tmp_path, number
):
    command = [*COMMANDS.values()][number]
    folder = disk / "folder"
    make_folder(command, folder, data_dir, trained)
    before = read_result(folder)
    remount(disk, "ro")
    code, errors = run(processes, command, folder)
    remount(disk, "rw")
    assert code == 1, errors
    assert "Traceback" not in errors
    assert errors.strip(), "it says nothing"
    assert find_differences(read_result(folder), before) == []
