"""The report of an evaluation: an HTML page for clinicians, in plain words."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from pneumojax.config import Config, config_from_dict, config_to_dict
from pneumojax.data.dataset import SUBTYPES, Split
from pneumojax.reporting import html
from pneumojax.reporting.caveats import NOT_A_DEVICE, describe_warnings
from pneumojax.reporting.collection_tables import describe_collection, make_collection_tables
from pneumojax.reporting.format import format_bounds, format_calibration, format_interval, format_score
from pneumojax.reporting.tables import Table
from pneumojax.reporting.worst_errors import SHOWN_ERRORS, ErrorMaps, show_errors

# Settings that are listed for each network, whether or not they have their default value.
ALWAYS_LISTED = ("dataset", "image_px", "model", "task", "optimizer", "learning_rate", "batch_size", "epochs", "seed")

# Names of metrics that cannot be made from the metric's key by a capital letter.
METRIC_NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "precision": "PPV (precision)",
    "npv": "NPV",
    "ece": "ECE",
    "brier": "Brier score",
    "rgb": "RGB",
}

TERMS = {
    "AUROC": "Area under the ROC curve. It is the probability that an image with pneumonia has a higher score than an "
    "image without. 0.5 is chance, 1 is perfect.",
    "AUPRC": "Area under the precision-recall curve. For random scores it is the share of pneumonia in the split. 1 is "
    "perfect.",
    "Score": "The network's output for an image, from 0 (NORMAL) to 1 (pneumonia).",
    "Threshold, operating point": "An image is called pneumonia if its score is at least the threshold.",
    "Sensitivity (recall)": "Share of the images with pneumonia that are called pneumonia.",
    "Specificity": "Share of the NORMAL images that are called NORMAL.",
    "PPV (precision)": "Positive predictive value: share of pneumonia among the images that are called pneumonia.",
    "NPV": "Negative predictive value: share of NORMAL among the images that are called NORMAL.",
    "F1": "Harmonic mean of sensitivity and PPV.",
    "Accuracy, balanced accuracy": "Accuracy is the share of images that are called right. Balanced accuracy is the "
    "mean of sensitivity and specificity.",
    "Youden": "The threshold at which the sum of sensitivity and specificity is largest.",
    "Macro": "Unweighted mean over the classes, each against the others.",
    "Prevalence": "Share of pneumonia among the images. PPV and NPV depend on it, sensitivity and specificity do not.",
    "95 % interval": "If the study were repeated with other patients like these, about 95 of 100 such intervals would "
    "contain the true value.",
    "Bootstrap by patient": "How the intervals are computed: patients are resampled at random, each with all of their "
    "images.",
    "Calibration": "Scores are calibrated if 8 of 10 images with the score 0.8 have pneumonia. The "
    "network's logits are divided by a temperature, and a bias is added to each, to calibrate the scores.",
    "Brier score": "Mean squared difference between the score and the truth (0 or 1). 0 is perfect.",
    "ECE": "Expected calibration error: mean difference between the score and the share of pneumonia, in bins of the "
    "score.",
    "Calibration slope": "1 is perfect. Below 1 the scores are too extreme, above 1 they are not extreme enough.",
    "Calibration intercept, in the large": "0 is perfect. Above 0 the scores are too low on average.",
    "Net benefit": "Pneumonias found minus weighted false alarms, per image. The threshold probability sets the "
    "weight.",
    "Epoch": "One pass of the training over all training images.",
    "Split": "A part of the data: the network is trained on train, choices are made on validation, and test is only "
    "scored. No patient is in two splits.",
}


def make_report(
    results: Mapping,
    split: Split,
    scores: np.ndarray,
    decisions: np.ndarray,
    networks: Mapping,
    directory: pathlib.Path,
    explained: ErrorMaps,
) -> str:
    """Returns the report as the text of one HTML file.

    Args:
      results: content of metrics.json.
      split: the evaluated split.
      scores: [N] float, 0..1, higher for pneumonia.
      decisions: [N] int, 1 if the score is at least the threshold.
      networks: {name: content of config.json and "step"}. An ensemble has several networks.
      directory: folder with the figures of the evaluation.
      explained: the maps that are shown next to the worst errors.

    Raises:
      OSError: a figure is missing.
    """
    known = results.get("collection", {}).get("kinds_known", True)
    kinds = SUBTYPES if known else ("NORMAL", "PNEUMONIA")
    sections = (
        *([_show_collection(results)] if "collection" in results else []),
        _show_metrics(results),
        _show_curves(directory),
        _show_decisions(results, directory),
        _show_probabilities(results, directory),
        _show_prevalence(results, directory),
        _show_subgroups(results),
        show_errors(split, kinds, scores, decisions > 0, missed=False, explained=explained),
        show_errors(split, kinds, scores, decisions > 0, missed=True, explained=explained),
        _show_training(networks, directory),
        _show_data(results, networks),
        html.Section("Terms", blocks=[Table(("Term", "Meaning"), list(TERMS.items()))]),
    )
    name = pathlib.Path(results["run"]["workdir"]).name
    title = f"{name}: evaluation on {split.name}"
    return html.render_page(title, _summarise(results), sections, "\n".join(describe_warnings(results)))


def _summarise(results: Mapping) -> list[str]:
    """Returns the first paragraphs: the evaluated images and the main results, in plain language."""
    run, counts, metrics, threshold = (results[name] for name in ("run", "counts", "metrics", "threshold"))
    classes = ", ".join(f"{number:,} {name}" for name, number in counts["classes"].items())
    synthetic = run["data"]["synthetic"]
    images, patients = ("synthetic radiographs", "patients") if synthetic else ("chest X-rays", "children")
    by = f"An ensemble of {len(run['members'])} networks" if "members" in run else "The network"
    lines = [
        f"{by} scored {counts['images']:,} {images} of {counts['patients']:,} {patients} ({classes}), the "
        f"{run['split']['name']} {'collection' if 'collection' in results else 'split'}."
    ]
    auroc = metrics["auroc"]
    if auroc["value"] is None:
        lines.append(f"AUROC does not exist. {auroc['reason']}")
    else:
        lines.append(
            f"AUROC {format_interval(auroc)}: of an image with pneumonia and one without, chosen at random, the first "
            f"has the higher score in {_format_of_hundred(auroc)} of 100 pairs."
        )
    (normal, alarms), (missed, found) = counts["confusion_matrix"]["at_threshold"]
    sensitivity, specificity = metrics["sensitivity"], metrics["specificity"]
    source = f"chosen on {threshold['split']}" if threshold["split"] else "fixed beforehand"
    at = f"At the threshold {format_score(threshold['value'])} ({threshold['rule'].replace('_', ' ')}, {source})"
    if sensitivity["value"] is None:
        lines.append(f"{at}, no image with pneumonia can be found: the split has none.")
    else:
        lines.append(
            f"{at}, {_format_of_hundred(sensitivity)} of 100 images with pneumonia are found "
            f"({found:,} of {found + missed:,})."
        )
    if specificity["value"] is None:
        lines.append("There is no NORMAL image that could raise a false alarm.")
    else:
        alarm = {"value": 1 - specificity["value"], "ci95": specificity["ci95"] and _mirror(specificity["ci95"])}
        lines.append(
            f"Of 100 NORMAL images, {_format_of_hundred(alarm)} raise a false alarm "
            f"({alarms:,} of {alarms + normal:,})."
        )
    resamples = run["bootstrap"]["resamples"]
    lines.append(f"Numbers in brackets are 95 % intervals by bootstrap over patients ({resamples:,} resamples).")
    return [*lines, NOT_A_DEVICE]


def _show_collection(results: Mapping) -> html.Section:
    """Shows how a collection differs from validation, and which of its files were left out."""
    blocks = list(make_collection_tables(results))
    unreadable = results["collection"]["unreadable"]
    if unreadable:
        caption = f"The first {SHOWN_ERRORS}; all are in unreadable.csv." if len(unreadable) > SHOWN_ERRORS else ""
        blocks.append(Table(("File that was left out", "Reason"), unreadable[:SHOWN_ERRORS], caption))
    return html.Section("These images, compared with validation", describe_collection(results), blocks)


def _show_metrics(results: Mapping) -> html.Section:
    values = results["metrics"]
    # With three classes, the metrics of each class are in a table of their own.
    of_classes = [name.removesuffix("_NORMAL") for name in values if name.endswith("_NORMAL")]
    columns = {"macro": "Mean (macro)"} | {kind: kind for kind in SUBTYPES}
    grid = {name: [f"{name}_{column}" for column in columns] for name in of_classes}
    rows: list[tuple[str, ...]] = []
    for name, metric in values.items():
        if name in itertools.chain(*grid.values()):
            continue
        value = "-" if metric["value"] is None else f"{metric['value']:.4f}"
        interval = format_bounds(metric["ci95"], ".4f") if metric["ci95"] else metric["reason"]
        rows.append((_format_name(name), value, interval))
    tables = [Table(("Metric", "Value", "95 % interval"), rows)]
    if grid:
        rows = [
            (_format_name(name), *(format_interval(values[cell]) for cell in cells)) for name, cells in grid.items()
        ]
        caption = "The decision for each image is its most probable class. It does not depend on the threshold."
        tables.append(Table(("Each class against the others", *columns.values()), rows, caption))
    text = ["Metrics of pneumonia against NORMAL. Those that need a threshold use the run's own threshold."]
    noise = results["label_noise"]
    if grid and noise["share"] is not None:
        text.append(
            f"Where the network is confident, it contradicts {noise['share']:.1%} of the labels of three classes "
            f"({noise['confident']:,} images, confident learning). So many labels are wrong at most, as far as the "
            "network errs independently of them; the accuracy of three classes cannot be expected to exceed the rest."
        )
    return html.Section("Metrics", text, tables)


def _show_curves(directory: pathlib.Path) -> html.Section:
    roc = html.load_picture(
        directory / "roc.png",
        "ROC curve",
        "Each point of the curve is a threshold. The nearer the curve is to the upper left corner, the better.",
    )
    precision_recall = html.load_picture(
        directory / "precision_recall.png",
        "Precision-recall curve",
        "The share of alarms that are right (precision), against the share of pneumonias that are found (recall).",
    )
    return html.Section("How well the scores separate the classes", blocks=[roc, precision_recall])


def _show_decisions(results: Mapping, directory: pathlib.Path) -> html.Section:
    """Shows the confusion matrix of each operating point, with the rates of its rows and columns."""
    counts, threshold = results["counts"], results["threshold"]
    own = {"threshold": threshold["value"], "confusion_matrix": counts["confusion_matrix"]["at_threshold"]}
    points = {_format_name(name): point for name, point in results["operating_points"].items()}
    same = [name.lower() for name, point in points.items() if point["threshold"] == own["threshold"]]
    others = {name: point for name, point in points.items() if point["threshold"] != own["threshold"]}
    points = {", ".join(["The run's own", *same]): own | {"metrics": results["metrics"]}} | others
    text = [
        f"The decisions at each threshold on {results['run']['split']['name']}. The thresholds were chosen on "
        f"{results['calibration']['split']}, except for a fixed one."
    ]
    rows = []
    for name, point in points.items():
        if point["threshold"] is None:
            text.append(f"{name}: no threshold. {point['reason']}")
            continue
        (normal, alarms), (missed, found) = point["confusion_matrix"]
        sensitivity, specificity, ppv, npv = (
            format_interval(point["metrics"][rate]) for rate in ("sensitivity", "specificity", "precision", "npv")
        )
        heading = f"{name}\nthreshold {format_score(point['threshold'])}"
        rows.append((heading, "pneumonia", f"{found:,} found", f"{missed:,} missed", f"sensitivity {sensitivity}"))
        rows.append(("", "NORMAL", f"{alarms:,} false alarms", f"{normal:,} right", f"specificity {specificity}"))
        rows.append(("", "rate of the column", f"PPV {ppv}", f"NPV {npv}", ""))
    columns = ("Operating point", "Truth", "Called pneumonia", "Called NORMAL", "Rate of the row")
    blocks: list[Table | html.Picture] = [Table(columns, rows)]
    if "most_probable_class" in counts["confusion_matrix"]:
        blocks.append(
            html.load_picture(
                directory / "confusion_matrix_three_class.png",
                "Confusion matrix of three classes",
                "The decision for each image is its most probable class. It does not depend on the threshold.",
            )
        )
    return html.Section("Decisions", text, blocks)


def _show_probabilities(results: Mapping, directory: pathlib.Path) -> html.Section:
    calibration = results["calibration"]
    picture = html.load_picture(
        directory / "reliability.png",
        "Reliability diagram",
        "If the scores are probabilities, the points are on the dashed line.",
    )
    rows = [
        (_format_name(name), format_interval(before), format_interval(calibration["after"][name]))
        for name, before in calibration["before"].items()
    ]
    text = [
        "This section shows whether a score can be read as a probability. The scores were recalibrated on "
        f"{calibration['split']}: {format_calibration(calibration)}."
    ]
    text += [calibration["reason"]] if "reason" in calibration else []
    blocks: list[Table | html.Picture] = [picture, Table(("Calibration", "As trained", "Recalibrated"), rows)]
    return html.Section("Scores as probabilities", text, blocks)


def _show_prevalence(results: Mapping, directory: pathlib.Path) -> html.Section:
    there = results["at_prevalence"]
    text = ["This section shows the results where pneumonia is rarer or more frequent than in this split."]
    if there:
        ppv, npv = (format_interval(there[name], missing="does not exist") for name in ("ppv", "npv"))
        text.append(f"At a prevalence of {there['prevalence']:g}: PPV {ppv}, NPV {npv}.")
    values = html.load_picture(
        directory / "predictive_values.png",
        "Predictive values over prevalence",
        "Sensitivity and specificity are assumed to be those of this split.",
    )
    decision_curve = html.load_picture(
        directory / "decision_curve.png",
        "Decision curve",
        "The score is useful where its line is above both other lines. At a threshold probability of 0.1, a missed "
        "pneumonia counts nine times as much as a false alarm.",
    )
    return html.Section("Other prevalences", text, [values, decision_curve])


def _show_subgroups(results: Mapping) -> html.Section:
    names = ("auroc", "sensitivity", "specificity")
    rows, reasons = [], set()
    for name, group in results["subgroups"].items():
        metrics = group["metrics"]
        cells = [format_interval(metrics[metric]) if metric in metrics else "" for metric in names]
        rows.append((_format_name(name), group["holds"], f"{group['images']:,}", f"{group['patients']:,}", *cells))
        missing = [metric for metric in names if metric in metrics and metrics[metric]["value"] is None]
        reasons |= {f"{_format_name(name)}: {metrics[metric]['reason']}" for metric in missing}
    columns = ("Subgroup", "Contains", "Images", "Patients", *map(_format_name, names))
    text = ["If a network relies on the files instead of the lungs, its results differ between the subgroups."]
    table = Table(columns, rows, " ".join(sorted(reasons)))
    return html.Section("Subgroups", text, [table])


def _show_training(networks: Mapping, directory: pathlib.Path) -> html.Section:
    """Lists the settings of each network: the main ones, and those that are not at their default."""
    defaults = config_to_dict(Config())
    configs = [config_to_dict(config_from_dict(info["config"])) for info in networks.values()]
    rows = [
        ("Checkpoint, step", "", *(f"{info['step']:,}" for info in networks.values())),
        ("Started", "", *(_format_date(info["created"]) for info in networks.values())),
        ("Device", "", *("{count} x {kind}".format(**info["device"]) for info in networks.values())),
    ]
    for name in defaults:
        if name in ALWAYS_LISTED or any(config[name] != defaults[name] for config in configs):
            rows.append((name, _format_value(defaults[name]), *(_format_value(config[name]) for config in configs)))
    caption = "The main settings, and all settings that are not at their default."
    table = Table(("Setting", "Default", *networks), rows, caption)
    if len(networks) > 1:
        return html.Section("Training", blocks=[table])
    curves = html.load_picture(directory / "learning_curves.png", "Learning curves", wide=True)
    return html.Section("Training", blocks=[curves, table])


def _show_data(results: Mapping, networks: Mapping) -> html.Section:
    run = results["run"]
    rows = [("Source", str(run["data"]["source"])), ("Fingerprint of the data set", run["data"]["fingerprint"])]
    rows.append((f"Fingerprint of {run['split']['name']}", run["split"]["fingerprint"]))
    for name, classes in run["data"]["counts"].items():
        rows.append((f"Images of {name}", ", ".join(f"{number:,} {kind}" for kind, number in classes.items())))
    for name, info in networks.items():
        versions = ", ".join(f"{package} {version}" for package, version in info["versions"].items())
        rows.append(("Versions" if len(networks) == 1 else f"Versions of {name}", versions))
    rows.append(("Views of each image", _format_value(run["test_time_views"])))
    rows.append(("Evaluated", _format_date(run["date"])))
    return html.Section("Data and versions", blocks=[Table(("Item", "Value"), rows)])


def _format_name(name: str) -> str:
    """Converts a key to a name, such as specificity_at_sensitivity_0.95 to "Specificity at sensitivity 0.95"."""
    if name in METRIC_NAMES:
        return METRIC_NAMES[name]
    first, *rest = name.split("_")
    return " ".join((METRIC_NAMES.get(first, first[:1].upper() + first[1:]), *rest))


def _format_value(value: object) -> str:
    """Formats a value of the config."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _format_date(date: str) -> str:
    """Formats an ISO date in UTC, such as "2026-05-04 13:07 UTC"."""
    return f"{date[:16].replace('T', ' ')} UTC"


def _format_of_hundred(metric: Mapping) -> str:
    """Formats a rate, 0..1, as a number out of 100, such as "95 (93 to 97)"."""
    bounds = metric["ci95"] and [100 * bound for bound in metric["ci95"]]
    return format_interval({"value": 100 * metric["value"], "ci95": bounds}, ".0f")


def _mirror(interval: Sequence[float]) -> list[float]:
    return [1 - interval[1], 1 - interval[0]]
