"""Tests of experiments/speedrun.py: it trains as `fit` does, keeps its rules and resumes."""

import functools
import json
import pathlib
import shlex

import jax
import numpy as np
import pytest
from forked import run_script
from speedrun_rows import make_rows

from experiments import flags, speedrun
from experiments.benchmarks import racer as racing
from experiments.benchmarks import records
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
    return racing.Racer(config)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_small_speedrun_is_resumed_from_the_command_to_the_table(run_speedrun, data_dir, tmp_path):
    results = tmp_path / "rows.jsonl"
    config = ["--model=mlp", "--mlp_widths=8", "--image_px=16", "--epochs=1", "--batch_size=16", "--chunk_steps=4"]
    measured = [*config, "--seed=5", "--seeds=2"]
    words = [*measured, f"--data_dir={data_dir}"]  # The place of the data does not distinguish commands.
    same = {"commit": records.find_commit(), "command": shlex.join(["experiments/speedrun.py", *measured])}
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


@pytest.mark.parametrize("name", ["speedrun", "speedrun_cnn"])
def test_the_presets_keep_the_rules(name):
    speedrun.check_rules(flags.read_preset(ROOT / f"experiments/presets/{name}.flags"))
