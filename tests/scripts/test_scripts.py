"""Tests of the scripts that start training on other machines: their commands and their errors."""

import os
import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(script, *arguments, cwd=ROOT, **environment):
    return subprocess.run(
        ["sh", ROOT / "scripts" / script, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | environment,
    )


def dry_run(*arguments):
    """Returns the commands as lists of words."""
    done = run("tpu_vm.sh", "--dry_run", *arguments, TMPDIR="/tmp")
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def gcloud(action, *words):
    return ["gcloud", "compute", "tpus", "tpu-vm", action, *words]


def test_create_and_delete_name_one_tpu_in_one_zone():
    assert dry_run("create") == [
        gcloud("create", "pneumojax", "--accelerator-type=v5litepod-8", "--version=v2-alpha-tpuv5-lite")
    ]
    options = ("--name=mine", "--zone=us-west4-a", "--type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot")
    words = ("--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot", "--zone=us-west4-a")
    assert dry_run(*options, "create") == [gcloud("create", "mine", *words)]
    assert dry_run(*options, "delete") == [gcloud("delete", "mine", "--quiet", "--zone=us-west4-a")]


def test_install_copies_the_last_commit_to_every_host_and_makes_the_environment():
    pack, copy, *commands = dry_run("--zone=z", "install")
    assert pack[:2] + pack[3:] == [
        "git",
        "-C",
        "archive",
        "--format=tar.gz",
        "--prefix=pneumojax/",
        "--output=/tmp/pneumojax.tar.gz",
        "HEAD",
    ]
    assert copy == gcloud("scp", "/tmp/pneumojax.tar.gz", "pneumojax:pneumojax.tar.gz", "--worker=all", "--zone=z")
    assert all(words[:7] == gcloud("ssh", "pneumojax", "--worker=all") for words in commands)
    remote = [words[7].removeprefix("--command=") for words in commands]
    assert remote[0] == "tar -xzf pneumojax.tar.gz"
    assert remote[-1].endswith('uv pip install --python .venv/bin/python "jax[tpu]"')
    for command in remote:
        subprocess.run(["sh", "-n", "-c", command], check=True)


def test_run_gives_every_host_the_words_as_they_are():
    words = ["scripts/run", "experiments/train.py", "--multihost", "--workdir=/mnt/it's my run", "--resnet_width=24"]
    ((*head, command),) = dry_run("run", *words)
    assert head == gcloud("ssh", "pneumojax", "--worker=all")
    assert command.startswith("--command=cd pneumojax && ")
    assert shlex.split(command.removeprefix("--command=cd pneumojax && ")) == words


def test_fetch_takes_a_run_from_host_0():
    assert dry_run("fetch", "runs/a") == [
        ["mkdir", "-p", "runs"],
        gcloud("scp", "--recurse", "pneumojax:pneumojax/runs/a", "runs", "--worker=0"),
    ]
    assert dry_run("fetch", "/mnt/a", "here")[1] == gcloud("scp", "--recurse", "pneumojax:/mnt/a", "here", "--worker=0")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to do: create, install, run, fetch or delete"),
        (["start"], "there is no action start"),
        (["--zone", "us-west4-a", "create"], "there is no option --zone"),
        (["--zone=", "create"], "there is no option --zone="),
        (["create", "--spot"], "create takes nothing after it, and got --spot. Options stand before create."),
        (["run"], "say what to run"),
        (["fetch"], "fetch takes the folder of a run"),
    ],
)
def test_what_tpu_vm_cannot_do_it_says(arguments, sentence):
    done = run("tpu_vm.sh", "--dry_run", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"tpu_vm.sh: {sentence}")
    assert done.stderr.count("\n") == 1


def test_tpu_vm_runs_what_it_prints_and_ends_as_gcloud_does(tmp_path):
    fake = tmp_path / "gcloud"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$0.words"\nexit 7\n')
    fake.chmod(0o755)
    ((_, *expected),) = dry_run("run", "echo", "two words")
    done = run("tpu_vm.sh", "run", "echo", "two words", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 7
    assert (tmp_path / "gcloud.words").read_text().splitlines() == expected


def test_tpu_vm_explains_itself():
    done = run("tpu_vm.sh", "--help")
    assert done.returncode == 0
    for word in ("create", "install", "run", "fetch", "delete", "--name", "--zone", "--type", "--spot", "--dry_run"):
        assert word in done.stdout
    assert "set -eu" not in done.stdout


def test_the_slurm_job_trains_with_one_process_for_each_task(tmp_path):
    fake = tmp_path / "srun"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_SUBMIT_DIR": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run("slurm.sh", "--workdir=/shared/my run", cwd=tmp_path, **slurm)
    assert done.stdout.splitlines() == [
        "--kill-on-bad-exit=1",
        "scripts/run",
        "experiments/train.py",
        "--multihost",
        "--loader=stream",
        "--workdir=/shared/my run",
    ]
    refusals = {
        "this is a job": run("slurm.sh", "--workdir=x"),
        "name a folder that all hosts share": run("slurm.sh", **slurm),
        "is not the project's folder": run("slurm.sh", "--workdir=x", **slurm | {"SLURM_SUBMIT_DIR": str(tmp_path)}),
    }
    for words, refused in refusals.items():
        assert refused.returncode == 1
        assert words in refused.stderr
