"""Evaluates a trained run on a split, and writes metrics with intervals, predictions, figures and a report.

    scripts/run experiments/evaluate.py --workdir=runs/resnet --split=validation
    scripts/run experiments/evaluate.py --workdir=runs/resnet --split=test
    scripts/run experiments/evaluate.py --workdir=runs/a,runs/b,runs/c --split=test    # an ensemble, into runs/a+b+c
    scripts/run experiments/evaluate.py --workdir=runs/seeds --split=test    # an ensemble of the run's --replicas
    scripts/run experiments/evaluate.py --workdir=runs/resnet --images=hospital --labels=hospital.csv
    scripts/run experiments/evaluate.py --workdir=runs/resnet --images=hospital --labels=folders

Writes to `<workdir>/evaluation/<split>/`: report.html, which contains all results in one file; metrics.json,
predictions.csv, curves.json, roc.png, precision_recall.png, reliability.png, predictive_values.png, decision_curve.png,
confusion_matrix.png and learning_curves.png. They replace all files of an earlier evaluation at once. The report shows
the worst errors, each with a map of the areas that support the decision. The settings of the run are read from the
workdir. An ensemble averages the calibrated probabilities of its runs. Its threshold and its calibration are chosen for
the averaged probabilities.

--images evaluates any other folder of images, in the formats of predict.py, with the threshold and the calibration as
they are stored. The results are in `<workdir>/evaluation/<name of the folder>/`. --labels is a CSV file with the
columns file (a path in the folder), label (NORMAL, PNEUMONIA, BACTERIA or VIRUS) and optionally patient. It is the word
folders if sub-folders have the names of the labels. Images that cannot be read are listed in unreadable.csv. The report
also compares the brightness, sharpness and other properties of the images with those of validation.
"""

import dataclasses
import pathlib
from typing import Any

from absl import flags

from experiments.cli import fail, run
from pneumojax.config import ThresholdConfig
from pneumojax.reporting.caveats import describe_warnings
from pneumojax.reporting.collection_tables import describe_collection, make_collection_tables
from pneumojax.reporting.format import format_bounds, format_calibration, format_interval
from pneumojax.reporting.tables import Table

WORKDIR = flags.DEFINE_list(
    "workdir", ["runs/latest"], "folder of the run; several folders, separated by commas, are evaluated as one ensemble"
)
SPLIT = flags.DEFINE_enum("split", "validation", ("train", "validation", "test"), "split to evaluate on")
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ("best", "latest"), "the best checkpoint by the run's --select_by, or the latest one"
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets (default: where the run found them)")
VIEWS = flags.DEFINE_integer(
    "test_time_views",
    None,
    "number of views of each image whose probabilities are averaged, including the image itself (default: the run's)",
    lower_bound=1,
)
RULE = flags.DEFINE_enum(
    "threshold_rule",
    None,
    ("target_sensitivity", "youden", "cost_ratio", "fixed"),
    "rule that chooses the threshold on validation (default: the run's)",
)
TARGET = flags.DEFINE_float(
    "target_sensitivity", None, "sensitivity to reach, for rule target_sensitivity (default: the run's)"
)
COST_RATIO = flags.DEFINE_float(
    "cost_ratio",
    None,
    "cost of a false negative, relative to a false positive, for rule cost_ratio (default: the run's)",
)
PREVALENCE = flags.DEFINE_float(
    "prevalence",
    None,
    "prevalence of pneumonia where the network will be used, for rule cost_ratio and for metrics at that prevalence",
)
IMAGES = flags.DEFINE_string(
    "images", None, "folder of other images to evaluate on, instead of --split; needs --labels"
)
LABELS = flags.DEFINE_string("labels", None, "labels of --images: a CSV file, or the word folders")
EXPLAIN = flags.DEFINE_bool(
    "explain",
    True,
    "show in the report which areas support the worst errors; on CPU, a large network needs minutes for it",
)
FIXED = flags.DEFINE_float("fixed_threshold", None, "threshold of rule fixed (default: the run's)")


def main() -> int:
    rule_flags = (RULE, TARGET, COST_RATIO, FIXED)
    if (IMAGES.value is None) != (LABELS.value is None):
        return fail("--images and --labels belong together: give both, or --split.")
    if IMAGES.value is not None and SPLIT.present:
        return fail("--split and --images exclude each other: give one of them.")
    if IMAGES.value is not None and (given_rules := [flag.name for flag in rule_flags if flag.value is not None]):
        return fail(f"--{given_rules[0]} cannot be given with --images, whose threshold is the stored one.")
    # These import JAX, so they come after the flag checks.
    from pneumojax.evaluation.ensemble import open_predictor
    from pneumojax.evaluation.evaluate import evaluate
    from pneumojax.sharding import initialize

    initialize(multihost=False)
    opened = open_predictor(WORKDIR.value, CHECKPOINT.value, DATA_DIR.value, VIEWS.value)
    if IMAGES.value is not None and LABELS.value is not None:
        from pneumojax.evaluation.external import evaluate_collection

        folder = pathlib.Path(IMAGES.value).expanduser()
        results = evaluate_collection(opened, folder, LABELS.value, PREVALENCE.value, EXPLAIN.value)
    else:
        given: dict[str, Any] = {flag.name: flag.value for flag in (*rule_flags, PREVALENCE) if flag.value is not None}
        rules: ThresholdConfig = dataclasses.replace(opened.config.threshold, **given)
        results = evaluate(opened, SPLIT.value, rules, EXPLAIN.value)
    print(format_results(results))
    directory = opened.workdir / "evaluation" / results["run"]["split"]["name"]
    print(f"Written to {directory}\nRead {directory / 'report.html'}")
    return 0


def format_results(results: dict) -> str:
    """Formats the metrics, thresholds, calibration and subgroups as tables, followed by the warnings."""
    threshold, counts, split = results["threshold"], results["counts"], results["run"]["split"]["name"]
    classes = ", ".join(f"{number} {name}" for name, number in counts["classes"].items())
    lines = [f"{split}: {counts['images']} images of {counts['patients']} patients ({classes})"]
    rows = []
    for name, metric in results["metrics"].items():
        value = "-" if metric["value"] is None else f"{metric['value']:.4f}"
        interval = format_bounds(metric["ci95"], ".4f") if metric["ci95"] else metric.get("reason", "")
        rows.append((name, value, interval))
    lines += ["", Table(("metric", "value", "95 % interval (bootstrap by patient)"), rows).format_text()]
    source = f"chosen on {threshold['split']}" if threshold["split"] else "given, not chosen"
    lines += ["", f"threshold {threshold['value']:.6f} ({threshold['rule']}, {source}) {_format_step(threshold)}"]
    rows = []
    for name, point in results["operating_points"].items():
        if point["threshold"] is None:
            rows.append((name, "-", point["reason"]))
            continue
        rates = ", ".join(format_interval(point["metrics"][rate]) for rate in ("sensitivity", "specificity"))
        rows.append((name, f"{point['threshold']:.6f}", rates))
    heading = f"operating point of {results['calibration']['split']}"
    columns = (heading, "threshold", "sensitivity, specificity (95 % intervals)")
    lines += ["", Table(columns, rows).format_text()]
    noise = results["label_noise"]
    if len(results["run"]["class_names"]) == 3 and noise["share"] is not None:
        lines += [
            "",
            f"labels that the network contradicts: {noise['share']:.1%} of {noise['confident']:,} confident ones",
        ]
    lines += ["", *_format_calibration(results), "", *_format_subgroups(results["subgroups"])]
    if "collection" in results:
        for table in make_collection_tables(results):
            lines += ["", table.format_text()]
            lines += [table.caption] if table.caption else []
        lines += ["", *describe_collection(results)]
    return "\n".join([*lines, "", *describe_warnings(results)]).rstrip()


def _format_step(threshold: dict) -> str:
    step = threshold["checkpoint_step"]  # A list with an entry for each member of an ensemble.
    return f"for {len(step)} runs together" if isinstance(step, list) else f"at step {step}"


def _format_calibration(results: dict) -> list[str]:
    calibration, there = results["calibration"], results["at_prevalence"]
    rows = [
        (name, format_interval(before), format_interval(calibration["after"][name]))
        for name, before in calibration["before"].items()
    ]
    lines = [Table(("calibration", "as trained", "recalibrated"), rows).format_text()]
    lines += ["", f"recalibrated on {calibration['split']}: {format_calibration(calibration)}"]
    if there:
        values = ", ".join(f"{name.upper()} {format_interval(there[name])}" for name in ("ppv", "npv"))
        lines += ["", f"at a prevalence of {there['prevalence']}: {values}"]
    return lines


def _format_subgroups(subgroups: dict) -> list[str]:
    rows = []
    for name, group in subgroups.items():
        metrics = group["metrics"]
        names = [metric for metric in ("auroc", "sensitivity", "specificity") if metric in metrics]
        rows.append((name, str(group["images"]), *(format_interval(metrics[metric]) for metric in names)))
    columns = ("subgroup", "images", "AUROC", "sensitivity", "specificity (95 % intervals)")
    return [Table(columns, rows).format_text()]


if __name__ == "__main__":
    run(main)
