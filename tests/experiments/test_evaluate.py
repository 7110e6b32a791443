"""Tests of experiments/evaluate.py."""

import json

import pytest
from encoded_images import encode, smooth_pixels
from forked import run_script


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_collection_is_evaluated_and_mistakes_are_sentences(make_run, processes, tmp_path):
    folder = tmp_path / "hospital"
    for i, kind in enumerate(("NORMAL", "pneumonia")):
        (folder / kind).mkdir(parents=True)
        for j in range(3):
            (folder / kind / f"{j}.png").write_bytes(encode(smooth_pixels(40, 50, 3 * i + j)))
    workdir = make_run()
    arguments = (f"--workdir={workdir}", f"--images={folder}")
    done = run_script(processes, tmp_path, "experiments/evaluate.py", *arguments, "--labels=folders")
    assert done.returncode == 0, done.stderr
    assert f"Written to {workdir / 'evaluation' / 'hospital'}" in done.stdout
    assert "hospital: 6 images of 6 patients (3 NORMAL, 3 PNEUMONIA)" in done.stdout
    assert "Do not report it" in done.stdout and "AUROC between them" in done.stdout
    for more, message in (
        ((), "--images and --labels belong together"),
        (("--labels=folders", "--split=test"), "--split and --images exclude each other"),
        (("--labels=folders", "--threshold_rule=youden"), "--threshold_rule cannot be given with --images"),
        (("--labels=gone.csv",), "--labels=gone.csv cannot be read"),
    ):
        done = run_script(processes, tmp_path, "experiments/evaluate.py", *arguments, *more)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr
