"""Tests of experiments/benchmark.py: planned cases, the summary of samples, and each measurement on small inputs."""

import functools
import json
import pathlib
import shlex
import statistics

import pytest
from absl import flags
from forked import run_script

from experiments import benchmark
from experiments.benchmarks import cases, measure, workers
from experiments.benchmarks import page as benchmark_page
from pneumojax.config import config_from_dict
from pneumojax.errors import UserError

TINY = {"model": "mlp", "mlp_widths": "8", "image_px": "32", "batch_size": "8"}


def plan(*words):
    return cases.plan_cases(benchmark.parse(list(words)))


@pytest.fixture
def run_benchmark(processes, tmp_path):
    """`run_benchmark(...)`: runs the script."""
    return functools.partial(run_script, processes, tmp_path, "experiments/benchmark.py")


def test_a_case_for_each_combination():
    planned = plan("--what=step,predict", "--model=resnet18,flatiron", "--image_px=32,64", "--devices=1,2")
    assert len(planned) == 16
    assert len({json.dumps(case) for case in planned}) == 16
    assert {(case["config"]["model"], case["config"]["image_px"], case["devices"]) for case in planned} == {
        (model, px, devices) for model in ("resnet18", "flatiron") for px in (32, 64) for devices in (1, 2)
    }
    (case,) = plan("--model=cnn", "--cnn_widths=4,8")
    assert case["config"]["cnn_widths"] == [4, 8]


def test_a_step_is_augmented_by_geometry_or_not_at_all():
    (augmented,), (plain,) = plan(), plan("--noaugment")
    assert [augmented["config"][name] for name in ("rotate_degrees", "brightness")] == [10, 0]
    assert [plain["config"][name] for name in ("rotate_degrees", "shift", "zoom", "gamma")] == [0] * 4
    assert plan("--what=fit")[0]["config"]["brightness"] > 0


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_suites_can_be_planned_with_peers_and_other_flags_replace_theirs(suite):
    for line in benchmark.SUITES[suite]:
        planned = plan(*shlex.split(line), "--peer=torch,keras,pillow", "--image_px=32", "--batch_size=8")
        assert {(case["config"]["image_px"], case["config"]["batch_size"]) for case in planned} == {(32, 8)}
        for case in planned:
            wanted = {"step": ["torch", "keras"], "epoch": ["torch", "keras"], "decode": ["pillow"]}
            assert case["peers"] == wanted.get(case["what"], [])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model=resnet19"], "--model=resnet19"),
        (["--image_px=many"], "--image_px"),
        (["--image_px=3"], "image_px must be at least 16"),
        (["--what=stepp"], "--what=stepp is unknown: there are step, epoch"),
        (["--peer=jax"], "--peer=jax is unknown"),
        (["--limit=0"], "--limit=0 must be a whole number above 0"),
        (["--devices=3"], "--batch_size=32 is not divisible by --devices=3"),
        (["--peer=torch", "--model=cnn"], "--peer=torch does not implement --model=cnn"),
        (["--peer=keras", "--model=resnet18", "--optimizer=sgd"], "--peer=keras does not implement --optimizer=sgd"),
    ],
)
def test_bad_input_is_a_sentence(words, sentence):
    with pytest.raises(UserError, match=sentence):
        plan(*words)


def test_a_python_without_the_peer_is_named():
    with pytest.raises(UserError, match=r"cannot import torch, PIL \(.*extra `peers`"):
        workers.check_peer("/bin/false", "torch")
    with pytest.raises(UserError, match="--peer_python=/nowhere/python cannot be started: No such file"):
        workers.check_peer("/nowhere/python", "keras")


def fake_workers(monkeypatch, seconds, parameters=None):
    """Replaces the worker processes. Returns the list of frameworks that measured, in order."""
    order = []

    class Worker:
        def __init__(self, case, framework, python):
            self.framework, self.seconds = framework, iter(seconds[framework])

        def read(self):
            device = {"kind": "chip", "platform": "cpu", "count": 2}
            ready = {"device": device, "versions": {}, "parameters": (parameters or {}).get(self.framework, 5)}
            return ready | ({"flops_per_step": 60.0, "peak_flops": 90.0} if self.framework == "pneumojax" else {})

        def repeat(self):
            order.append(self.framework)
            return {"seconds": next(self.seconds), "images": 16}

        def close(self):
            order.append("closed")

    monkeypatch.setattr(workers, "Worker", Worker)
    return order


def test_frameworks_work_in_turn_and_the_ratio_is_to_the_fastest_peer(monkeypatch, tmp_path):
    names = ["pneumojax", "torch", "torch channels_last", "keras"]
    scales = zip(names, (1, 3, 2, 5), strict=True)
    seconds = {name: [scale * second for second in (4, 1, 8, 2, 16)] for name, scale in scales}
    order = fake_workers(monkeypatch, seconds)
    (case,) = plan("--peer=torch,keras", "--model=resnet18", "--repeats=5")
    rows = workers.measure_in_turn(case, tmp_path, "python")
    assert order == names * 5 + ["closed"] * 4
    assert [row["framework"] for row in rows] == names
    ours = rows[0]
    assert ours["seconds"] == {"median": 4, "low": 2, "high": 8}
    assert ours["images_per_second"]["median"] == statistics.median(16 / second for second in seconds["pneumojax"])
    assert ours["ratio"] == 2
    # 4 images/s in steps of 32 of 60 FLOP, on two devices of 90 FLOP/s each.
    assert ours["model_flop_utilisation"] == pytest.approx(4 / 32 * 60 / 180)
    assert "ratio" not in rows[1] and "peak_flops" not in ours


def test_the_first_epoch_is_reported_on_its_own(monkeypatch, tmp_path):
    fake_workers(monkeypatch, {"pneumojax": [10, 1, 3, 2], "keras": [30, 4, 4, 4]})
    case = plan("--what=epoch", "--peer=keras", "--model=resnet18", "--repeats=4", "--limit=4")[0]
    ours, keras = workers.measure_in_turn(case, tmp_path, "python")
    assert (ours["first_seconds"], ours["seconds"]["median"], ours["repeats"]) == (10, 2, 3)
    assert (ours["first_ratio"], ours["ratio"]) == (pytest.approx(3), pytest.approx(2))
    assert keras["first_seconds"] == 30


def test_other_work_and_other_devices_are_refused(monkeypatch, tmp_path):
    fake_workers(monkeypatch, {"pneumojax": [1] * 8, "keras": [1] * 8}, {"keras": 6})
    with pytest.raises(UserError, match="networks differ"):
        workers.measure_in_turn(plan("--peer=keras", "--model=resnet18")[0], tmp_path, "python")
    with pytest.raises(UserError, match="--devices=4: there are 2 of chip"):
        workers.measure_in_turn(plan("--devices=4")[0], tmp_path, "python")
    with pytest.raises(UserError, match="there are 0 JPEG files"):
        workers.measure_in_turn(plan("--what=decode", f"--images={tmp_path}")[0], tmp_path, "python")


def test_files_are_taken_evenly_of_both_classes(tmp_path):
    for name in ("NORMAL", "PNEUMONIA"):
        (tmp_path / name).mkdir()
        for i in range(10):
            (tmp_path / name / f"{i}.jpeg").write_text("")
    files = json.loads(cases.list_files(str(tmp_path), 4, tmp_path).read_text())
    assert [(pathlib.Path(path).name, label) for path, label in files] == [
        ("0.jpeg", 0),
        ("5.jpeg", 0),
        ("0.jpeg", 1),
        ("5.jpeg", 1),
    ]


def test_each_measure_has_its_word():
    assert list(cases.WHAT) == list(measure.MEASURES)


@pytest.mark.parametrize("what", [what for what in measure.MEASURES if what != "start"])
def test_each_measure_runs(what, data_dir, tmp_path):
    fields = {"data_dir": str(data_dir), "eval_batch_size": "8", "epochs": "2", "chunk_steps": "4"}
    fields |= {"rotate_degrees": "0", "shift": "0", "zoom": "0"}  # Their compilation would take longest.
    (case,) = plan(f"--what={what}", "--steps=2", *(f"--{name}={value}" for name, value in (TINY | fields).items()))
    if what in ("epoch", "decode"):
        case |= {"files": str(cases.list_files(None, 17, tmp_path)), "framework": "pneumojax"}
    ready, repeat = measure.MEASURES[what](config_from_dict(case["config"]), case)
    first, second = repeat(), repeat()
    expected = {"step": 16, "predict": 16, "epoch": 16, "decode": 17, "save": None, "restore": None}
    assert first.get("images") == second.get("images")
    if what in expected:
        assert first.get("images") == expected[what]
    if what in ("step", "epoch", "fit", "predict"):
        assert ready["flops_per_step"] > 0 and ready["compile_seconds"] > 0


def test_a_small_run_from_the_command_to_the_page(run_benchmark, tmp_path):
    results = tmp_path / "made" / "rows.jsonl"
    words = [f"--{name}={value}" for name, value in TINY.items()]
    command = ["--what=step", "--repeats=2", "--steps=2", f"--results={results}", *words]
    done = run_benchmark(*command)
    assert done.returncode == 0, done.stderr
    (row,) = (json.loads(line) for line in results.read_text().splitlines())
    assert (row["what"], row["framework"], row["model"], row["batch_size"]) == ("step", "pneumojax", "mlp", 8)
    assert (row["fields"], row["repeats"], row["device"]["count"]) == ({"mlp_widths": [8]}, 2, 1)
    assert row["images_per_second"]["low"] <= row["images_per_second"]["median"] <= row["images_per_second"]["high"]
    assert {"commit", "compile_seconds", "cores", "created", "load", "versions"} <= row.keys()
    assert row["command"].startswith("experiments/benchmark.py --what=step")
    assert "mlp 32 px" in done.stdout and "--plot" in done.stdout
    again = run_benchmark(*command, "--resume")
    assert again.returncode == 0 and "0 rows added" in again.stdout
    page = run_benchmark("--plot", f"--results={results}")
    assert page.returncode == 0, page.stderr
    assert "mlp 32 px" in results.with_suffix(".html").read_text()
    nothing = run_benchmark("--plot", f"--results={tmp_path / 'none.jsonl'}")
    assert (nothing.returncode, "holds no rows yet" in nothing.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["gpu", "growth"])
def test_suites_run_in_miniature(run_benchmark, suite, data_dir, tmp_path):
    fields = ["--resnet_width=4", "--image_px=32", "--batch_size=8", "--epochs=2", "--chunk_steps=4"]
    small = [*fields, "--limit=17", "--steps=2", "--repeats=2", "--devices=2", "--dtype=float32"]
    given = [f"--data_dir={data_dir}", f"--results={tmp_path / 'rows.jsonl'}"]
    done = run_benchmark(f"--suite={suite}", *small, *given, timeout=1000)
    assert done.returncode == 0, done.stderr


def make_row(what="step", seconds=1.0, **choices):
    row = {name: None for name in cases.KEY_COLUMNS} | {"what": what, "framework": "pneumojax"}
    row |= {"model": "cnn", "image_px": 64, "batch_size": 32, "dtype": "float32", "fields": {}, "devices": None}
    speed = {"median": 320 / seconds, "low": 300 / seconds, "high": 340 / seconds}
    row |= {"seconds": {"median": seconds, "low": seconds, "high": seconds}, "images_per_second": speed}
    device = {"kind": "NVIDIA H200", "platform": "gpu", "count": choices.get("devices") or 1}
    row |= {"device": device, "cores": 2, "load": 0.1, "versions": {"jax": "0.10.2"}, "commit": "abc"}
    row |= {"created": "2026-01-02T03:04:05+00:00", "flops_per_step": 3e12, "bytes_per_step": 1e10}
    return row | choices


def test_growth_is_the_power_of_what_was_varied_and_the_last_row_of_a_case_counts():
    rows = [make_row(seconds=9.0, image_px=32)]
    rows += [make_row(seconds=(px / 32) ** 2, image_px=px) for px in (32, 64, 128)]
    rows += [make_row(seconds=3.0, batch_size=64, devices=devices) for devices in (1, 2, 4)]
    rows += [make_row("epoch", seconds=2.0 * limit, limit=limit) for limit in (100, 200)]
    kept = benchmark_page.keep_latest(rows)
    assert len(kept) == len(rows) - 1
    growth = {one["varied"]: one for one in benchmark_page.compute_growth(kept)}
    assert growth.keys() == {"image_px", "devices"}
    assert growth["image_px"]["power"] == pytest.approx(2)
    assert growth["devices"]["power"] == pytest.approx(0)


def test_the_page_shows_ratios_speeds_roofline_and_growth(tmp_path, draw_pictures):
    rows = [make_row(seconds=(px / 32) ** 2, image_px=px) for px in (32, 64, 128)]
    rows += [make_row(seconds=1 / devices, batch_size=64, devices=devices) for devices in (1, 2, 4)]
    rows += [make_row(model="resnet18", ratio=1.25), make_row(model="resnet18", framework="torch", seconds=1.25)]
    rows[0]["load"] = 7.0
    with draw_pictures():
        page = benchmark_page.write_page(tmp_path / "rows.jsonl", rows).read_text()
    for text in ("Compared with PyTorch and Keras", "1.25", "How cost grows", "Roofline", "1 of 8 cases", "2.00"):
        assert text in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"step_image_px.png", "step_devices.png", "roofline.png"}
    assert page.count("data:image/png") == 3


def test_flags_of_another_script_are_left_alone():
    assert "what" not in flags.FLAGS
