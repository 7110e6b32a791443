"""Tests of train.py and evaluate.py as a user runs them."""

import functools
import json
import os
import pathlib
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
import time

import forked
import pytest
from forked import run_script

from pneumojax import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
TINY = ("--image_px=32", "--cnn_widths=4,8", "--batch_size=16", "--chunk_steps=2", "--epochs=2")


@pytest.fixture
def run(processes, tmp_path):
    """`run(script, ...)`: runs a script in a forked process, which does not repeat the imports."""
    return functools.partial(run_script, processes, tmp_path)


@pytest.fixture
def train(run, data_dir):
    """`train(workdir, ...)`: runs train.py with a tiny network."""

    def run_it(workdir, *arguments):
        return run("experiments/train.py", f"--data_dir={data_dir}", f"--workdir={workdir}", *TINY, *arguments)

    return run_it


@pytest.fixture(scope="module")
def first_run(data_dir, tmp_path_factory):
    """Runs the first command of a new user, on eight devices, in a folder whose name needs quotes."""
    workdir = tmp_path_factory.mktemp("runs") / "first run"
    done = subprocess.run(
        [sys.executable, "experiments/train.py", f"--data_dir={data_dir}", f"--workdir={workdir}", *TINY],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_training_logs_lines_and_ends_with_its_result_and_folder(first_run):
    workdir, done = first_run
    assert "\r" not in done.stderr
    epochs = re.findall(
        r"epoch (\d\.0), step (\d+)/12, loss \d\.\d{4} \(val\), val AUROC \d\.\d{4}, \d+ images/s", done.stderr
    )
    assert epochs == [("1.0", "6"), ("2.0", "12")]
    assert "Traceback" not in done.stderr
    assert "WARNING" not in done.stderr
    last = done.stdout.splitlines()[-3:]
    assert re.match(
        r"Finished 12 steps\. Best checkpoint: validation AUROC \d\.\d{4}, after epoch \d; threshold \d\.\d{4}", last[0]
    )
    assert str(workdir) in last[1]
    assert last[2].startswith("Next: scripts/run experiments/evaluate.py")
    assert (workdir / "learning_curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_next_command_works_on_one_device_what_eight_trained(first_run, run):
    workdir, done = first_run
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Next: ")]
    start, script, *arguments = shlex.split(line.removeprefix("Next: "))
    assert start == "scripts/run"
    evaluated = run(script, *arguments)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "Traceback" not in evaluated.stderr
    results = json.loads((workdir / "evaluation" / "validation" / "metrics.json").read_text())
    (best,) = re.findall(r"Best checkpoint: validation AUROC (\d\.\d{4})", done.stdout)
    assert f"{results['metrics']['auroc']['value']:.4f}" == best
    assert re.search(rf"^auroc +{best} ", evaluated.stdout, re.M)
    assert "say nothing about X-rays" in evaluated.stdout
    assert "Evaluate the run on test." in evaluated.stdout


def test_a_finished_run_says_so(first_run, train):
    workdir, _ = first_run
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    again = train(workdir)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip().startswith("Nothing to do: this run has already finished its 12 steps.")
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_a_refused_command_ends_with_one_sentence(first_run, train):
    done = train(first_run[0], "--seed=3")
    assert done.returncode == 1
    assert "seed was 0, is 3" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_sigterm_saves_and_the_printed_command_resumes(data_dir, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "experiments/train.py", f"--data_dir={data_dir}", f"--workdir={workdir}", *TINY]
    command += ["--epochs=2000", "--restart"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "epoch 1.0" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    (step,) = re.findall(r"Stopped and saved at step (\d+) of 12000", output)
    assert "--restart" not in output
    assert checkpoint.load_run(workdir, "latest")[2] == int(step)
    (line,) = [line for line in output.splitlines() if line.startswith("To resume: scripts/run ")]
    again = subprocess.Popen(
        [sys.executable, *shlex.split(line.removeprefix("To resume: scripts/run "))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert f"Resuming from step {step}" in again.stderr.readline()
    assert "epoch" in again.stderr.readline()
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert again.returncode == 130


@pytest.mark.slow
def test_a_terminal_shows_a_progress_bar(processes, data_dir, tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    printed = [pathlib.Path(os.ttyname(theirs))] * 2
    arguments = [f"--data_dir={data_dir}", f"--workdir={tmp_path / 'run'}", *TINY]
    process = processes.Process(target=forked._start, args=(printed, "experiments/train.py", arguments, 1, {}))
    process.start()
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end and (process.is_alive() or select.select([ours], [], [], 0)[0]):
        if select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    assert process.exitcode == 0
    frames = shown.decode().split("\r")
    assert any(re.search(r"12/12 .*loss \d\.\d{4}, val AUROC \d\.\d{4}, \d+ images/s", frame) for frame in frames), (
        frames
    )
    assert "Next: scripts/run" in frames[-1] or "Next: scripts/run" in "".join(frames[-8:])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_with_code_1_and_a_sentence(train, tmp_path):
    done = train(tmp_path / "run", "--optimizer=sgd", "--learning_rate=1e30", "--warmup=0")
    assert done.returncode == 1
    assert re.search(r"train\.py: the loss is not finite at step \d+ of 12\.", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_damaged_checkpoint_ends_with_code_1_and_a_sentence_that_names_it(first_run, tmp_path, run, train):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", first_run[0], workdir], check=True)
    for path in (path for path in (workdir / "checkpoints").glob("*/state/**/*") if path.is_file()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for done in (run("experiments/evaluate.py", f"--workdir={workdir}"), train(workdir)):
        assert done.returncode == 1
        assert re.search(r"the checkpoint in .*/checkpoints/\d+ cannot be opened", done.stderr)
        assert "Traceback" not in done.stderr
