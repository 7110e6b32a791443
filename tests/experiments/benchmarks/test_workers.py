"""Tests of the worker processes of a benchmark: they take turns, and must do the same work."""

import statistics

import pytest
from planned_cases import plan

from experiments.benchmarks import workers
from pneumojax.errors import UserError


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
    with pytest.raises(UserError, match="--devices=4: this machine has only 2 devices"):
        workers.measure_in_turn(plan("--devices=4")[0], tmp_path, "python")
    with pytest.raises(UserError, match="have 0 JPEG files; 1 are needed"):
        workers.measure_in_turn(plan("--what=decode", f"--images={tmp_path}")[0], tmp_path, "python")
