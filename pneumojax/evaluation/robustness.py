"""Measures how far a run's AUROC falls under shifts of the data that can be made from the split itself."""

import datetime
import logging
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from pneumojax.data.dataset import Split, load_split
from pneumojax.data.folds import find_series
from pneumojax.evaluation import metrics
from pneumojax.evaluation.bootstrap import RESAMPLES, PatientBootstrap, summarise
from pneumojax.evaluation.corruptions import CORRUPTIONS
from pneumojax.evaluation.nuisances import NUISANCES
from pneumojax.evaluation.operating_point import load_or_choose_threshold
from pneumojax.evaluation.point_metrics import compute_auroc, compute_binary_scores
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import Run, check_data
from pneumojax.files import replace_folder, write_json
from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.figures.intervals import save_intervals
from pneumojax.reporting.format import format_interval
from pneumojax.reporting.html import Section, load_picture, render_page
from pneumojax.reporting.tables import Table

logger = logging.getLogger(__name__)

# What a robustness report writes. A file of this list that is not written again is removed.
FILES = ("robustness.json", "robustness.html", "robustness.png")

METRICS = ("auroc", "sensitivity", "specificity")

METHOD = (
    "A nuisance is a property that tells the classes apart in these data although it is not of the lungs. Its swap "
    "moves NORMAL images towards pneumonia in this property and images of pneumonia towards NORMAL. A network that "
    "uses the property loses AUROC. The swap needs the labels, so it is a measurement and cannot be a correction.",
    "A corruption changes all images alike. Sensitivity and specificity are those at the run's own threshold, which "
    "was not chosen for changed images.",
    "The series is the first part of the file name. The series of the NORMAL images differ in scanner or in time; "
    "nothing but NORMAL is in them. Their mean scores should be equal.",
    f"Intervals hold the middle 95 % of {RESAMPLES:,} resamples of patients. All rows use the same resamples, so the "
    "change of AUROC is a paired difference. Small changes on these rows are necessary, not sufficient, for a network "
    "that keeps its AUROC on images from elsewhere.",
)


def measure_robustness(run: Run, split_name: str) -> dict:
    """Scores a split with its nuisances swapped and its images corrupted; writes robustness.json, .html and .png.

    The files are in `<workdir>/evaluation/<split>/`. They replace those of an earlier call together or not at all.

    Args:
      run: from `open_run`.
      split_name: validation or test, or train.

    Returns:
      The content of robustness.json:
        "unchanged": {"auroc", "sensitivity", "specificity"} at the run's threshold;
        "nuisances": {name: {"title", "swapped", "separation", "metrics", "change"}} for `nuisances.NUISANCES`.
          "separation" has the AUROC of the nuisance's number alone on train, on the split and on the swapped split.
          "change" is the AUROC on swapped images minus that on unchanged ones;
        "corruptions": {name: {"title", "metrics", "change"}} for `corruptions.CORRUPTIONS`;
        "worst": the name of the nuisance whose swap costs most;
        "series": {name: {"images", "mean_score", "specificity"}} of the NORMAL images;
        "threshold" and "run".
      Each metric is {"value", "ci95"}, with a "reason" if one of them is None.

    Raises:
      UserError: the split or the run is missing or damaged.
    """
    split, train = load_split(run.config.data, split_name), load_split(run.config.data, "train")
    same_data, threshold = check_data(run), load_or_choose_threshold(run, run.config.threshold)
    positive, bootstrap = split.labels("binary") > 0, PatientBootstrap(split.patient_ids)

    def score(images: np.ndarray) -> np.ndarray:
        return compute_binary_scores(compute_probabilities(run.predict(images)))

    unchanged = score(split.images)
    describe = _make_describe(positive, unchanged, threshold["value"], bootstrap)
    nuisances: dict[str, dict] = {}
    corruptions: dict[str, dict] = {}
    for name, nuisance in NUISANCES.items():
        logger.info("Network on %d %s images, %s swapped", len(split), split_name, nuisance.title)
        swapped = nuisance.swap(split.images, positive)
        separation = {
            "train": compute_auroc(train.labels("binary"), nuisance.measure(train.images)),
            "split": compute_auroc(positive, nuisance.measure(split.images)),
            "swapped": compute_auroc(positive, nuisance.measure(swapped)),
        }
        nuisances[name] = {"title": nuisance.title, "swapped": nuisance.swapped, "separation": separation}
        nuisances[name] |= describe(score(swapped))
    for name, corruption in CORRUPTIONS.items():
        logger.info("Network on %d %s images: %s", len(split), split_name, corruption.title)
        corruptions[name] = {"title": corruption.title} | describe(score(corruption.change(split.images)))
    results = {
        "unchanged": describe(unchanged)["metrics"],
        "nuisances": nuisances,
        "corruptions": corruptions,
        "worst": min(nuisances, key=lambda name: nuisances[name]["change"]["value"]),
        "series": describe_series(split, unchanged, threshold["value"]),
        "threshold": threshold,
        "run": {
            "workdir": str(run.workdir),
            "checkpoint": {"which": run.checkpoint, "step": run.step},
            "split": {"name": split_name, "images": len(split), "fingerprint": split.fingerprint},
            "trained_on_this_data": same_data,
            "bootstrap": {"resamples": bootstrap.resamples, "seed": bootstrap.seed, "unit": "patient"},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **run.info,
        },
    }
    with replace_folder(run.workdir / "evaluation" / split_name, FILES) as directory:
        _write(results, directory)
    return results


def measure_shifts(runs: Sequence[Run]) -> list[dict]:
    """Scores validation as it is and with each nuisance swapped, without intervals.

    Args:
      runs: from `open_run`, with the same images and the same classes.

    Returns:
      For each run {"auroc": float, "swapped": {name: AUROC} for `nuisances.NUISANCES`, "accuracy": share of images
      whose most probable class is their own, "classes": 2 or 3}.

    Raises:
      UserError: the data set is missing or damaged.
    """
    split = load_split(runs[0].config.data, "validation")
    positive = split.labels("binary") > 0
    images = np.concatenate([split.images, *(nuisance.swap(split.images, positive) for nuisance in NUISANCES.values())])
    scores = []
    for run in runs:
        probabilities = compute_probabilities(run.predict(images)).reshape(len(NUISANCES) + 1, len(split), -1)
        aurocs = [compute_auroc(positive, compute_binary_scores(one)) for one in probabilities]
        right = probabilities[0].argmax(1) == split.labels(run.config.model.task)
        scores.append(
            {
                "auroc": aurocs[0],
                "swapped": dict(zip(NUISANCES, aurocs[1:], strict=True)),
                "accuracy": float(right.mean()),
                "classes": probabilities.shape[-1],
            }
        )
    return scores


def _make_describe(
    positive: np.ndarray, unchanged: np.ndarray, threshold: float, bootstrap: PatientBootstrap
) -> Callable[[np.ndarray], dict]:
    """Returns `describe(scores) -> {"metrics", "change"}`, with the same resamples for all scores."""
    before = metrics.compute_score_values(positive, unchanged, threshold, bootstrap.weights)["auroc"]

    def describe(scores: np.ndarray) -> dict:
        values = metrics.compute_binary_metrics(positive, scores, threshold, bootstrap)
        after = metrics.compute_score_values(positive, scores, threshold, bootstrap.weights)["auroc"]
        change = summarise(after - before, "The AUROC is that of the unchanged images in all resamples.")
        return {"metrics": {name: values[name] for name in METRICS}, "change": change}

    return describe


def describe_series(split: Split, scores: np.ndarray, threshold: float) -> dict[str, dict]:
    """Describes the scores of the NORMAL images of each series, the first part of the file name.

    Args:
      split: the split.
      scores: [N] float, 0..1, for pneumonia.
      threshold: an image of this score or a higher one is predicted positive.

    Returns:
      {name: {"images": int, "mean_score": float, "specificity": float}}, sorted by name.
    """
    series = find_series(split.filenames)
    normal = split.subtypes == 0
    return {
        str(name): {
            "images": int(chosen.sum()),
            "mean_score": float(scores[chosen].mean()),
            "specificity": float((scores[chosen] < threshold).mean()),
        }
        for name in np.unique(series[normal])
        if (chosen := normal & (series == name)).any()
    }


def make_tables(results: dict) -> tuple[Table, Table, Table]:
    """Makes the tables of a robustness report: of the nuisances, of the corruptions, and of the series.

    Args:
      results: of `measure_robustness`.
    """

    def format_row(row: dict) -> list[str]:
        return [format_interval(row["change"], "+.4f"), *(format_interval(row["metrics"][name]) for name in METRICS)]

    columns = ("change of AUROC", "AUROC", "sensitivity", "specificity")
    unchanged = ["unchanged", *[""] * 4, *(format_interval(results["unchanged"][name]) for name in METRICS)]
    nuisances = [
        [row["title"], *(f"{auroc:.3f}" for auroc in row["separation"].values()), *format_row(row)]
        for row in results["nuisances"].values()
    ]
    corruptions = [[row["title"], *format_row(row)] for row in results["corruptions"].values()]
    series = [
        [name, f"{row['images']:,}", f"{row['mean_score']:.3f}", f"{row['specificity']:.3f}"]
        for name, row in results["series"].items()
    ]
    return (
        Table(
            ("swapped", "its number alone, train", "split", "swapped split", *columns),
            [unchanged, *nuisances],
            "The number alone: AUROC of pneumonia against NORMAL by this one number of the image. 0.5 is chance.",
        ),
        Table(("all images", *columns), corruptions),
        Table(("NORMAL series", "images", "mean score", "specificity"), series),
    )


def explain(results: dict) -> list[str]:
    """Explains the result in two sentences.

    Args:
      results: of `measure_robustness`.
    """
    worst = results["nuisances"][results["worst"]]
    auroc, change = results["unchanged"]["auroc"], worst["change"]["value"]
    return [
        f"On the {results['run']['split']['name']} images as they are, the AUROC is {format_interval(auroc)}.",
        f"Of the swapped nuisances, {worst['title']} is the worst: the change is {change:+.4f}, to "
        f"{worst['metrics']['auroc']['value']:.4f}.",
    ]


def _write(results: dict, directory: pathlib.Path) -> None:
    split = results["run"]["split"]
    groups = {
        "Nuisance swapped": {row["title"]: row["metrics"]["auroc"] for row in results["nuisances"].values()},
        "All images changed": {row["title"]: row["metrics"]["auroc"] for row in results["corruptions"].values()},
    }
    picture = directory / "robustness.png"
    unchanged = results["unchanged"]["auroc"]["value"]
    save_intervals(picture, groups, f"{split['name']}, {split['images']:,} images", (unchanged, "unchanged"))
    chart = load_picture(
        picture, "AUROC of each row with its interval", "Bars: 95 % interval, bootstrap by patient.", True
    )
    nuisances, corruptions, series = make_tables(results)
    sections = [
        Section("AUROC under shift", blocks=[chart]),
        Section("Swapped nuisances", blocks=[nuisances]),
        Section("Corrupted images", blocks=[corruptions]),
        Section("Series of the NORMAL images", blocks=[series]),
        Section("How to read this", METHOD),
    ]
    title = f"Robustness of {results['run']['workdir']}"
    page = render_page(title, explain(results), sections, describe_synthetic(results["run"]["data"]))
    (directory / "robustness.html").write_text(page)
    write_json(directory / "robustness.json", results)
