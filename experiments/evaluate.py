"""Scores a trained run on a split, and writes metrics with intervals, predictions, pictures and a report.

    scripts/run experiments/evaluate.py --workdir=runs/resnet --split=validation
    scripts/run experiments/evaluate.py --workdir=runs/resnet --split=test
    scripts/run experiments/evaluate.py --workdir=runs/a,runs/b,runs/c --split=test    # an ensemble, into runs/a+b+c
    scripts/run experiments/evaluate.py --workdir=runs/seeds --split=test    # trained with --replicas: an ensemble too

Writes to `<workdir>/evaluation/<split>/`: report.html, which has everything in one file to read, print and mail;
metrics.json, predictions.csv, curves.json, roc.png, precision_recall.png, reliability.png, predictive_values.png,
decision_curve.png, confusion_matrix.png and learning_curves.png. They replace those of an earlier evaluation together.
All settings of the run are read from the workdir. An ensemble averages the calibrated probabilities of the runs. It
has a threshold and a temperature of its own.
"""

import dataclasses
import pathlib

from absl import flags

from experiments.flags import fail, run
from pneumojax.config import ThresholdConfig
from pneumojax.reporting.evaluation_report import describe_warnings

WORKDIR = flags.DEFINE_list(
    "workdir", ["runs/latest"], "folder of the run; several, separated by commas, are scored as one ensemble"
)
SPLIT = flags.DEFINE_enum("split", "validation", ("train", "validation", "test"), "split to score")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "best by val/auroc, or the latest")
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets (default: where the run found them)")
VIEWS = flags.DEFINE_integer(
    "test_time_views",
    None,
    "views of each image whose probabilities are averaged, the first being the image itself (default: the run's)",
    lower_bound=1,
)
RULE = flags.DEFINE_enum(
    "threshold_rule",
    None,
    ("target_sensitivity", "youden", "cost_ratio", "fixed"),
    "how validation sets the threshold (default: the run's)",
)
TARGET = flags.DEFINE_float(
    "target_sensitivity", None, "sensitivity that rule target_sensitivity reaches (default: the run's)"
)
COST_RATIO = flags.DEFINE_float(
    "cost_ratio", None, "cost of a missed patient in false alarms, for rule cost_ratio (default: the run's)"
)
PREVALENCE = flags.DEFINE_float(
    "prevalence",
    None,
    "share of pneumonia where the network will be used: for rule cost_ratio, predictive values and scores there",
)
FIXED = flags.DEFINE_float("fixed_threshold", None, "threshold of rule fixed (default: the run's)")


def main() -> int:
    # Imports JAX: after the flags are known to be good.
    from pneumojax.checkpoint import find_replicas
    from pneumojax.evaluation.ensemble import open_ensemble, open_replicas
    from pneumojax.evaluation.evaluate import evaluate
    from pneumojax.evaluation.run import open_run
    from pneumojax.sharding import initialize

    initialize(multihost=False)
    if not WORKDIR.value:
        return fail("--workdir is empty: name the folder of a run.")
    one = len(WORKDIR.value) == 1
    open_it, named = (open_run, WORKDIR.value[0]) if one else (open_ensemble, WORKDIR.value)
    if one and find_replicas(pathlib.Path(named).expanduser()):
        open_it = open_replicas
    opened = open_it(named, CHECKPOINT.value, DATA_DIR.value, VIEWS.value)
    given = {flag.name: flag.value for flag in (RULE, TARGET, COST_RATIO, PREVALENCE, FIXED) if flag.value is not None}
    rules: ThresholdConfig = dataclasses.replace(opened.config.threshold, **given)
    results = evaluate(opened, SPLIT.value, rules)
    print(format_results(results))
    directory = opened.workdir / "evaluation" / SPLIT.value
    print(f"Written to {directory}\nRead {directory / 'report.html'}")
    return 0


def format_results(results: dict) -> str:
    """The metrics as a table, with the threshold and what it means for the reading."""
    threshold, counts, split = results["threshold"], results["counts"], results["run"]["split"]["name"]
    classes = ", ".join(f"{number} {name}" for name, number in counts["classes"].items())
    lines = [f"{split}: {counts['images']} images of {counts['patients']} patients ({classes})"]
    lines += ["", f"{'metric':<34}{'value':>8}   95 % interval (bootstrap by patient)"]
    for name, metric in results["metrics"].items():
        value = "     -  " if metric["value"] is None else f"{metric['value']:8.4f}"
        interval = "{:.4f} to {:.4f}".format(*metric["ci95"]) if metric["ci95"] else metric.get("reason", "")
        lines.append(f"{name:<34}{value}   {interval}")
    source = f"chosen on {threshold['split']}" if threshold["split"] else "given, not chosen"
    lines += ["", f"threshold {threshold['value']:.6f} ({threshold['rule']}, {source}) {_format_step(threshold)}"]
    heading = f"operating point of {results['calibration']['split']}"
    lines += ["", f"{heading:<34}{'threshold':>12}   sensitivity, specificity (95 % intervals)"]
    for name, point in results["operating_points"].items():
        if point["threshold"] is None:
            lines.append(f"{name:<34}{'-':>12}   {point['reason']}")
            continue
        rates = ", ".join(_format_metric(point["metrics"][rate]) for rate in ("sensitivity", "specificity"))
        lines.append(f"{name:<34}{point['threshold']:12.6f}   {rates}")
    lines += ["", *_format_calibration(results), "", *_format_subgroups(results["subgroups"])]
    return "\n".join([*lines, "", *describe_warnings(results)]).rstrip()


def _format_step(threshold: dict) -> str:
    step = threshold["checkpoint_step"]  # A list with an entry for each member of an ensemble.
    return f"for {len(step)} runs together" if isinstance(step, list) else f"at step {step}"


def _format_calibration(results: dict) -> list[str]:
    calibration, there = results["calibration"], results["at_prevalence"]
    temperature = f"temperature {calibration['temperature']:.3f} (fitted on {calibration['split']})"
    lines = [f"{'calibration':<34}as trained -> at {temperature}"]
    for name, before in calibration["before"].items():
        lines.append(f"{name:<34}{_format_metric(before)} -> {_format_metric(calibration['after'][name])}")
    if there:
        values = ", ".join(f"{name.upper()} {_format_metric(there[name])}" for name in ("ppv", "npv"))
        lines.append(f"{'at a prevalence of ' + str(there['prevalence']):<34}{values}")
    return lines


def _format_subgroups(subgroups: dict) -> list[str]:
    lines = [f"{'subgroup':<26}{'images':>8}   {'AUROC':<24}{'sensitivity':<24}specificity (95 % intervals)"]
    for name, group in subgroups.items():
        metrics = group["metrics"]
        names = [metric for metric in ("auroc", "sensitivity", "specificity") if metric in metrics]
        cells = "".join(f"{_format_metric(metrics[metric]):<24}" for metric in names)
        lines.append(f"{name:<26}{group['images']:8}   {cells}".rstrip())
    return lines


def _format_metric(metric: dict) -> str:
    """As "0.967 (0.951 to 0.980)"; a dash for what does not exist."""
    if metric["value"] is None:
        return "-"
    interval = " ({:.3f} to {:.3f})".format(*metric["ci95"]) if metric["ci95"] else ""
    return f"{metric['value']:.3f}{interval}"


if __name__ == "__main__":
    run(main)
