"""Tests that two equal commands can start at the same time."""

import csv

import pytest
from commands import COMMANDS, find_differences, finish, make_folder, read_errors, read_result, start


def run(processes, command, folders):
    """Runs a command in several folders at the same time. Returns [(exit code, messages)]."""
    running = [start(processes, command, folder, number) for number, folder in enumerate(folders)]
    for process in running:
        finish(process)
    return [
        (process.exitcode, read_errors(folder, i))
        for i, (process, folder) in enumerate(zip(running, folders, strict=True))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMANDS])
def test_two_starts_in_one_workdir(processes, data_dir, trained, tmp_path, name):
    command = COMMANDS[name]
    folder = tmp_path / "folder"
    make_folder(command, folder, data_dir, trained)
    results = run(processes, command, [folder, folder])
    codes, errors = zip(*results, strict=True)
    # A second training in the same workdir ends with an error.
    refused = [error for code, error in results if code]
    assert min(codes) == 0, errors
    assert all("another training is running" in error for error in refused), errors
    assert not any("Traceback" in error for error in errors)
    if name == "tune":  # Which trials the two run at the same time depends on their speed.
        with (folder / "run" / "trials.csv").open(newline="") as file:
            assert len([*csv.DictReader(file)]) == 4
        return
    if refused:
        assert name.startswith("train") or name == "reproduce"
    alone = tmp_path / "alone"
    make_folder(command, alone, data_dir, trained)
    ((code, error),) = run(processes, command, [alone])
    assert code == 0, error
    assert find_differences(read_result(folder), read_result(alone)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "train --loader=stream"])
def test_two_trainings_on_one_data_folder_without_a_cache(processes, data_dir, trained, tmp_path, name):
    command = COMMANDS[name]
    folders = [tmp_path / "first", tmp_path / "second"]
    make_folder(command, folders[0], data_dir, trained)
    folders[1].mkdir()
    (folders[1] / "data").symlink_to(folders[0] / "data")
    for code, error in run(processes, command, folders):
        assert code == 0, error
    results = [read_result(folder / "run") for folder in folders]
    for result, folder in zip(results, folders, strict=True):
        result.pop("config.json")  # It names the data folder.
        assert (folder / "data").is_dir()
    assert find_differences(*results) == []
