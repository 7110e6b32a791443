"""Makes splits with scores of a simulated classifier, in memory and as the files of an evaluation."""

import csv
import json
import pathlib

import numpy as np


def make_split(images, classes, seed=0, step=None):
    """Makes labels, probabilities and a patient for each image. `step` rounds the logits, so that scores tie."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    logits = rng.normal(size=(images, classes)) + 1.2 * np.eye(classes)[labels]
    if step:
        logits = np.round(logits / step) * step
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities, np.array([f"person{i}" for i in range(images)])


def make_pair(images, seed=0, step=None):
    """Makes labels and the scores of two classifiers for the same images; the first is better. `step` makes ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=images)
    common = rng.normal(size=images)
    a, b = (1.5 * labels + common + rng.normal(size=images) * noise for noise in (0.5, 1.5))
    if step:
        a, b = np.round(a / step) * step, np.round(b / step) * step
    return labels, 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))


def write_evaluation(workdir, labels, scores, threshold=0.5, **changes):
    """Writes the files of experiments/evaluate.py that are read again."""
    rows = {f"image{i}.jpeg": [f"person{i // 2}", "PNEUMONIA" if label else "NORMAL"] for i, label in enumerate(labels)}
    rows |= changes.get("rows", {})
    lines = ["filename,patient_id,label,probability_NORMAL,probability_PNEUMONIA,score"]
    for (filename, row), score in zip(rows.items(), scores, strict=False):
        lines.append(",".join([filename, *row, *map(repr, map(float, (1 - score, score, score)))]))
    results = {
        "run": {"class_names": ["NORMAL", "PNEUMONIA"], "split": {"fingerprint": changes.get("fingerprint", "f")}},
        "threshold": {"value": threshold},
        "counts": {"images": len(lines) - 1},
    }
    folder = workdir / "evaluation" / "test"
    folder.mkdir(parents=True)
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    (folder / "metrics.json").write_text(json.dumps(results))
    return workdir


def read_results(workdir, split="validation"):
    """Reads metrics.json of an evaluation."""
    return json.loads((pathlib.Path(workdir) / "evaluation" / split / "metrics.json").read_text())


def read_csv(workdir, split="validation"):
    """Reads predictions.csv of an evaluation: a dict for each image."""
    with (pathlib.Path(workdir) / "evaluation" / split / "predictions.csv").open() as file:
        return list(csv.DictReader(file))
