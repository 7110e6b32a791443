"""Cross-validates a config: trains a run for each fold, and scores each training image by the run of its fold.

    scripts/run experiments/cross_validate.py                                         # drawn radiographs, 3 minutes
    scripts/run experiments/cross_validate.py --dataset=kermany --flagfile=experiments/presets/resnet.flags \
        --folds=5 --workdir=runs/resnet_folds

All official training images, which are the prepared train and validation splits, are split into folds by patient. The
official test folder is not used. The run of fold i is in `<workdir>/fold_<i>`. Fold i is its test split. Its epoch,
threshold and temperature are chosen on a validation split by patient of the other folds. If the command is stopped, the
same command resumes. The files of evaluate.py are written to `<workdir>/evaluation/out_of_fold/`. Use compare.py
--split=out_of_fold to compare two cross-validations.
"""

import dataclasses
import logging
import pathlib
import time

from absl import flags

from experiments.cli import fail, run
from experiments.flags import config_from_flags, define_config_flags
from experiments.progress import Progress, format_resume
from pneumojax.config import Config
from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.format import format_interval
from pneumojax.reporting.tables import Table

WORKDIR = flags.DEFINE_string("workdir", "runs/folds", "folder of the folds' runs")
RESTART = flags.DEFINE_bool("restart", False, "delete the runs in the workdir and begin anew")

DEFAULT_FOLDS = 5

# What is told of the folds; metrics.json holds the others too.
TOLD = ("auroc", "auprc", "specificity_at_sensitivity_0.95", "accuracy", "sensitivity", "specificity")

logger = logging.getLogger("experiments")


def main() -> int:
    if flags.FLAGS.fold:
        return fail(f"--fold={flags.FLAGS.fold}: all folds are trained here. Drop the flag.")
    folds = flags.FLAGS.folds or DEFAULT_FOLDS
    config, workdir = config_from_flags(folds=folds), pathlib.Path(WORKDIR.value).expanduser()
    from pneumojax.evaluation.cross_validation import (
        evaluate_folds,  # Imports JAX: after the flags are known to be good.
    )
    from pneumojax.evaluation.run import open_run

    paths = {workdir / f"fold_{i}": set_fold(config, i) for i in range(folds)}
    for number, (path, of_fold) in enumerate(paths.items()):
        logger.info("fold %d of %d: %s", number + 1, len(paths), path)
        if stopped_by := train(path, of_fold):
            print(f"Stopped and saved in {path}.\n{format_resume()}")
            return 128 + stopped_by
    results = evaluate_folds([open_run(path, data_dir=config.data.data_dir) for path in paths], workdir)
    print(format_results(results))
    print(f"Written to {workdir / 'evaluation' / 'out_of_fold'}; the runs of the folds in {workdir}.")
    return 0


def set_fold(config: Config, fold: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, fold=fold))


def train(path: pathlib.Path, config: Config) -> int | None:
    """Trains one fold, or what is left of it; returns the signal that stopped it, or None."""
    import jax

    from pneumojax.training.fit import fit

    progress = Progress(time.perf_counter())
    try:
        result = fit(config, path, RESTART.value, progress.report)
    finally:
        progress.close()
    jax.clear_caches()  # Else the compiled steps of all folds stay in memory.
    return result.stopped_by


def format_results(results: dict) -> str:
    """A row for each metric: of all images, mean and standard deviation over the folds, and of each fold."""
    counts, folds = results["counts"], results["folds"]
    classes = ", ".join(f"{number} {name}" for name, number in counts["classes"].items())
    lines = [f"{counts['images']} images of {counts['patients']} patients ({classes}), each scored out of fold"]
    lines += filter(None, [describe_synthetic(results["run"]["data"])])
    rows = []
    for name, metric in results["metrics"].items():
        if name not in TOLD:
            continue
        spread = results["over_folds"][name]
        mean = format_interval({**spread, "value": spread["mean"], "ci95": None}, ".4f")
        cells = [format_cell(fold["metrics"][name]) for fold in folds]
        rows.append((name, format_interval(metric, ".4f"), mean, *cells))
    for name in ("threshold", "temperature"):
        rows.append((name, "", "", *(format_cell(fold[name]) for fold in folds)))
    columns = ("metric", "all images (95 % interval)", "mean ± deviation", *(f"fold {i}" for i in range(len(folds))))
    return "\n".join([*lines, "", Table(columns, rows).format_text()])


def format_cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    define_config_flags()
    run(main)
