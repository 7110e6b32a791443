"""Cross-validates a config: trains a run for each fold, and scores each image by the run that did not train on it.

    scripts/run experiments/cross_validate.py                                     # synthetic radiographs, 3 minutes
    scripts/run experiments/cross_validate.py --dataset=kermany --flagfile=experiments/presets/resnet.flags \\
        --folds=5 --workdir=runs/resnet_folds
    scripts/run experiments/cross_validate.py --dataset=kermany --folds=2 --folds_by=series --workdir=runs/series

All official training images, which are the prepared train and validation splits, are split into folds by patient. The
official test folder is not used. The run of fold i is in `<workdir>/fold_<i>`, and fold i is its test split. The other
folds are split by patient into train and validation, and the epoch, threshold and calibration are chosen on that
validation split. With --folds_by=series, the NORMAL images of a fold are those of one series of file names, so each is
scored by a run that never saw its series. If the command is stopped, the same command resumes it. The results are
written to `<workdir>/evaluation/out_of_fold/`, as evaluate.py writes them. compare.py --split=out_of_fold compares two
cross-validations.
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
RESTART = flags.DEFINE_bool("restart", False, "delete the runs in the workdir and start again")

DEFAULT_FOLDS = 5

# The metrics that are printed. metrics.json contains all of them.
PRINTED = ("auroc", "auprc", "specificity_at_sensitivity_0.95", "accuracy", "sensitivity", "specificity")

logger = logging.getLogger("experiments")


def main() -> int:
    if flags.FLAGS.fold:
        return fail(f"--fold={flags.FLAGS.fold}: this command trains all folds. Leave out the flag.")
    folds = flags.FLAGS.folds or DEFAULT_FOLDS
    config, workdir = config_from_flags(folds=folds), pathlib.Path(WORKDIR.value).expanduser()
    # These import JAX, so they come after the flag checks.
    from pneumojax.evaluation.cross_validation import evaluate_folds
    from pneumojax.evaluation.run import open_run

    paths = {workdir / f"fold_{i}": set_fold(config, i) for i in range(folds)}
    for number, (path, fold_config) in enumerate(paths.items()):
        logger.info("fold %d of %d: %s", number + 1, len(paths), path)
        if stopped_by := train(path, fold_config):
            print(f"Stopped and saved in {path}.\n{format_resume()}")
            return 128 + stopped_by
    results = evaluate_folds([open_run(path, data_dir=config.data.data_dir) for path in paths], workdir)
    print(format_results(results))
    print(f"Written to {workdir / 'evaluation' / 'out_of_fold'}. The runs of the folds are in {workdir}.")
    return 0


def set_fold(config: Config, fold: int) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, fold=fold))


def train(path: pathlib.Path, config: Config) -> int | None:
    """Trains or resumes the run of one fold. Returns the number of the signal that stopped it, or None."""
    import jax

    from pneumojax.training.fit import fit

    progress = Progress(time.perf_counter())
    try:
        result = fit(config, path, RESTART.value, progress.report)
    finally:
        progress.close()
    jax.clear_caches()  # Otherwise the compiled steps of all folds stay in memory.
    return result.stopped_by


def format_results(results: dict) -> str:
    """Formats a table with a row for each metric: over all images, mean and deviation over the folds, and each fold."""
    counts, folds = results["counts"], results["folds"]
    classes = ", ".join(f"{number} {name}" for name, number in counts["classes"].items())
    lines = [f"{counts['images']} images of {counts['patients']} patients ({classes}), each scored out of fold"]
    lines += filter(None, [describe_synthetic(results["run"]["data"])])
    rows = []
    for name, metric in results["metrics"].items():
        if name not in PRINTED:
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
