"""Tests of compilation in processes of their own, of the search for the largest batch, and guards of the programs."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from experiments.benchmarks import compiling
from experiments.benchmarks.compiling import compile_in_process, estimate_batch, find_largest_batch
from experiments.benchmarks.records import ROOT
from pneumojax.config import config_from_dict
from pneumojax.errors import UserError
from pneumojax.training.targets import ENVIRONMENT, check_packages, parse_target

SMALL = {"model": "resnet18", "resnet_width": 8, "image_px": 32, "dtype": "bfloat16", "batch_size": 24}


@pytest.mark.parametrize("limit", [8, 13, 64, 65, 100, 4096])
@pytest.mark.parametrize("batch", [8, 24, 64, 4096])
def test_the_largest_batch_is_found_whatever_the_first_one_was(limit, batch):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    memory = {"usable": limit * 10 + 100, "needed": batch * 10 + 100, "arguments": 100}
    found = find_largest_batch(batch, memory, 8, fits)
    assert found == 8 * 2 ** ((limit // 8).bit_length() - 1)
    assert len(tried) == len(set(tried)) <= 3  # The memory tells where to search.
    # The estimate may be wrong, for example because XLA computes values again when memory is short.
    for wrong in ({"usable": 10**6, "needed": 10**4}, {"usable": 10**4, "needed": 10**8, "arguments": 2 * 10**4}):
        assert find_largest_batch(batch, wrong, 8, fits) == found


def test_no_batch_fits_if_one_image_for_each_device_is_too_many():
    assert find_largest_batch(64, {"usable": 10, "needed": 100}, 8, lambda size: False) is None


def test_the_estimate_is_a_multiple_of_the_devices_and_leaves_room_for_the_arguments():
    assert estimate_batch(256, {"usable": 1000, "needed": 400, "arguments": 200}, 8) == 1024
    assert estimate_batch(256, {"usable": 16, "needed": 33}, 8) == 120
    assert estimate_batch(256, {"usable": 16, "needed": 33, "arguments": 17}, 8) == 0


def test_errors_of_the_process_are_those_of_the_caller(monkeypatch):
    config = config_from_dict(SMALL | {"batch_size": 4})
    with pytest.raises(UserError, match="batch_size 4 is not divisible by the 8 devices of v5e:2x4"):
        compile_in_process(config, parse_target("v5e:2x4"), 100)
    monkeypatch.setattr(compiling, "ENVIRONMENT", {"JAX_PLATFORMS": "nowhere"})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="h100: the process ended with code 1"):
        compile_in_process(config, parse_target("h100"), 100)


def test_an_interrupted_compilation_leaves_no_process(monkeypatch, tmp_path):
    """The process here only sleeps, as a compiler does that does not react to Ctrl-C."""
    started = tmp_path / "pid"
    sleeper = tmp_path / "python"
    sleeper.write_text(f"#!/bin/sh\ntrap '' INT\necho $$ > {started}.new; mv {started}.new {started}\nexec sleep 100\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))

    def interrupt(process):
        while not started.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_in_process(config_from_dict(SMALL), parse_target("h100"), 100)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


@pytest.mark.slow
def test_a_compilation_ends_after_the_process_that_started_it():
    worker = "from experiments.benchmarks.compiling import *; end_with_caller(); print(flush=True); time.sleep(60)"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    caller = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert caller.stdout and caller.stdout.readline() == "\n"  # The worker watches now.
    caller.kill()
    started = time.monotonic()
    assert caller.stdout.read() == ""  # Returns when both have ended, as the worker writes to the same pipe.
    assert time.monotonic() - started < 20
    caller.wait()


# Guards: the counts of a small ResNet on each target, with the versions of requirements.lock. A test fails if one
# grows. If a change of the program is intended, or a new version of XLA is better or worse, write down the new counts.
GUARDS = {
    ("h100", "resnet18"): {"other_convolutions": 0, "transposes": 44, "all_reduces": 0, "megabytes": 17.15},
    ("h100", "resnet50"): {"other_convolutions": 0, "transposes": 72, "all_reduces": 0, "megabytes": 55.46},
    ("v5e:2x4", "resnet18"): {"other_convolutions": 0, "transposes": 1, "all_reduces": 35, "megabytes": 15.76},
}
CONVOLUTIONS = {"resnet18": 59, "resnet50": 158}  # For resnet18, 20 forward, 20 kernel and 19 image gradients.


def skip_without(name):
    """Returns the target, or skips the test if its compiler is not installed."""
    target = parse_target(name)
    try:
        check_packages(target)
    except UserError as error:
        pytest.skip(str(error))
    return target


@pytest.fixture
def plain_flags(monkeypatch):
    """Removes the XLA flags of these tests, which are for CPU and turn optimisation off."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), GUARDS)
def test_the_program_of_a_small_resnet_does_not_get_worse(name, model, plain_flags):
    target = skip_without(name)
    config = config_from_dict(SMALL | {"model": model, "batch_size": 24 * target.count, "chunk_steps": 4})
    row = compile_in_process(config, target, 4449)
    assert row["fits"] and row["device"] == {
        "kind": target.device_kind,
        "platform": target.platform,
        "count": target.count,
    }
    assert sum(row["convolutions"].values()) == CONVOLUTIONS[model]
    counted = {
        "other_convolutions": row["other_convolutions"],
        "transposes": row["transposes"]["count"],
        "all_reduces": row["collectives"].get("all-reduce", {"count": 0})["count"],
        "megabytes": row["bytes_per_step"] / 1e6,
    }
    grown = {key: (counted[key], most) for key, most in GUARDS[name, model].items() if counted[key] > most}
    assert not grown, f"(counted, allowed): {grown}"


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("name", ["h100", "v5e:1x1"])
def test_the_counts_are_of_one_step_and_need_no_network(name, plain_flags):
    target = skip_without(name)
    offline = ["unshare", "--net", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*offline, "true"], capture_output=True).returncode:
        pytest.skip("unshare cannot take the network away here")
    rows = []
    for steps in (1, 3):
        fields = SMALL | {"model": "cnn", "cnn_widths": [8, 16], "chunk_steps": steps}
        case = {"target": target.name, "num_images": 72, "config": fields}
        command = [*offline, sys.executable, "-m", "experiments.benchmarks.compiling", json.dumps(case)]
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    one, three = rows
    assert one["flops_per_step"] == pytest.approx(three["flops_per_step"], rel=0.01)
    assert sum(one["convolutions"].values()) == sum(three["convolutions"].values()) > 0
    assert one["bytes_per_step"] == pytest.approx(three["bytes_per_step"], rel=0.3)


@pytest.mark.aot
@pytest.mark.slow
def test_several_processes_can_compile_for_tpu_at_the_same_time():
    target = skip_without("v5e:2x4")
    program = "from pneumojax.training.targets import *; print(make_target_mesh(parse_target('v5e:2x4')).size); input()"
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = [subprocess.Popen([sys.executable, "-c", program], text=True, env=environment, **pipes) for _ in range(2)]
    # Each process keeps the compiler until both have it.
    sizes = [process.stdout.readline().strip() for process in started]
    errors = [process.communicate("\n")[1] for process in started]
    assert sizes == [str(target.count)] * 2, errors


@pytest.mark.aot
@pytest.mark.slow
def test_the_algorithms_of_the_cpu_are_in_no_program(plain_flags):
    """On CPU, the convolutions of this network are products and Winograd's transforms."""
    row = compile_in_process(config_from_dict(SMALL | {"dtype": "float32"}), skip_without("h100"), 4449)
    assert row["convolutions"] == {"NHWC float32": 59}


@pytest.mark.aot
@pytest.mark.slow
def test_a_run_that_is_too_large_for_a_tpu_says_what_it_needs(plain_flags):
    fields = SMALL | {"resnet_width": 64, "image_px": 224, "batch_size": 8192, "chunk_steps": 1, "dtype": "float32"}
    row = compile_in_process(config_from_dict(fields), skip_without("v5e:1x1"), 4449)
    assert not row["fits"] and row["memory"]["needed"] > row["memory"]["usable"]
