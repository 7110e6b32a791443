"""Compares two evaluated runs on the same images.

    scripts/run experiments/compare.py runs/resnet runs/cnn --split=test

Both runs must have been evaluated on the split with experiments/evaluate.py, whose files this script reads. It prints

- each metric of both runs and the difference, first run minus second run, with the 95 % interval of the paired
  bootstrap by patient;
- DeLong's test of the areas under the ROC curve;
- McNemar's test of the decisions, each run at its own threshold, for all images and for the images of each class. If
  all images are of one class, there is no test for each class.

It writes the same numbers to a JSON file. It takes seconds and needs no accelerator.
"""

import pathlib

import numpy as np
from absl import flags

from experiments.cli import run
from pneumojax.evaluation import comparison, point_metrics
from pneumojax.evaluation.bootstrap import PatientBootstrap
from pneumojax.evaluation.prediction_files import Predictions, check_same_images, read_predictions
from pneumojax.files import write_json
from pneumojax.reporting.format import format_bounds
from pneumojax.reporting.tables import Table

SPLIT = flags.DEFINE_enum(
    "split", "validation", ("train", "validation", "test", "out_of_fold"), "split on which both runs were evaluated"
)
OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file to write (default: compared_with_<second>.json next to the first run's predictions)"
)


def main(first: str, second: str) -> int:
    a, b = (read_predictions(workdir, SPLIT.value) for workdir in (first, second))
    check_same_images(a, b)
    if a.class_names != b.class_names:
        a, b = a.to_binary(), b.to_binary()
    results = compare(a, b)
    print(format_results(results, SPLIT.value))
    default = a.workdir / "evaluation" / SPLIT.value / f"compared_with_{b.workdir.resolve().name}.json"
    path = pathlib.Path(OUTPUT.value).expanduser() if OUTPUT.value else default
    write_json(path, results)
    print(f"Written to {path}")
    return 0


def compare(a: Predictions, b: Predictions) -> dict:
    """Performs all comparisons of two runs on the same images.

    Args:
      a: predictions of the first run.
      b: predictions of the second run, of the same images and classes.

    Returns:
      The content of the JSON file: "a" and "b" describe the runs, "metrics" is from `comparison.compute_differences`,
      "delong" from `comparison.compute_delong`, and "mcnemar" has results of `comparison.compute_mcnemar` for "all",
      "PNEUMONIA" and "NORMAL". If all images are of one class, there is only "all".
    """
    scores_a, scores_b = (point_metrics.compute_binary_scores(one.probabilities) for one in (a, b))
    positive = a.labels > 0
    right_a, right_b = (
        point_metrics.compute_decisions(scores, one.threshold) == positive
        for one, scores in ((a, scores_a), (b, scores_b))
    )
    groups = {"all": positive | ~positive}
    if positive.any() and not positive.all():
        groups |= {"PNEUMONIA": positive, "NORMAL": ~positive}
    bootstrap = PatientBootstrap(a.patient_ids)
    return {
        "a": {"workdir": str(a.workdir), "threshold": np.unique(a.threshold).tolist()},
        "b": {"workdir": str(b.workdir), "threshold": np.unique(b.threshold).tolist()},
        "images": len(a.labels),
        "fingerprint": a.fingerprint,
        "metrics": comparison.compute_differences(
            a.labels, a.probabilities, b.probabilities, a.threshold, b.threshold, bootstrap
        ),
        "delong": comparison.compute_delong(positive, scores_a, scores_b),
        "mcnemar": {name: comparison.compute_mcnemar(right_a[of], right_b[of]) for name, of in groups.items()},
    }


def format_results(results: dict, split: str) -> str:
    """Formats the results of `compare` as a table, followed by a line for each test."""
    lines = [f"{split}: {results['images']} images", f"a: {results['a']['workdir']}", f"b: {results['b']['workdir']}"]
    rows = []
    for name, one in results["metrics"].items():
        difference = one["difference"]
        numbers = ["-" if one[run] is None else f"{one[run]:.4f}" for run in ("a", "b")]
        numbers.append("-" if difference["value"] is None else f"{difference['value']:+.4f}")
        interval = format_bounds(difference["ci95"], "+.4f") if difference["ci95"] else difference["reason"]
        rows.append((name, *numbers, interval))
    columns = ("metric", "a", "b", "a - b", "95 % interval (paired bootstrap by patient)")
    lines += ["", Table(columns, rows).format_text()]
    delong = results["delong"]
    if delong["p"] is None:
        lines += ["", f"DeLong's test of the AUROC: none. {delong['reason']}"]
    else:
        lines += ["", f"DeLong's test of the AUROC: z = {delong['z']:.2f}, p = {delong['p']:.2g}"]
    for name, test in results["mcnemar"].items():
        lines.append(
            f"McNemar's test of the decisions, {name}: only a is right {test['only_a_right']} times, only b "
            f"{test['only_b_right']} times, p = {test['p']:.2g} ({test['method']})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, arguments=("RUN", "RUN"))
