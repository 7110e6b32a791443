"""Tests of searches: finished and pruned trials, and which searches a storage file resumes."""

import threading

import numpy as np
import pytest
from searches import SPACE, run_trials, score

from pneumojax.errors import UserError
from pneumojax.training.search_space import Range

pytest.importorskip("optuna")
from pneumojax.training import search


@pytest.mark.slow
def test_a_search_that_goes_on_is_one_that_was_never_interrupted(open_search, make_config, trials_by_formula, tmp_path):
    rows = run_trials(open_search(), 2)
    assert run_trials(open_search(), 2) == rows
    longer = run_trials(open_search(), 5)
    assert longer[:2] == rows
    at_once = search.open_search(tmp_path / "other.db", tmp_path / "other", make_config(epochs=9), SPACE)
    assert run_trials(at_once, 5) == longer
    assert [row["name"] for row in longer] == [f"trial_{i}" for i in range(5)]
    assert len({row["values"]["learning_rate"] for row in longer}) == 5
    for (_, config), row in zip(trials_by_formula[0], longer, strict=False):
        assert config.optimizer.learning_rate == row["values"]["learning_rate"]
        assert config.model.cnn_widths == row["values"]["cnn_widths"]
        assert 1e-4 <= config.optimizer.learning_rate <= 1e-1


def test_trials_are_complete_pruned_or_diverged_and_the_best_complete_one_wins(open_search, trials_by_formula):
    opened = open_search()
    rows = run_trials(opened, 15)
    configs = {name: config for name, config in trials_by_formula[0]}
    assert {row["state"] for row in rows} == {"complete", "pruned", "diverged"}
    for row in rows:
        if row["state"] == "diverged":
            assert configs[row["name"]].optimizer.learning_rate > 0.05
            assert (row["auroc"], row["epochs"]) == (None, 0)
        else:
            assert row["epochs"] in ((9,) if row["state"] == "complete" else (1, 3))
            assert row["auroc"] == score(configs[row["name"]], row["epochs"])
    complete = [row for row in rows if row["state"] == "complete"]
    assert search.find_best(rows) == max(complete, key=lambda row: row["auroc"])
    assert search.find_best(rows)["auroc"] == opened.study.best_value
    # The best third continues after one epoch.
    assert rows[0]["state"] in ("complete", "diverged")
    importances = search.compute_importances(opened)
    assert next(iter(importances)) == "learning_rate"
    np.testing.assert_allclose(sum(importances.values()), 1)


@pytest.mark.slow
def test_processes_that_share_a_storage_finish_as_many_trials_as_wanted(open_search, trials_by_formula):
    searches = [open_search() for _ in range(3)]
    threads = [threading.Thread(target=run_trials, args=(opened, 6)) for opened in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(run_trials(open_search(), 6)) == len(trials_by_formula[0]) == 6


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"space": {"learning_rate": Range(1e-4, 1.0, log=True)}}, "dropout was .*, is not set; learning_rate was "),
        ({"epochs": 10}, "epochs was 9, is 10"),
        ({"weight_decay": 0.5}, "weight_decay was 0.01, is 0.5"),
    ],
)
def test_the_file_of_another_search_is_refused_and_left_as_it_is(
    open_search, trials_by_formula, tmp_path, change, sentence
):
    run_trials(open_search(), 1)
    before = (tmp_path / "study.db").read_bytes()
    with pytest.raises(UserError, match=f"holds a search with another space or config: .*{sentence}"):
        open_search(**change)
    assert (tmp_path / "study.db").read_bytes() == before


def test_the_folder_of_another_search_is_refused(open_search, trials_by_formula, tmp_path):
    (tmp_path / "trial_0").mkdir()
    with pytest.raises(UserError, match="holds the trials of another search"):
        open_search()


def test_test_is_not_searched_on(open_search):
    with pytest.raises(UserError, match="a search compares trials on validation"):
        open_search(selection_split="test")
