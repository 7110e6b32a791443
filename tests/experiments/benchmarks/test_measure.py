"""Tests of each measurement on small inputs."""

import pytest
from planned_cases import TINY, plan

from experiments.benchmarks import cases, measure
from pneumojax.config import config_from_dict


def test_each_measure_has_its_word():
    assert list(cases.WHAT) == list(measure.MEASURES)


# The measures that train whole runs.
WHOLE_RUNS = ("fit", "replicas", "train", "epoch")


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=[pytest.mark.slow] * (what in WHOLE_RUNS))
        for what in measure.MEASURES
        if what not in ("start", "tests")
    ],
)
def test_each_measure_runs(what, data_dir, tmp_path):
    fields = {"data_dir": str(data_dir), "eval_batch_size": "8", "epochs": "2", "chunk_steps": "4"}
    fields |= {"rotate_degrees": "0", "shift": "0", "zoom": "0"}  # Their compilation would take longest.
    fields |= {"replicas": "2"} if what == "replicas" else {}
    fields |= {"task": "three_class"} if what in ("step", "replicas") else {}
    (case,) = plan(f"--what={what}", "--steps=2", *(f"--{name}={value}" for name, value in (TINY | fields).items()))
    case |= {"workdir": str(tmp_path / "run"), "resume": False}
    if what in ("epoch", "decode"):
        case |= {"files": str(cases.list_files(None, 17, tmp_path)), "framework": "pneumojax"}
    ready, repeat = measure.MEASURES[what](config_from_dict(case["config"]), case)
    first, second = repeat(), repeat()
    expected = {"step": 16, "predict": 16, "replicas": 32, "epoch": 16, "decode": 17, "save": None, "restore": None}
    assert first.get("images") == second.get("images")
    if what in expected:
        assert first.get("images") == expected[what]
    if what in ("step", "epoch", "fit", "predict"):
        assert ready["compile_seconds"] > 0
        # A training counts them only on a chip whose peak is known.
        assert ready.get("flops_per_step", 0) > 0 or what == "fit"
