"""Tests of the folder of a run: which folders are accepted, and what a resumed or restarted run keeps."""

import json
import os
import shutil
import subprocess

import jax
import pytest
from multihost import fit_in_process, join_all, join_processes, start_together
from run_files import assert_same_run, list_files, read_rows

from pneumojax.errors import UserError
from pneumojax.training.fit import fit


def test_another_config_or_other_data_is_refused_and_nothing_changes(finished, make_config, data_dir, tmp_path):
    workdir, _ = finished
    before = list_files(workdir)
    with pytest.raises(UserError, match=r"learning_rate was 0\.001, is 0\.01; seed was 0, is 4\. .*--restart"):
        fit(make_config(seed=4, learning_rate=0.01), workdir)
    other = tmp_path / "data"
    shutil.copytree(data_dir, other)
    (record,) = other.rglob("metadata.json")
    record.write_text(record.read_text().replace(json.loads(record.read_text())["fingerprint"], "0" * 64))
    with pytest.raises(UserError, match="the data was [0-9a-f]+, is 0000"):
        fit(make_config(data_dir=str(other)), workdir)
    assert list_files(workdir) == before


def test_restart_begins_anew_and_keeps_what_is_not_the_runs(finished, make_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "notes.txt").write_text("mine")
    (workdir / "evaluation" / "test").mkdir(parents=True)
    result = fit(make_config(epochs=1, seed=9), workdir, restart=True)
    assert (result.step, result.trained_steps) == (6, 6)
    assert [row["step"] for row in read_rows(workdir)][-1] == 6
    assert json.loads((workdir / "config.json").read_text())["config"]["seed"] == 9
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"6"}
    assert (workdir / "notes.txt").exists()
    assert not (workdir / "evaluation").exists()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("files", [{"checkpoints/x": ""}, {"checkpoints/x": "", "config.json": '{"hidden_size": 768}'}])
def test_a_folder_of_another_program_is_left_alone(make_config, tmp_path, restart, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"not (a run|of a run) of pneumojax"):
        fit(make_config(), tmp_path, restart=restart)
    assert all((tmp_path / name).read_text() == text for name, text in files.items())


def test_a_workdir_that_is_a_file_is_named(make_config, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="run is a file, not a folder"):
        fit(make_config(), tmp_path / "run")


def test_a_damaged_latest_checkpoint_is_named_and_without_it_the_run_goes_on_from_the_one_before(
    finished, make_config, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    latest = workdir / "checkpoints" / "18"
    for path in (path for path in (latest / "state").rglob("*") if path.is_file()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/18 cannot be opened .* Delete the folder of that step"):
        fit(make_config(), workdir)
    shutil.rmtree(latest)
    fit(make_config(), workdir)
    assert_same_run(workdir, finished[0])


def test_a_second_training_in_one_workdir_is_refused(make_config, tmp_path):
    refused = []

    def report(row, total_steps):
        if not refused:
            # The report is called while the first training holds its lock, which represents another process.
            with jax.transfer_guard("allow"), pytest.raises(UserError, match="another training is running in"):
                fit(make_config(), tmp_path)
            refused.append(row)

    fit(make_config(epochs=1), tmp_path, report=report)
    assert refused


def fit_and_tell(*arguments):
    """Ends with code 3 if the workdir cannot be used."""
    try:
        fit_in_process(*arguments)
    except UserError:
        os._exit(3)


def test_a_workdir_that_process_0_refuses_ends_all_processes(make_config, tmp_path, processes):
    (tmp_path / "config.json").write_text("{}")
    assert join_all(start_together(processes, 2, fit_and_tell, make_config(multihost=True), tmp_path)) == [3, 3]


def fit_another_run(number, count, port, devices, configs, workdir):
    """Ends with code 3 if the start fails because the processes have different configs."""
    join_processes(number, count, port, devices)
    with pytest.raises(UserError, match="started with different configs or data"):
        fit(configs[number], workdir)
    os._exit(3)


def test_processes_with_different_configs_are_refused_before_anything_is_written(make_config, tmp_path, processes):
    configs = [make_config(model="mlp", seed=seed, multihost=True) for seed in (1, 2)]
    assert join_all(start_together(processes, 2, fit_another_run, configs, tmp_path / "run")) == [3, 3]
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_may_not_be_written_is_an_os_error_that_names_it(make_config, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match="Read-only file system.*run"):
        fit(make_config(), small_disk / "run")
