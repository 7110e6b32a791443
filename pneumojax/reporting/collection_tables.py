"""Tables and sentences about the evaluation of a collection: how its images differ from those of validation."""

from collections.abc import Mapping

from pneumojax.reporting.format import format_score
from pneumojax.reporting.tables import Table

NOT_REPORTABLE = (
    "The second threshold was chosen with the labels of these images. It shows how far the scores have moved. Do not "
    "report it or its rates as a result."
)


def make_collection_tables(results: Mapping) -> list[Table]:
    """Makes the table of nuisances and the table of thresholds. There is none if validation was not available.

    Args:
      results: content of metrics.json of a collection.
    """
    collection = results["collection"]
    if collection["shift"] is None:
        return []
    rows = [
        (row["title"], _format_quartiles(row["reference"]), _format_quartiles(row["collection"]), f"{row['auroc']:.3f}")
        for row in collection["shift"].values()
    ]
    columns = ("Property of the image", collection["reference"], "these images", "AUROC between them")
    caption = "Median (quartiles). At an AUROC of 0.5 there is no difference; at 0 or 1 the property tells all apart."
    same, metrics = collection["same_sensitivity"], results["metrics"]
    stored = [metrics[name]["value"] for name in ("sensitivity", "specificity")]
    thresholds = [
        ("as stored", format_score(results["threshold"]["value"]), *map(_format_rate, stored)),
        (
            f"same sensitivity as on {collection['reference']} (not for reporting)",
            "-" if same["threshold"] is None else format_score(same["threshold"]),
            *(_format_rate(same[name]) for name in ("sensitivity", "specificity")),
        ),
    ]
    heading = ("Threshold", "value", "sensitivity", "specificity")
    return [Table(columns, rows, caption), Table(heading, thresholds, NOT_REPORTABLE)]


def describe_collection(results: Mapping) -> list[str]:
    """Describes the files and the labels of a collection in sentences.

    Args:
      results: content of metrics.json of a collection.
    """
    collection, classes = results["collection"], results["counts"]["classes"]
    sentences = ["The threshold and the calibration are the stored ones; nothing was chosen on these images."]
    present = [name for name, number in classes.items() if number]
    if "NORMAL" not in present:
        sentences.append("All images show pneumonia, so there is neither an AUROC nor a specificity.")
    elif present == ["NORMAL"]:
        sentences.append("All images are NORMAL, so there is neither an AUROC nor a sensitivity.")
    if not collection["kinds_known"]:
        sentences.append("The labels do not say which pneumonia is bacterial or viral, so two classes are evaluated.")
    if not collection["patients_known"]:
        sentences.append(
            "The patients are unknown, so each image counts as a patient. The intervals are too narrow if some have "
            "several images."
        )
    if collection["unreadable"]:
        name, reason = collection["unreadable"][0]
        number = len(collection["unreadable"])
        files = "1 file was" if number == 1 else f"{number:,} files were"
        sentences.append(f"{files} left out as unreadable. The first: {name} ({reason}).")
    if collection["reason"]:
        sentences.append(collection["reason"])
    return sentences


def _format_quartiles(quartiles: list[float]) -> str:
    low, middle, high = (f"{value:.3g}" for value in quartiles)
    return f"{middle} ({low} to {high})"


def _format_rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.3f}"
