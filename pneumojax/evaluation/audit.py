"""Tests whether a run's AUROC depends on the lungs, with perturbed images and with simple linear models."""

import dataclasses
import datetime
import logging
import pathlib
import shlex
from collections.abc import Callable

import numpy as np

from pneumojax.data.dataset import SUBTYPES, Split, load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import metrics, point_metrics
from pneumojax.evaluation.baselines import BASELINE_PX, BASELINES, Baseline, UninformativeError, compute_scores
from pneumojax.evaluation.bootstrap import RESAMPLES, PatientBootstrap
from pneumojax.evaluation.explanation_quality import make_tables as make_explanation_tables
from pneumojax.evaluation.explanation_quality import read_explanations
from pneumojax.evaluation.nuisances import NUISANCES
from pneumojax.evaluation.operating_point import load_or_choose_threshold
from pneumojax.evaluation.perturbations import LUNGS_AREA, PERTURBATIONS, Perturbation
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.run import Run, check_data
from pneumojax.files import replace_folder, write_json, write_text
from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.figures.data import save_images
from pneumojax.reporting.figures.explanation import save_cascade
from pneumojax.reporting.figures.intervals import save_intervals
from pneumojax.reporting.format import format_interval
from pneumojax.reporting.html import Section, load_picture, render_page
from pneumojax.reporting.tables import Table

logger = logging.getLogger(__name__)

EXAMPLE_SEED = 0

# The files of an audit. A new audit removes those that it does not write.
FILES = ("audit.json", "audit.html", "audit")

# Headings of the two kinds of rows, in the tables and in the figure.
NETWORK, NO_NETWORK = "The network sees", "A linear model sees"

NAMES = {"auroc": "AUROC", "sensitivity": "sensitivity", "specificity": "specificity"}

METHOD = (
    "A high AUROC without lungs proves that something else distinguishes the classes, such as the edge of the image, "
    "its size or its brightness. A low AUROC does not prove that the network ignores these features, because it was "
    "not trained on such images. The linear models were, so they are the better measure of these features.",
    "The network is not changed; only its input is. The black rectangle of "
    f"{100 * LUNGS_AREA:.0f} % of the area covers the lungs of the average child. The lungs of some children reach "
    "beyond it. All sizes are rounded to whole pixels. Sensitivity and specificity are those at the run's own "
    "threshold, which was not chosen for perturbed images.",
    "A linear model is scikit-learn's logistic regression with its default penalty, on standardised features, at "
    f"{BASELINE_PX} x {BASELINE_PX} pixels. It is fitted on train for NORMAL against pneumonia, and none of its "
    "parameters was tuned.",
    "All rows are computed from the same images and the same resamples of patients. Each interval contains the middle "
    f"95 % of {RESAMPLES:,} resamples.",
)


def audit(run: Run, split_name: str) -> dict:
    """Evaluates a run on perturbed images of a split, and baselines on the same split.

    Writes audit.json, audit.html and the folder audit with figures to `<workdir>/evaluation/<split>/`. They replace the
    files of an earlier audit all at once, or not at all. The baselines are fitted on the training split of the same
    data set. Their image size does not depend on the run, so they are the same for every run on these data.

    Args:
      run: from `open_run`.
      split_name: validation or test, or train to see how much was memorised.

    Returns:
      The content of audit.json:
        "altered": {name: {"title", "without_lungs", "metrics"}} for `perturbations.PERTURBATIONS`. The metrics are
          auroc, and sensitivity and specificity at the run's threshold.
        "baselines": the same for `baselines.BASELINES`, with auroc as the only metric.
        "nuisances": the result of `measure_nuisances`.
        "explanations": the result of `explanation_quality.measure_explanations`, if it was measured before; or None.
        "reading": an explanation of the results, as a list of sentences.
        "threshold", "counts" and "run".
      Each metric is {"value", "ci95"}, with a "reason" if one of them is None.

    Raises:
      UserError: the split, the run or explanations.json is missing or damaged.
    """
    split = load_split(run.config.data, split_name)
    same_data, explanations = check_data(run), read_explanations(run, split)
    threshold = load_or_choose_threshold(run, run.config.threshold)
    bootstrap = PatientBootstrap(split.patient_ids)
    summarise = _make_summarise(split, threshold["value"], bootstrap)
    altered, pictures = _score_perturbed(run, split, summarise)
    baselines, fitted_on = _score_baselines(run, split_name, summarise)
    results = {
        "altered": altered,
        "baselines": baselines,
        "nuisances": measure_nuisances(run, split_name),
        "explanations": explanations,
        "reading": explain(altered, baselines, split_name, run.config.data.selection_split),
        "threshold": threshold,
        "counts": _count(split) | {"fitted_on": fitted_on},
        "run": {
            "workdir": str(run.workdir),
            "checkpoint": {"which": run.checkpoint, "step": run.step},
            "split": {"name": split_name, "fingerprint": split.fingerprint},
            "trained_on_this_data": same_data,
            "test_time_views": run.identity["test_time_views"],
            "bootstrap": {"resamples": bootstrap.resamples, "seed": bootstrap.seed, "unit": "patient"},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **run.info,
        },
    }
    groups = {
        heading: {row["title"]: row["metrics"]["auroc"] for row in rows.values()}
        for heading, rows in ((NETWORK, altered), (NO_NETWORK, baselines))
    }
    with replace_folder(run.workdir / "evaluation" / split_name, FILES) as directory:
        folder = directory / "audit"
        folder.mkdir()
        for name, (images, captions) in pictures.items():
            save_images(folder / f"{name}.png", images, len(images), captions)
        save_intervals(folder / "auroc.png", groups, f"{split_name}, {len(split):,} images")
        if explanations:
            save_cascade(folder / "cascade.png", explanations["methods"], split_name)
        write_text(directory / "audit.html", _render(results, folder))
        write_json(directory / "audit.json", results)
    return results


def _score_perturbed(run: Run, split: Split, summarise: Callable) -> tuple[dict, dict]:
    """Returns "altered" of `audit`, and {name: (images [n, H, W], captions)} with the examples for the page."""
    altered, pictures, examples = {}, {}, _choose_examples(split)
    for name, perturbation in PERTURBATIONS.items():
        logger.info("Network on %d %s images: %s", len(split), split.name, perturbation.title)
        images = perturbation.perturb(split.images)
        scores = point_metrics.compute_binary_scores(compute_probabilities(run.predict(images)))
        captions = [f"{SUBTYPES[split.subtypes[i]]}, score {scores[i]:.2f}" for i in examples]
        pictures[name] = images[examples], captions
        numbers = summarise(scores, "auroc", "sensitivity", "specificity")
        altered[name] = _describe(perturbation) | {"metrics": numbers}
    return altered, pictures


def measure_nuisances(run: Run, split_name: str) -> dict[str, dict]:
    """Measures how well single numbers of an image, such as its aspect, separate the classes.

    The number itself is the score. Neither a network nor a linear model is fitted.

    Args:
      run: a run. Its config determines the data set.
      split_name: a split, in addition to train.

    Returns:
      {name: {"title", "train": AUROC on train, "split": AUROC on the split}} for `nuisances.NUISANCES`. An AUROC below
      0.5 means that NORMAL images have the larger numbers.
    """
    small = dataclasses.replace(run.config.data, image_px=BASELINE_PX)
    splits = {"train": load_split(small, "train"), "split": load_split(small, split_name)}
    return {
        name: {"title": nuisance.title}
        | {
            which: point_metrics.compute_auroc(split.labels("binary"), nuisance.measure(split.images))
            for which, split in splits.items()
        }
        for name, nuisance in NUISANCES.items()
    }


def _score_baselines(run: Run, split_name: str, summarise: Callable) -> tuple[dict, int]:
    """Returns "baselines" of `audit`, and the number of images that they were fitted on."""
    small = dataclasses.replace(run.config.data, image_px=BASELINE_PX)
    train, split = load_split(small, "train"), load_split(small, split_name)
    if len(np.unique(train.labels("binary"))) < 2:
        raise UserError("the training split has one class only: no baseline can be fitted on it. Prepare more images.")
    baselines = {}
    for name, baseline in BASELINES.items():
        logger.info("Linear model, fitted on %d images: %s", len(train), baseline.title)
        try:
            numbers = summarise(compute_scores(baseline, train, split), "auroc")
        except UninformativeError as error:
            numbers = {"auroc": {"value": None, "ci95": None, "reason": str(error)}}
        baselines[name] = _describe(baseline) | {"metrics": numbers}
    return baselines, len(train)


def make_tables(results: dict) -> tuple[Table, Table, Table]:
    """Makes the tables of an audit.

    Args:
      results: from `audit`.

    Returns:
      (network, baselines, numbers): the AUROC of the network on images of each perturbation, of each linear model, and
      of single numbers of an image, such as its aspect.
    """

    def make(heading: str, rows: dict, *names: str) -> Table:
        cells = [[row["title"], *(_format_metric(row["metrics"][name]) for name in names)] for row in rows.values()]
        return Table((heading, *(NAMES[name] for name in names)), cells)

    network = make(NETWORK, results["altered"], "auroc", "sensitivity", "specificity")
    numbers = [
        [row["title"], *("-" if row[which] is None else f"{row[which]:.3f}" for which in ("train", "split"))]
        for row in results["nuisances"].values()
    ]
    caption = (
        "Below 0.5, NORMAL images have the larger numbers. See experiments/robustness.py for the effect on a network."
    )
    return (
        network,
        make(NO_NETWORK, results["baselines"], "auroc"),
        Table(
            ("One number of the image", "AUROC, train", f"AUROC, {results['run']['split']['name']}"), numbers, caption
        ),
    )


def explain(altered: dict, baselines: dict, split_name: str, selection_split: str) -> list[str]:
    """Explains the results of an audit in sentences.

    Args:
      altered: "altered" of `audit`.
      baselines: "baselines" of `audit`.
      split_name: the evaluated split.
      selection_split: the split on which the network's epoch was chosen.

    Returns:
      The sentences, to be read in order.
    """
    network = altered["unaltered"]["metrics"]["auroc"]
    if network["value"] is None:
        return [f"There is nothing to explain: {network['reason']}"]
    sentences = [f"On the {split_name} images as they are, the network reaches an AUROC of {_format_metric(network)}."]
    for rows, who in ((altered, "the network"), (baselines, "a linear model")):
        for row in rows.values():
            auroc = row["metrics"]["auroc"]
            if row["without_lungs"] and auroc["value"] is not None:
                reached = f"{who} reaches {_format_metric(auroc)}"
                sentences.append(f"Shown {row['title']}, {reached}: {_compare_with_chance(auroc)}.")
    simple = {name: baselines[name]["metrics"]["auroc"]["value"] for name in ("pixels", "hog")}
    best = max(simple, key=simple.__getitem__)
    verdict = (
        "the network's AUROC does not prove that it uses more than that"
        if simple[best] >= network["value"]
        else f"the network adds {network['value'] - simple[best]:.3f} to that"
    )
    sentences.append(
        f"Without a network, {baselines['pixels']['title']} alone reach {simple['pixels']:.3f} and "
        f"{baselines['hog']['title']} {simple['hog']:.3f}: {verdict}."
    )
    if split_name == "train":
        sentences.append(
            "The network and the linear models were fitted on this split: the results are optimistic. Audit test."
        )
    if split_name == selection_split:
        sentences.append("The network's best epoch was chosen on this split, so its results are slightly optimistic.")
    return sentences


def _format_metric(metric: dict) -> str:
    """Formats a metric as "0.967 (0.951 to 0.980)", or the reason why it does not exist."""
    return format_interval(metric, missing=f"none: {metric.get('reason')}")


def _compare_with_chance(auroc: dict) -> str:
    low, high = auroc["ci95"] or (auroc["value"], auroc["value"])
    if low > 0.5:
        return "better than chance, although this shows no part of the average lung"
    if high < 0.5:
        return "worse than chance, so the scores depend on what this shows, but in the wrong direction"
    return "no better than chance"


def _make_summarise(split: Split, threshold: float, bootstrap: PatientBootstrap) -> Callable[..., dict]:
    """Makes `summarise(scores, *names) -> {name: {"value", "ci95"}}`, which uses the same resamples for all scores."""

    def summarise(scores: np.ndarray, *names: str) -> dict:
        values = metrics.compute_binary_metrics(split.labels("binary"), scores, threshold, bootstrap)
        return {name: values[name] for name in names}

    return summarise


def _choose_examples(split: Split) -> list[int]:
    """Returns the index of a random image of each class, chosen with a fixed seed."""
    rng = np.random.default_rng(EXAMPLE_SEED)
    return [int(rng.choice(np.flatnonzero(split.subtypes == c))) for c in np.unique(split.subtypes)]


def _count(split: Split) -> dict:
    classes = {name: int(np.sum(split.subtypes == c)) for c, name in enumerate(SUBTYPES)}
    return {"images": len(split), "patients": len(np.unique(split.patient_ids)), "classes": classes}


def _describe(one: Perturbation | Baseline) -> dict:
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
            f"three images, perturbed: {row['title']}",
            f"{row['title'][0].upper()}{row['title'][1:]}: AUROC {_format_metric(row['metrics']['auroc'])}",
        )
        for name, row in results["altered"].items()
    ]
    sections = [
        Section("AUROC by perturbation", blocks=[chart]),
        Section(
            "What the network saw",
            ["One image of each class, chosen at random. The score is the network's score for pneumonia, from 0 to 1."],
            seen,
        ),
        _show_explanations(results, pictures),
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


def _show_explanations(results: dict, pictures: pathlib.Path) -> Section:
    """Shows the share of the maps outside of the lungs, and the AUROC of the network with and without the lungs."""
    heading, explained = "Where the explanations point", results["explanations"]
    if not explained:
        workdir, split = shlex.quote(results["run"]["workdir"]), results["run"]["split"]["name"]
        command = f"scripts/run experiments/explain.py --workdir={workdir} --out=pictures --split={split} --measure=200"
        return Section(heading, [f"Not measured for this checkpoint. Run {command} and then this audit again."])
    table, cascade = make_explanation_tables(explained)
    edge = results["baselines"]["edge_pixels"]
    inside, outside, linear = (
        _format_metric(row["metrics"]["auroc"])
        for row in (results["altered"]["centre_only"], results["altered"]["centre_black"], edge)
    )
    text = [
        "A map shows which pixels support a decision (experiments/explain.py). These are the tests of the maps of "
        f"{explained['counts']['images']:,} random images of this split. The share outside is the share of a map "
        "that is outside of the lungs' average region.",
        f"Compare it with the results above: shown only that region, the network reaches an AUROC of {inside}; shown "
        f"only the rest, {outside}. A linear model reaches {linear} with {edge['title']}.",
    ]
    chart = load_picture(
        pictures / "cascade.png", "rank correlation after each step of the randomisation", cascade.caption, True
    )
    return Section(heading, text, [table, chart])
