"""rules.py reads the folds of a cross-validation, and names the command that trains them."""

import pytest
from forked import run_script

from pneumojax.training.fit import fit


@pytest.mark.slow
def test_the_tables_are_printed_and_written(make_config, processes, tmp_path):
    for fold in range(2):
        fit(make_config(model="mlp", epochs=1, folds=2, fold=fold), tmp_path / "folds" / f"fold_{fold}")
    done = run_script(processes, tmp_path, "experiments/rules.py", f"--workdir={tmp_path / 'folds'}")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "folds" / "rules.md").read_text()
    assert "2 folds by patient" in text and text.count("| held out |") == 13
    assert "sensitivity 0.975" in done.stdout and f"Written to {tmp_path / 'folds' / 'rules.md'}" in done.stdout


def test_a_folder_without_all_folds_is_refused(make_config, processes, tmp_path):
    done = run_script(processes, tmp_path, "experiments/rules.py", f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert "has no fold_0. Train the folds first with experiments/cross_validate.py." in done.stderr
    fit(make_config(model="mlp", epochs=1, folds=2), tmp_path / "fold_0")
    done = run_script(processes, tmp_path, "experiments/rules.py", f"--workdir={tmp_path}")
    assert done.returncode == 1 and "has 1 of 2 folds" in done.stderr
    assert not (tmp_path / "rules.md").exists()
