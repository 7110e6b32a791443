"""Tests of experiments/speedrun.py: it trains as `fit` does. Tests of its rows, table, rules and resumption."""

import functools
import json
import pathlib
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from forked import run_script
from scipy import stats

from experiments import flags, speedrun
from experiments.benchmarks import records, speedrun_page
from pneumojax.checkpoint import load_run
from pneumojax.config import config_from_dict, replace_fields
from pneumojax.errors import UserError
from pneumojax.training.fit import fit

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def run_speedrun(processes, tmp_path):
    """`run_speedrun(...)`: runs the script."""
    return functools.partial(run_script, processes, tmp_path, "experiments/speedrun.py")


@pytest.fixture(scope="module")
def config(make_config):
    still = dict.fromkeys(("rotate_degrees", "shift", "zoom", "brightness", "contrast", "erase_probability"), 0.0)
    return make_config(model="mlp", image_px=16, epochs=2, mixup_alpha=0.0, crop_min_area=1.0, **still)


@pytest.fixture(scope="module")
def racer(config):
    return speedrun.Racer(config)


def test_a_training_is_bitwise_that_of_fit_and_another_seed_compiles_nothing(config, racer, tmp_path):
    first = racer.train(1)
    compiled = dict(racer.compiled)
    ours = racer.train(3)
    assert compiled.keys() == {0} and racer.compiled == compiled
    total_steps = fit(replace_fields(config, {"seed": 3}), tmp_path).total_steps
    _, theirs, step = load_run(tmp_path, "latest")
    assert step == total_steps and racer.images == total_steps * config.train.batch_size
    same = [np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True)]
    other = [np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (first, theirs)), strict=True)]
    assert all(same) and not all(other)


def test_what_diverges_is_a_sentence(racer, monkeypatch):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, racer.init(jax.random.key(0)).eval_variables())
    monkeypatch.setattr(racer, "train", lambda seed: broken)
    with pytest.raises(UserError, match="seed 2 has diverged"):
        racer.time(2)


def test_a_row_keeps_the_words_that_say_what_is_measured(monkeypatch):
    own = ["--model=cnn", "--epochs", "2", "--noaugment"]
    places = ["--results", "/home/me/rows.jsonl", "--peer_python=/home/me/bin/python", "--resume"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *places[:2], *own, *places[2:]])
    assert records.list_measured_words() == own


def test_a_small_speedrun_is_resumed_from_the_command_to_the_table(run_speedrun, data_dir, tmp_path):
    results = tmp_path / "rows.jsonl"
    config = ["--model=mlp", "--mlp_widths=8", "--image_px=16", "--epochs=1", "--batch_size=16", "--chunk_steps=4"]
    words = [*config, f"--data_dir={data_dir}", "--seed=5", "--seeds=2"]
    same = {"commit": records.find_commit(), "command": shlex.join(["experiments/speedrun.py", *words])}
    # Rows of a command that was stopped after its first training, and a row of another command.
    left, *_ = make_rows([0.75, 0.8])
    other, earlier = left | {"seed": 6}, left | {"seed": 5} | same
    results.write_text("".join(json.dumps(row) + "\n" for row in (other, earlier)))
    done = run_speedrun("--resume", *words, "--results", str(results))
    assert done.returncode == 0, done.stderr
    assert "seed 5: " not in done.stderr and "seed 6: " in done.stderr
    # The warm-up has another seed and leaves no row.
    assert "seed 7: " in done.stderr and "Warm-up, discarded" in done.stderr
    *before, training, race = (json.loads(line) for line in results.read_text().splitlines())
    assert before == [other, earlier]
    assert (training["what"], training["seed"], training["command"]) == ("training", 6, same["command"])
    assert training["images"] > 0 and training["cpu_seconds"] > 0 and training["evaluation_seconds"] > 0
    assert (race["what"], race["seeds"], race["device"]["count"]) == ("speedrun", [5, 6], 1)
    assert race["auroc"]["mean"] == pytest.approx((0.75 + training["auroc"]) / 2)
    assert race["fields"]["mlp_widths"] == [8] and "seed" not in race["fields"]
    assert race["seconds_with_compilation"] > race["compile_seconds"] > training["seconds"] > 0
    assert {"commit", "command", "cores", "created", "flops_per_step", "load", "versions"} <= race.keys()
    assert "95 % interval of the mean" in done.stdout and race["command"] in done.stdout
    assert "mlp_widths=8" in results.with_suffix(".md").read_text()
    nothing = run_speedrun("--resume", *words, "--results", str(results))
    assert (nothing.returncode, "Nothing to do" in nothing.stdout) == (0, True)


@pytest.mark.parametrize(
    "field", [{"selection_split": "test"}, {"replicas": 2}, {"cached_views": 1}, {"model": "cnn", "pretrained": "a.h5"}]
)
def test_another_race_is_refused(field):
    with pytest.raises(UserError, match=f"{list(field)[-1]}=.* is not allowed"):
        speedrun.check_rules(config_from_dict(field))


def test_bad_input_is_a_sentence(run_speedrun, tmp_path):
    results = tmp_path / "rows.jsonl"
    done = run_speedrun("--seed=2147483647", f"--results={results}")
    assert done.returncode == 1 and "seed must be at most 2147483647" in done.stderr
    assert "Traceback" not in done.stderr and not results.exists()


def test_the_interval_is_students():
    values = [0.99, 0.992, 0.995, 0.991]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert speedrun_page.compute_interval(values) == pytest.approx(expected)


def make_rows(aurocs, first_seed=0, **fields):
    same = {"commit": "abc", "command": f"speedrun.py {fields}"}
    trainings = [
        {"what": "training", "seed": first_seed + i, "seconds": 2.0 + i, "cpu_seconds": 3.0, "images": 100}
        | {"evaluation_seconds": 0.1, "auroc": auroc}
        | same
        for i, auroc in enumerate(aurocs)
    ]
    race = {"what": "speedrun", "fields": fields, "seconds_with_compilation": 9.0, "cores": 2, "load": 0.1} | same
    race |= {"device": {"kind": "chip", "platform": "cpu", "count": 1}, "versions": {"jax": "1"}}
    return [*trainings, race | speedrun_page.summarise(trainings, 0.99)]


def test_the_table_compares_seed_by_seed_with_the_first_row_and_shows_of_equal_ones_the_last():
    rows = make_rows([0.98, 0.99], epochs=4) + make_rows([0.99, 0.992, 0.994], epochs=4)
    rows += make_rows([0.995, 0.998], first_seed=1, dtype="bfloat16")
    page = speedrun_page.format_page(rows)
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert len(lines) == 2
    assert (
        "| epochs=4 | 0 to 2 | 0.9920 ± 0.0020 (0.9870 to 0.9970) |  | 3 of 3 | 3.00 ± 1.00 | 3.00 ± 0.00 | 9.0 | 33 |"
        in lines[0]
    )
    # Both commands have seeds 1 and 2: 0.995 - 0.992 and 0.998 - 0.994.
    assert "| epochs=30, dtype=bfloat16 | 1 to 2 |" in lines[1] and "+0.0035 (-0.0029 to +0.0099), 2 seeds" in lines[1]


def test_rows_in_the_results_leave_the_commit_as_it_is(monkeypatch, tmp_path):
    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=e@x")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    assert records.find_commit() is None
    records.RESULTS.mkdir()
    for name in ("code.py", "results/rows.jsonl"):
        (tmp_path / name).write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = records.find_commit()
    (tmp_path / "results/rows.jsonl").write_text("2\n")
    assert len(commit) == 12 and records.find_commit() == commit
    (tmp_path / "code.py").write_text("2\n")
    assert records.find_commit() == f"{commit}+"


@pytest.mark.parametrize("name", ["speedrun", "speedrun_cnn"])
def test_the_presets_keep_the_rules(name):
    speedrun.check_rules(flags.read_preset(ROOT / f"experiments/presets/{name}.flags"))
