"""How much of a run's AUROC needs lungs: its network on altered images, and classifiers without a network beside it."""

import dataclasses
import datetime
import logging
import pathlib
from collections.abc import Callable

import numpy as np

from pneumojax.data.dataset import SUBTYPES, Split, load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import metrics
from pneumojax.evaluation.baselines import BASELINE_PX, BASELINES, Baseline, UninformativeError, compute_scores
from pneumojax.evaluation.bootstrap import RESAMPLES, PatientBootstrap
from pneumojax.evaluation.operating_point import load_or_choose_threshold
from pneumojax.evaluation.perturbations import ALTERATIONS, LUNGS_AREA, Alteration
from pneumojax.evaluation.predict import compute_probabilities, predict
from pneumojax.evaluation.run import Run, check_data
from pneumojax.files import write_json, write_text
from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.figures.data import save_images
from pneumojax.reporting.figures.intervals import save_intervals
from pneumojax.reporting.format import format_interval
from pneumojax.reporting.html import Section, load_picture, render_page
from pneumojax.reporting.tables import Table

logger = logging.getLogger(__name__)

EXAMPLE_SEED = 0

# Headings of the two kinds of rows, in the table and in the picture.
NETWORK, NO_NETWORK = "The network sees", "A linear model sees"

NAMES = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}

METHOD = (
    "A high AUROC without lungs proves that the answer can be found elsewhere: in the edge of the image, its size, its "
    "brightness. A low one does not prove that the network ignores these: it never saw such images in training. The "
    "linear models did, and are the stronger witnesses of what the data give away.",
    "The network is as it was trained; only what it is shown changes. The black rectangle of "
    f"{100 * LUNGS_AREA:.0f} % of the area covers the lungs of the average child; those of some reach beyond it. All "
    "sizes are rounded to whole pixels. Sensitivity and specificity are those at the run's own threshold, which was "
    "not made for altered images.",
    "A linear model is scikit-learn's logistic regression with its default penalty, on standardised numbers, at "
    f"{BASELINE_PX} x {BASELINE_PX} pixels, fitted on train for NORMAL against pneumonia; nothing of it was tuned.",
    "All rows are scored on the same images and the same resamples of patients; the interval of a row holds the middle "
    f"95 % of {RESAMPLES:,} resamples.",
)


def audit(run: Run, split_name: str) -> dict:
    """Scores a split with altered images and with baselines; writes audit.json, audit.html and pictures.

    They lie in `<workdir>/evaluation/<split>/`, the pictures in its folder audit. Baselines are fitted on the training
    split of the data set that is scored, at a size of their own: they are the same for every run on these data.

    Args:
      run: from `open_run`.
      split_name: validation or test (or train, to see how much was memorised).

    Returns:
      The content of audit.json. "altered": {name: {"title", "without_lungs", "metrics": auroc, and sensitivity and
      specificity at the run's threshold}} for `shortcuts.ALTERATIONS`; "baselines": the same with auroc alone for
      `baselines.BASELINES`; each metric {"value", "ci95"}, with a "reason" where one of them is None. "reading": what
      it means, in sentences; and "threshold", "counts" and "run".

    Raises:
      UserError: the split or the run is missing or damaged.
    """
    split = load_split(run.config.data, split_name)
    same_data = check_data(run)
    threshold = load_or_choose_threshold(run, run.config.threshold)
    small = dataclasses.replace(run.config.data, image_px=BASELINE_PX)
    small_train, small_split = load_split(small, "train"), load_split(small, split_name)
    if len(np.unique(small_train.labels("binary"))) < 2:
        raise UserError("the training split has one class only: no baseline can be fitted on it. Prepare more images.")
    bootstrap = PatientBootstrap(split.patient_ids)
    summarise = _make_summarise(split, threshold["value"], bootstrap)
    directory = run.workdir / "evaluation" / split_name
    pictures = directory / "audit"
    pictures.mkdir(parents=True, exist_ok=True)

    altered, examples = {}, _choose_examples(split)
    for name, alteration in ALTERATIONS.items():
        logger.info("Network on %d %s images: %s", len(split), split_name, alteration.title)
        images = alteration.alter(split.images)
        scores = metrics.compute_binary_scores(compute_probabilities(predict(run, images)))
        captions = [f"{SUBTYPES[split.subtypes[i]]}, score {scores[i]:.2f}" for i in examples]
        save_images(pictures / f"{name}.png", images[examples], len(examples), captions)
        altered[name] = _describe(alteration) | {"metrics": summarise(scores, "auroc", "sensitivity", "specificity")}

    baselines = {}
    for name, baseline in BASELINES.items():
        logger.info("Linear model, fitted on %d images: %s", len(small_train), baseline.title)
        try:
            numbers = summarise(compute_scores(baseline, small_train, small_split), "auroc")
        except UninformativeError as error:
            numbers = {"auroc": {"value": None, "ci95": None, "reason": str(error)}}
        baselines[name] = _describe(baseline) | {"metrics": numbers}

    results = {
        "altered": altered,
        "baselines": baselines,
        "reading": explain(altered, baselines, split_name, run.config.data.selection_split),
        "threshold": threshold,
        "counts": _count(split) | {"fitted_on": len(small_train)},
        "run": {
            "workdir": str(run.workdir),
            "checkpoint": {"which": run.checkpoint, "step": run.step},
            "split": {"name": split_name, "fingerprint": split.fingerprint},
            "trained_on_this_data": same_data,
            "test_time_views": run.test_time_views,
            "bootstrap": {"resamples": bootstrap.resamples, "seed": bootstrap.seed, "unit": "patient"},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **run.info,
        },
    }
    groups = {
        heading: {row["title"]: row["metrics"]["auroc"] for row in rows.values()}
        for heading, rows in ((NETWORK, altered), (NO_NETWORK, baselines))
    }
    save_intervals(pictures / "auroc.png", groups, f"{split_name}, {len(split):,} images")
    write_text(directory / "audit.html", _render(results, pictures))
    write_json(directory / "audit.json", results)  # last: where it is, the rest is too
    return results


def make_tables(results: dict) -> tuple[Table, Table]:
    """The figures of an audit as text: what the network sees and scores, and what a linear model does.

    Args:
      results: of `audit`.

    Returns:
      A table of a row for each alteration, and one for each baseline.
    """

    def make(heading, rows, *names):
        cells = [[row["title"], *(_format_metric(row["metrics"][name]) for name in names)] for row in rows.values()]
        return Table((heading, *(NAMES[name] for name in names)), cells)

    network = make(NETWORK, results["altered"], "auroc", "sensitivity", "specificity")
    return network, make(NO_NETWORK, results["baselines"], "auroc")


def explain(altered: dict, baselines: dict, split_name: str, selection_split: str) -> list[str]:
    """What the figures of an audit mean, in plain sentences.

    Args:
      altered: of `audit`.
      baselines: of `audit`.
      split_name: what was scored.
      selection_split: what the network's epoch was chosen on.

    Returns:
      Sentences, in the order of the argument.
    """
    network = altered["unaltered"]["metrics"]["auroc"]
    if network["value"] is None:
        return [f"There is nothing to read: {network['reason']}"]
    sentences = [f"On the {split_name} images as they are, the network reaches an AUROC of {_format_metric(network)}."]
    for rows, who in ((altered, "the network"), (baselines, "a linear model")):
        for row in rows.values():
            auroc = row["metrics"]["auroc"]
            if row["without_lungs"] and auroc["value"] is not None:
                reached = f"{who} reaches {_format_metric(auroc)}"
                sentences.append(f"Shown {row['title']}, {reached}: {_compare_with_chance(auroc)}.")
    simple = {name: baselines[name]["metrics"]["auroc"]["value"] for name in ("pixels", "hog")}
    best = max(simple, key=simple.get)
    verdict = (
        "the network's AUROC is no proof that it sees more than that"
        if simple[best] >= network["value"]
        else f"the network adds {network['value'] - simple[best]:.3f} to that"
    )
    sentences.append(
        f"Without a network, {baselines['pixels']['title']} alone reach {simple['pixels']:.3f} and "
        f"{baselines['hog']['title']} {simple['hog']:.3f}: {verdict}."
    )
    if split_name == "train":
        sentences.append("Network and linear models were fitted on this very split: the figures flatter. Score test.")
    if split_name == selection_split:
        sentences.append("The network's best epoch was chosen on this very split, which flatters it a little.")
    return sentences


def _format_metric(metric: dict) -> str:
    return format_interval(metric, missing=f"none: {metric.get('reason')}")


def _compare_with_chance(auroc: dict) -> str:
    low, high = auroc["ci95"] or (auroc["value"], auroc["value"])
    if low > 0.5:
        return "better than chance, though the average lung lies outside"
    if high < 0.5:
        return "worse than chance, so it reacts to this, but not as to a sign of pneumonia"
    return "no better than chance"


def _make_summarise(split: Split, threshold: float, bootstrap: PatientBootstrap) -> Callable[..., dict]:
    """Returns `summarise(scores, *names) -> {name: {"value", "ci95"}}`, with the same resamples for all scores."""

    def summarise(scores, *names):
        values = metrics.compute_binary_metrics(split.labels("binary"), scores, threshold, bootstrap)
        return {name: values[name] for name in names}

    return summarise


def _choose_examples(split: Split) -> list[int]:
    """An image of each class that there is, drawn by a fixed seed."""
    rng = np.random.default_rng(EXAMPLE_SEED)
    return [int(rng.choice(np.flatnonzero(split.subtypes == c))) for c in np.unique(split.subtypes)]


def _count(split: Split) -> dict:
    classes = {name: int(np.sum(split.subtypes == c)) for c, name in enumerate(SUBTYPES)}
    return {"images": len(split), "patients": len(np.unique(split.patient_ids)), "classes": classes}


def _describe(one: Alteration | Baseline) -> dict:
    return {"title": one.title, "without_lungs": one.without_lungs}


def _render(results: dict, pictures: pathlib.Path) -> str:
    counts, run = results["counts"], results["run"]
    classes = ", ".join(f"{number:,} {name}" for name, number in counts["classes"].items())
    chart = load_picture(
        pictures / "auroc.png",
        "AUROC of each row with its interval",
        "Bars: 95 % interval, bootstrap by patient.",
        True,
    )
    seen = [
        load_picture(
            pictures / f"{name}.png",
            f"three images, altered: {row['title']}",
            f"{row['title'][0].upper()}{row['title'][1:]}: AUROC {_format_metric(row['metrics']['auroc'])}",
        )
        for name, row in results["altered"].items()
    ]
    sections = [
        Section("AUROC by what is left of the image", blocks=[chart]),
        Section(
            "What the network saw",
            ["One image of each class, drawn at random. The score is the network's for pneumonia, 0 to 1."],
            seen,
        ),
        Section("Figures", blocks=make_tables(results)),
        Section("How to read this", METHOD),
    ]
    title = f"Shortcut audit of {run['workdir']}"
    lead = results["reading"]
    scored = (
        f"Scored: {run['split']['name']}, {counts['images']:,} images of {counts['patients']:,} patients ({classes}), "
        f"checkpoint of step {run['checkpoint']['step']}, decided at {results['threshold']['value']:.4g} and above."
    )
    return render_page(title, [*lead, scored], sections, describe_synthetic(run["data"]))
