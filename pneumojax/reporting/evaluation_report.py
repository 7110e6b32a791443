"""The report of an evaluation: one page for a reader who decides about patients, not about networks."""

import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from pneumojax.config import Config, config_from_dict, config_to_dict
from pneumojax.data.dataset import SUBTYPES, Split
from pneumojax.reporting import html
from pneumojax.reporting.format import format_interval, format_range, format_score

NOT_A_DEVICE = "For research. Not a medical device: no output of it may decide about a patient."

# Pictures of each kind of error: one row or two on a page.
SHOWN_ERRORS = 8

# Told of each network, whether or not they are the defaults.
ALWAYS_TOLD = ("dataset", "image_px", "model", "task", "optimizer", "learning_rate", "batch_size", "epochs", "seed")

# Names of metrics whose words alone do not tell.
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
    "AUROC": "Area under the ROC curve: how often, of one image with pneumonia and one without, the first has the "
    "higher score. 0.5 is chance, 1 is perfect.",
    "AUPRC": "Area under the precision-recall curve; chance is the share of pneumonia in the split.",
    "Score": "What the network says of an image, from 0 (NORMAL) to 1 (pneumonia).",
    "Threshold, operating point": "The score from which on an image is decided to show pneumonia.",
    "Sensitivity (recall)": "Share of the images with pneumonia that are decided for pneumonia.",
    "Specificity": "Share of the NORMAL images that are decided NORMAL.",
    "PPV (precision)": "Positive predictive value: share of pneumonia among the images decided for pneumonia.",
    "NPV": "Negative predictive value: share of NORMAL among the images decided NORMAL.",
    "F1": "Harmonic mean of sensitivity and PPV.",
    "Balanced accuracy": "Mean of sensitivity and specificity; accuracy is the share of right decisions.",
    "Youden": "The threshold at which sensitivity + specificity is largest.",
    "Macro": "Plain mean over the classes, each against the others.",
    "Prevalence": "Share of pneumonia among the images; PPV and NPV depend on it, sensitivity and specificity do not.",
    "95 % interval": "A range made in such a way that of 100, each from other patients like these, about 95 hold the "
    "true value.",
    "Bootstrap by patient": "How intervals are made: patients are drawn again and again with all their images.",
    "Calibration, temperature": "Whether 8 of 10 images of score 0.8 have pneumonia; the temperature divides the "
    "network's logits so that they do.",
    "Brier score": "Mean squared distance of the score from the truth; 0 is perfect.",
    "ECE": "Expected calibration error: mean distance of score and share of pneumonia, in bins of the score.",
    "Calibration slope": "1 is right; below 1 the network is too sure of itself, above 1 not sure enough.",
    "Calibration intercept, in the large": "0 is right; above 0 the scores are too low on the whole.",
    "Net benefit": "Hits minus false alarms, these weighed by the threshold probability, for each image.",
    "Epoch": "One pass of training over all training images.",
    "Split": "Part of the data: train is learned from, validation chooses, test judges. No patient is in two.",
}


def make_report(
    results: Mapping,
    split: Split,
    scores: np.ndarray,
    decisions: np.ndarray,
    networks: Mapping,
    directory: pathlib.Path,
) -> str:
    """The report as the text of one HTML file.

    Args:
      results: content of metrics.json.
      split: what was scored; its images are those that the network saw.
      scores: [N] float, 0..1, higher for pneumonia.
      decisions: [N] int, 1 for pneumonia, at the threshold.
      networks: {name: content of config.json and "step"}, one or, of an ensemble, several.
      directory: where the pictures of the evaluation lie.

    Raises:
      OSError: a picture is missing.
    """
    sections = (
        _show_metrics(results),
        _show_curves(directory),
        _show_decisions(results, directory),
        _show_probabilities(results, directory),
        _show_prevalence(results, directory),
        _show_subgroups(results),
        _show_errors(split, scores, decisions > 0, missed=False),
        _show_errors(split, scores, decisions > 0, missed=True),
        _show_training(networks, directory),
        _show_data(results, networks),
        html.Section("Terms", blocks=[html.Table(("Term", "Meaning"), list(TERMS.items()))]),
    )
    name = pathlib.Path(results["run"]["workdir"]).name
    title = f"{name}: evaluation on {split.name}"
    return html.render_page(title, _summarise(results), sections, "\n".join(describe_warnings(results)))


def describe_warnings(results: Mapping) -> list[str]:
    """What a reader of the figures must not overlook, a sentence or two each.

    Args:
      results: content of metrics.json.
    """
    run, selection_split = results["run"], results["calibration"]["split"]
    split = run["split"]["name"]
    warnings = []
    if run["data"]["synthetic"]:
        warnings.append("Drawn radiographs, not patients: these figures say nothing about X-rays.")
    if split == selection_split:
        chosen = ["epoch"] * (run["checkpoint"]["which"] == "best")
        chosen += ["threshold"] * (results["threshold"]["split"] == split) + ["temperature"]
        chosen = " and ".join(filter(None, (", ".join(chosen[:-1]), chosen[-1])))
        verb = "were" if "and" in chosen else "was"
        if split == "test":
            warnings.append(
                f"LEAKY: {chosen} {verb} chosen on the split that is scored. These figures are worthless but for "
                "showing what that does."
            )
        else:
            warnings.append(f"{chosen.capitalize()} {verb} chosen on this very split: its figures flatter. Score test.")
    if split == "train":
        warnings.append("The network was trained on these images: the figures show what it memorised. Score test.")
    if not run["trained_on_this_data"]:
        warnings.append(
            "This data set's training split is not the one that the network was trained on: images that are scored "
            "here may have been trained on."
        )
    return warnings


def _summarise(results: Mapping) -> list[str]:
    """What was scored and what came out, in plain language."""
    run, counts, metrics, threshold = (results[name] for name in ("run", "counts", "metrics", "threshold"))
    classes = ", ".join(f"{number:,} {name}" for name, number in counts["classes"].items())
    images, patients = ("drawn radiographs", "patients") if run["data"]["synthetic"] else ("chest X-rays", "children")
    by = f"An ensemble of {len(run['members'])} networks" if "members" in run else "The network"
    lines = [
        f"{by} scored {counts['images']:,} {images} of {counts['patients']:,} {patients} ({classes}), the "
        f"{run['split']['name']} split."
    ]
    auroc = metrics["auroc"]
    if auroc["value"] is None:
        lines.append(f"AUROC does not exist. {auroc['reason']}")
    else:
        lines.append(
            f"AUROC {format_interval(auroc)}: of an image with pneumonia and one without, drawn at random, the first "
            f"has the higher score in {_of_hundred(auroc)} of 100 pairs."
        )
    (normal, alarms), (missed, found) = counts["confusion_matrix"]["at_threshold"]
    sensitivity, specificity = metrics["sensitivity"], metrics["specificity"]
    source = f"chosen on {threshold['split']}" if threshold["split"] else "given, not chosen"
    at = f"At the threshold {format_score(threshold['value'])} ({threshold['rule'].replace('_', ' ')}, {source}):"
    if sensitivity["value"] is None:
        lines.append(f"{at} there is no image with pneumonia to find.")
    else:
        lines.append(
            f"{at} of 100 images with pneumonia {_of_hundred(sensitivity)} are found ({found:,} of {found + missed:,})."
        )
    if specificity["value"] is None:
        lines.append("There is no NORMAL image that could raise a false alarm.")
    else:
        alarm = {"value": 1 - specificity["value"], "ci95": specificity["ci95"] and _mirror(specificity["ci95"])}
        lines.append(
            f"Of 100 NORMAL images {_of_hundred(alarm)} raise a false alarm ({alarms:,} of {alarms + normal:,})."
        )
    resamples = run["bootstrap"]["resamples"]
    lines.append(f"In brackets: 95 % intervals by bootstrap over patients ({resamples:,} resamples).")
    return [*lines, NOT_A_DEVICE]


def _show_metrics(results: Mapping) -> html.Section:
    values = results["metrics"]
    # Of three classes, what each has is a table of its own.
    of_classes = [name.removesuffix("_NORMAL") for name in values if name.endswith("_NORMAL")]
    columns = {"macro": "Mean (macro)"} | {kind: kind for kind in SUBTYPES}
    grid = {name: [f"{name}_{column}" for column in columns] for name in of_classes}
    rows = []
    for name, metric in values.items():
        if name in itertools.chain(*grid.values()):
            continue
        value = "-" if metric["value"] is None else f"{metric['value']:.4f}"
        interval = "{:.4f} to {:.4f}".format(*metric["ci95"]) if metric["ci95"] else metric["reason"]
        rows.append((_name(name), value, interval))
    tables = [html.Table(("Metric", "Value", "95 % interval"), rows)]
    if grid:
        rows = [(_name(name), *(_format(values[cell]) for cell in cells)) for name, cells in grid.items()]
        caption = "Decisions for the most probable class, whatever the threshold."
        tables.append(html.Table(("Each class against the others", *columns.values()), rows, caption))
    text = ["Pneumonia against NORMAL; what depends on a decision is at the run's threshold."]
    return html.Section("Metrics", text, tables)


def _show_curves(directory: pathlib.Path) -> html.Section:
    roc = html.load_picture(
        directory / "roc.png",
        "ROC curve",
        "Each point of the curve is a threshold: the nearer it runs to the upper left corner, the better.",
    )
    precision_recall = html.load_picture(
        directory / "precision_recall.png",
        "Precision-recall curve",
        "How many of the alarms are right, over how many of the pneumonias are found.",
    )
    return html.Section("How well scores tell images apart", blocks=[roc, precision_recall])


def _show_decisions(results: Mapping, directory: pathlib.Path) -> html.Section:
    """The confusion matrix of each operating point, with the rates of its rows and columns at its edges."""
    counts, threshold = results["counts"], results["threshold"]
    own = {"threshold": threshold["value"], "confusion_matrix": counts["confusion_matrix"]["at_threshold"]}
    points = {_name(name): point for name, point in results["operating_points"].items()}
    same = [name.lower() for name, point in points.items() if point["threshold"] == own["threshold"]]
    others = {name: point for name, point in points.items() if point["threshold"] != own["threshold"]}
    points = {", ".join(["The run's own", *same]): own | {"metrics": results["metrics"]}} | others
    text = [
        f"What each threshold does on {results['run']['split']['name']}. All but a fixed one were chosen on "
        f"{results['calibration']['split']}."
    ]
    rows = []
    for name, point in points.items():
        if point["threshold"] is None:
            text.append(f"{name}: no threshold. {point['reason']}")
            continue
        (normal, alarms), (missed, found) = point["confusion_matrix"]
        sensitivity, specificity, ppv, npv = (
            _format(point["metrics"][rate]) for rate in ("sensitivity", "specificity", "precision", "npv")
        )
        at = f"threshold {format_score(point['threshold'])}"
        rows.append((name, "pneumonia", f"{found:,} found", f"{missed:,} missed", f"sensitivity {sensitivity}"))
        rows.append((at, "NORMAL", f"{alarms:,} false alarms", f"{normal:,} right", f"specificity {specificity}"))
        rows.append(("", "of the column", f"PPV {ppv}", f"NPV {npv}", ""))
    columns = ("Operating point", "Truth", "Decided for pneumonia", "Decided NORMAL", "Of the row")
    blocks: list[html.Table | html.Picture] = [html.Table(columns, rows)]
    if "most_probable_class" in counts["confusion_matrix"]:
        blocks.append(
            html.load_picture(
                directory / "confusion_matrix_three_class.png",
                "Confusion matrix of three classes",
                "Each image decided for its most probable class, whatever the threshold.",
            )
        )
    return html.Section("Decisions", text, blocks)


def _show_probabilities(results: Mapping, directory: pathlib.Path) -> html.Section:
    calibration = results["calibration"]
    picture = html.load_picture(
        directory / "reliability.png",
        "Reliability diagram",
        "Where scores are probabilities, the points lie on the dashed line.",
    )
    after = f"At temperature {format_range(calibration['temperature'], '{:.3f}'.format)}"
    rows = [
        (_name(name), _format(before), _format(calibration["after"][name]))
        for name, before in calibration["before"].items()
    ]
    text = [f"Whether a score may be read as a probability. The temperature was fitted on {calibration['split']}."]
    text += [calibration["reason"]] if "reason" in calibration else []
    blocks = [picture, html.Table(("Calibration", "As trained", after), rows)]
    return html.Section("Scores as probabilities", text, blocks)


def _show_prevalence(results: Mapping, directory: pathlib.Path) -> html.Section:
    there = results["at_prevalence"]
    text = ["What a decision is worth where pneumonia is rarer or more frequent than in this split."]
    if there:
        values = f"PPV {format_interval(there['ppv'])}, NPV {format_interval(there['npv'])}"
        text.append(f"At a prevalence of {there['prevalence']:g}: {values}.")
    values = html.load_picture(
        directory / "predictive_values.png",
        "Predictive values over prevalence",
        "Sensitivity and specificity are held as they are here.",
    )
    decision_curve = html.load_picture(
        directory / "decision_curve.png",
        "Decision curve",
        "The score is of use where its line lies above both others. A threshold probability of 0.1 holds a missed "
        "pneumonia for nine times as bad as a false alarm.",
    )
    return html.Section("Other prevalences", text, [values, decision_curve])


def _show_subgroups(results: Mapping) -> html.Section:
    names = ("auroc", "sensitivity", "specificity")
    rows, reasons = [], set()
    for name, group in results["subgroups"].items():
        metrics = group["metrics"]
        cells = [_format(metrics[metric]) if metric in metrics else "" for metric in names]
        rows.append((_name(name), group["holds"], f"{group['images']:,}", f"{group['patients']:,}", *cells))
        missing = [metric for metric in names if metric in metrics and metrics[metric]["value"] is None]
        reasons |= {f"{_name(name)}: {metrics[metric]['reason']}" for metric in missing}
    columns = ("Subgroup", "Holds", "Images", "Patients", *map(_name, names))
    text = ["A network that reads the file instead of the lungs is better on one half than on the other."]
    table = html.Table(columns, rows, " ".join(sorted(reasons)))
    return html.Section("Subgroups", text, [table])


def _show_errors(split: Split, scores: np.ndarray, decided: np.ndarray, missed: bool) -> html.Section:
    """The most wrong images of one side of the threshold, as the network saw them."""
    wrong = np.flatnonzero((split.subtypes > 0) & ~decided if missed else (split.subtypes == 0) & decided)
    # Stable, so that of equal scores the first image comes first.
    wrong = wrong[np.argsort(scores[wrong] if missed else -scores[wrong], kind="stable")]
    shown = wrong[:SHOWN_ERRORS]
    heading, what = ("Misses", "decided NORMAL") if missed else ("False alarms", "decided for pneumonia")
    if not len(wrong):
        return html.Section(heading, [f"None: no {'image with pneumonia' if missed else 'NORMAL image'} was {what}."])
    pixels = f"{split.images.shape[1]} x {split.images.shape[2]} pixels, as the network saw them"
    images = f"{len(wrong):,} {'of pneumonia' if missed else 'of NORMAL'}"
    text = f"Images {what}: {images}, of which {len(shown)} are shown, the most wrong first"
    pictures = []
    for i in shown:
        caption = f"{SUBTYPES[split.subtypes[i]]}, score {format_score(scores[i])}\n{split.filenames[i]}"
        pictures.append(html.Picture(_encode_png(split.images[i]), caption, caption, small=True))
    return html.Section(heading, [f"{text}; {pixels}."], pictures)


def _show_training(networks: Mapping, directory: pathlib.Path) -> html.Section:
    """What every network was made with; of the config what is always told, and what is not the default."""
    defaults = config_to_dict(Config())
    configs = [config_to_dict(config_from_dict(info["config"])) for info in networks.values()]
    rows = [
        ("Checkpoint, step", "", *(f"{info['step']:,}" for info in networks.values())),
        ("Begun", "", *(_format_date(info["created"]) for info in networks.values())),
        ("Device", "", *("{count} x {kind}".format(**info["device"]) for info in networks.values())),
    ]
    for name in defaults:
        if name in ALWAYS_TOLD or any(config[name] != defaults[name] for config in configs):
            rows.append((name, _format_value(defaults[name]), *(_format_value(config[name]) for config in configs)))
    table = html.Table(
        ("Setting", "Default", *networks), rows, "Of the config, what is not as by default, and the essentials."
    )
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
    return html.Section("Data and versions", blocks=[html.Table(("Item", "Value"), rows)])


def _name(name: str) -> str:
    """specificity_at_sensitivity_0.95 -> Specificity at sensitivity 0.95; classes keep their capitals."""
    if name in METRIC_NAMES:
        return METRIC_NAMES[name]
    first, *rest = name.split("_")
    return " ".join((METRIC_NAMES.get(first, first[:1].upper() + first[1:]), *rest))


def _format(metric: Mapping) -> str:
    """A number of any size with its interval, which no line breaks; a dash for what does not exist."""
    if metric["value"] is None:
        return "-"
    interval = " ({:.3f}\u00a0to\u00a0{:.3f})".format(*metric["ci95"]) if metric["ci95"] else ""
    return f"{metric['value']:.3f}{interval}"


def _format_value(value: object) -> str:
    """A value of the config."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _format_date(date: str) -> str:
    """ISO date in UTC -> as "2026-05-04 13:07 UTC"."""
    return f"{date[:16].replace('T', ' ')} UTC"


def _of_hundred(metric: Mapping) -> str:
    """A rate as "95 (93 to 97)" of 100."""
    interval = " ({:.0f} to {:.0f})".format(*(100 * bound for bound in metric["ci95"])) if metric["ci95"] else ""
    return f"{100 * metric['value']:.0f}{interval}"


def _mirror(interval: Sequence[float]) -> list[float]:
    return [1 - interval[1], 1 - interval[0]]


def _encode_png(image: np.ndarray) -> bytes:
    """[H, W] uint8 -> the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(file, format="PNG", optimize=True)
    return file.getvalue()
