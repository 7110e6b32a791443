"""Tests of experiments/compile.py, from its flags to its rows and its page. Most of them replace the compilation."""

import json
import os
import signal
import subprocess
import sys
import time

import forked
import pytest

from experiments.benchmarks import compiling
from pneumojax.errors import UserError
from pneumojax.training import targets

COMPILED = {
    "fits": True,
    "memory": {"needed": 1000, "usable": 10_000, "arguments": 500, "temporaries": 500},
    "compile_seconds": 1.5,
    "flops_per_step": 1e9,
    "bytes_per_step": 10**6,
    "bytes_per_image": 1e6,
    "other_convolutions": 0,
    "kernels": {"fusion": 3},
    "convolutions": {"NHWC float32": 2},
    "transposes": {"count": 0, "bytes": 0},
    "copies": {"count": 0, "bytes": 0},
    "collectives": {},
    "seconds_bound": 0.001,
    "images_per_second_bound": 32_000.0,
    "bound_by": "bytes",
}


def compile_instead(config, target, num_images):
    """Stands for `compile_in_process`. A batch of more than 100 images a device does not fit."""
    device = {"kind": target.device_kind, "platform": target.platform, "count": target.count}
    same = {"device": device, "versions": {"jax": "1"}}
    if target.name == "h200:2":
        raise ChildProcessError("h200:2: the process ended with code -6")
    if target.name == "h200:4":
        raise KeyboardInterrupt
    images = config.train.batch_size // target.count
    if images > 100:
        return same | {"fits": False, "memory": {"needed": 100 * images, "usable": 10_000}}
    return same | COMPILED


def start(printed, script, arguments, devices, environment):
    """Starts the script without a compiler."""
    compiling.compile_in_process = compile_instead
    targets.check_packages = lambda target: {}
    forked._start(printed, script, arguments, devices, environment)


@pytest.fixture
def run_compile(processes, tmp_path):
    """`run_compile(...)`: runs the script. `fake=False` runs it with the real compilers, which may be missing."""

    def run(*arguments, fake=True):
        words = [f"--results={tmp_path / 'rows.jsonl'}", *arguments]
        printed = tmp_path / "stdout", tmp_path / "stderr"
        function = start if fake else forked._start
        process = processes.Process(target=function, args=(printed, "experiments/compile.py", words, 1, {}))
        process.start()
        process.join(100)
        outputs = (path.read_text() for path in printed)
        return subprocess.CompletedProcess(words, process.exitcode, *outputs)

    return run


def read(tmp_path):
    path = tmp_path / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_target_gets_a_row_and_the_page_is_written(run_compile, tmp_path):
    done = run_compile("--target=h100,v5e:2x4", "--model=mlp", "--batch_size=32", "--largest_batch", "--image_px=32")
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path)
    assert [(row["what"], row["target"], row["model"], row["batch_size"]) for row in rows] == [
        ("compile", "h100", "mlp", 32),
        ("compile", "v5e:2x4", "mlp", 32),
    ]
    assert [row["largest_batch"] for row in rows] == [64, 512]
    assert rows[0]["command"].startswith("experiments/compile.py --target=h100,v5e:2x4") and "commit" in rows[0]
    assert rows[0]["fields"] == {} and rows[0]["num_images"] == 4449
    assert rows[0]["compiler_flags"].keys() == {"XLA_FLAGS"}
    # conftest.py sets this one; sharding.py may have added others.
    assert "--xla_backend_optimization_level=0" in rows[0]["compiler_flags"]["XLA_FLAGS"]
    assert "mlp 32 px, batch 32, float32" in done.stdout and "2 rows added" in done.stdout
    page = tmp_path / "rows.md"
    assert "| v5e:2x4 | mlp 32 px" in page.read_text()
    page.unlink()
    plotted = run_compile("--plot")
    assert plotted.returncode == 0 and page.exists() and len(read(tmp_path)) == 2


def test_a_run_that_is_too_large_says_what_would_fit_and_other_targets_are_compiled(run_compile, tmp_path):
    done = run_compile("--target=h100,v5e:2x4,h200:2", "--batch_size=128")
    assert done.returncode == 1 and [row["fits"] for row in read(tmp_path)] == [False, True]
    assert "h100: batch_size 128 does not fit" in done.stderr and "A batch of about 100 would fit" in done.stderr
    assert "h200:2: the process ended with code -6" in done.stderr and "Traceback" not in done.stderr


def test_an_interrupted_command_keeps_the_rows_that_are_complete(run_compile, tmp_path):
    done = run_compile("--target=h100,h200:4,h200", "--batch_size=32")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "compile.py: interrupted.")
    assert [row["target"] for row in read(tmp_path)] == ["h100"]
    assert sorted(path.name for path in tmp_path.glob("rows*")) == ["rows.jsonl", "rows.md"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--target is missing. The targets are h100, h200, a100"),
        (("--target=h100,rtx",), "target 'rtx' is unknown. The targets are h100, h200, a100"),
        (("--target=v5e:16x16",), "batch_size 32 is not divisible by the 256 devices of v5e:16x16"),
        (("--target=h100", "--parallel=pmap"), "Set --parallel=jit or shard_map"),
        (("--plot",), "holds no rows yet"),
        (("--target=h100", "--dropout=2"), "dropout"),
    ],
)
def test_a_wrong_flag_is_one_sentence_before_anything_is_compiled(run_compile, tmp_path, words, message):
    done = run_compile(*words)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not read(tmp_path)


@pytest.mark.parametrize(("target", "extra"), [("h100", "aot-cuda"), ("v5e:1x1", "aot-tpu")])
def test_a_missing_extra_is_one_sentence(run_compile, tmp_path, target, extra):
    try:
        targets.check_packages(targets.parse_target(target))
    except UserError:
        done = run_compile(f"--target={target}", fake=False)
        assert done.returncode == 1 and f"pip install -e '.[{extra}]'" in done.stderr and not read(tmp_path)
        assert len(done.stderr.splitlines()) == 1
    else:
        pytest.skip(f"the extra {extra} is installed")


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize("target", ["h100", "v5e:1x1"])
def test_ctrl_c_ends_a_real_compilation_at_once(tmp_path, target):
    try:
        targets.check_packages(targets.parse_target(target))
    except UserError as error:
        pytest.skip(str(error))
    results = tmp_path / "rows.jsonl"
    words = [f"--target={target}", "--model=resnet50", "--image_px=224", "--batch_size=24", f"--results={results}"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    process = subprocess.Popen(
        [sys.executable, "experiments/compile.py", *words],
        stderr=subprocess.PIPE,
        text=True,
        cwd=forked.ROOT,
        env=environment | {"PYTHONPATH": str(forked.ROOT)},
        start_new_session=True,
    )
    assert process.stderr and "Compiling for" in process.stderr.readline()
    time.sleep(8)  # By now, the process has started to compile, which takes 20 s or more.
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=20)
    assert process.returncode == 130 and printed.splitlines()[-1] == "compile.py: interrupted."
    assert not results.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
