"""Tests of the cases of a benchmark."""

import json
import pathlib

import pytest
from planned_cases import plan

from experiments.benchmarks import cases
from pneumojax.errors import UserError


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
