"""Tests of experiments/evaluate.py."""

import json

from forked import run_script


def test_script_scores_an_ensemble_and_names_its_folder(make_run, processes, tmp_path):
    workdirs = [make_run(), make_run(seed=1, epochs=3)]
    arguments = (f"--workdir={workdirs[0]},{workdirs[1]}", "--split=test", "--prevalence=0.3")
    done = run_script(processes, tmp_path, "experiments/evaluate.py", *arguments)
    assert done.returncode == 0, done.stderr
    folder = workdirs[0].parent.resolve() / f"{workdirs[0].name}+{workdirs[1].name}"
    results = json.loads((folder / "evaluation" / "test" / "metrics.json").read_text())
    for part in (
        f"Written to {folder}",
        f"Read {folder / 'evaluation' / 'test' / 'report.html'}",
        "for 2 runs together",
        f"specificity_at_sensitivity_0.95    {results['metrics']['specificity_at_sensitivity_0.95']['value']:.4f}",
        f"recalibrated on validation: temperature {results['calibration']['temperature']:.3f}, bias ",
        f"PPV {results['at_prevalence']['ppv']['value']:.3f}",
        "bacterial_against_viral",
    ):
        assert part in done.stdout
