"""The ablation: its file, its table, and the command on synthetic radiographs."""

import json
import pathlib
import shutil

import pytest
from forked import run_script

from experiments.benchmarks.ablation_page import format_page, read_table
from experiments.flags import read_preset
from pneumojax.errors import UserError

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def make_result(aspect, accuracy=0.8):
    scores = {"auroc": 0.99, "swapped": {"aspect": aspect, "exposure": 0.98}, "accuracy": accuracy, "classes": 3}
    return {"best": scores, "latest": scores}


def test_every_row_of_the_file_is_a_config_and_changes_something():
    base, rows = read_table(EXPERIMENTS / "ablation.toml")
    assert len(rows) >= 20
    shared = {name: value for name, value in base.items() if name != "flagfile"}
    configs = [
        read_preset(EXPERIMENTS / "presets" / base["flagfile"], **shared | row["fields"]) for row in rows.values()
    ]
    assert len({str(config) for config in configs}) == len(configs)


def test_the_page_has_paired_differences_to_the_base():
    rows = {name: {"title": name.title()} for name in ("base", "other", "untrained")}
    results = {
        "base": {"seconds": 60, "parameters": 1000, "seeds": [make_result(0.95), make_result(0.97)]},
        "other": {"seconds": 120, "parameters": 2000, "seeds": [make_result(0.97), make_result(0.98)]},
    }
    page = format_page({"flagfile": "resnet.flags", "epochs": 2}, rows, results, quick=False)
    [line] = [line for line in page.splitlines() if line.startswith("| Other")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[4] == "0.9750 ± 0.0071" and cells[5] == "+0.0150 ± 0.0071"
    assert cells[6] == "0.9750 ± 0.0071 (aspect)" and cells[-2] == "2"
    assert "- Untrained" in page and "means nothing" not in page


@pytest.mark.parametrize("content", ["", "[base]\n", "[rows.a]\ntitle = 'a'\n", "not toml"])
def test_a_bad_file_is_named(content, tmp_path):
    path = tmp_path / "table.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=str(path)):
        read_table(path)


def test_an_unknown_row_is_refused_with_those_there_are(processes, tmp_path):
    done = run_script(processes, tmp_path, "experiments/ablation.py", "--rows=none", "--quick")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "none is not a row" in done.stderr and "aspect_image" in done.stderr


@pytest.mark.slow
def test_the_command_trains_its_rows_once(processes, tmp_path):
    arguments = ("experiments/ablation.py", "--quick", "--rows=base,aspect", f"--workdir={tmp_path / 'runs'}")
    done = run_script(processes, tmp_path, *arguments, timeout=300)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "runs" / "ablation.jsonl"
    page = results.with_suffix(".md").read_text()
    assert page.strip() in done.stdout and "means nothing" in page.replace("mean nothing", "means nothing")
    stored = results.read_text()
    base, aspect = map(json.loads, stored.splitlines())
    assert set(base["seeds"][0]["latest"]["swapped"]) >= {"aspect", "sharpness"} and aspect["row"] == "aspect"
    assert run_script(processes, tmp_path, *arguments, timeout=300).returncode == 0
    assert results.read_text() == stored
    shutil.rmtree(tmp_path / "runs" / "base")  # Another machine has the results, but not the runs.
    assert run_script(processes, tmp_path, *arguments, timeout=300).returncode == 0
    assert results.read_text() == stored and not (tmp_path / "runs" / "base").exists()
