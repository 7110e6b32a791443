"""Tests of experiments/cross_validate.py. tests/evaluation/test_cross_validation.py tests its results."""

from forked import run_script


def test_a_single_fold_is_refused_before_anything_is_written(processes, tmp_path, data_dir):
    arguments = ("--folds=3", "--fold=1", f"--data_dir={data_dir}", f"--workdir={tmp_path / 'folds'}")
    done = run_script(processes, tmp_path, "experiments/cross_validate.py", *arguments)
    assert done.returncode == 1
    assert "--fold=1: this command trains all folds. Leave out the flag." in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "folds").exists()
