"""Makes a model card: what a run is for, how it was trained, what it reaches, and where it fails."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pneumojax.reporting.caveats import NOT_A_DEVICE, describe_synthetic, describe_warnings
from pneumojax.reporting.checklists import escape_cell
from pneumojax.reporting.format import format_interval, format_score
from pneumojax.reporting.run_record import AUTHORS, METRICS, Fact, RunRecord, make_facts
from pneumojax.reporting.tables import Table

OUT_OF_SCOPE = (
    "Decisions about a patient, and any use in care: it was not tested for that.",
    "Adults, other age groups than those of the training images, lateral views, CT, and other diseases than pneumonia. "
    "The network has no class for them and still gives a score.",
    "Photographs of a screen, screenshots, and images with other processing than the training images.",
    "Scores as a measure of severity.",
)

LIMITS = (
    "The Kermany images are from one hospital and of children of one to five years. Nothing here was measured on other "
    "children, unless the results above name another collection.",
    "The classes differ in more than the lungs: in these data, the aspect, the size, the sharpness and the border of "
    "an image tell NORMAL from pneumonia too. A high AUROC does not prove that the network uses the lungs.",
    "The official test images are another distribution than the training images. Published systems lose 5 to 15 points "
    "of accuracy there, mostly by false positives.",
    "Bacterial and viral labels are noisy, more so in the training images than in the test images.",
    "Patients are identified by file names only, so intervals can be slightly too narrow or too wide.",
    "Neither age nor sex is in the image files, so no subgroup by them could be measured.",
)


def make_model_card(record: RunRecord) -> str:
    """Makes a model card in Markdown, with the sections and the YAML head that Hugging Face reads."""
    facts, synthetic = make_facts(record), describe_synthetic(record.info["data"])
    warnings = [f"> **{sentence}**\n" for sentence in (NOT_A_DEVICE, synthetic) if sentence]
    sections = {
        "Model details": _list(facts, {"Network": "model", "Technology": "technology", "Checkpoint": "selection"}),
        "Intended use": start_sentence(facts["intended_use"].format()),
        "Out-of-scope use": _bullets(OUT_OF_SCOPE),
        "Training data": _list(facts, {"Source": "data_source", "Splits": "splits", "Classes": "class_balance"})
        + "\n\nMore is in data_card.md.",
        "Training procedure": _list(
            facts,
            {
                "Preprocessing": "preprocessing",
                "Initialisation": "initialisation",
                "Training": "training",
                "Device": "device",
                "Software": "software",
            },
        )
        + "\n\n"
        + _format_config(record),
        "Results": _format_results(record),
        "Threshold and calibration": _format_decisions(record, facts),
        "Subgroups": _format_subgroups(record, facts),
        "Tests": _list(
            facts,
            {
                "Robustness": "robustness",
                "Without the lungs": "audit",
                "External data": "external",
                "Explanations": "explanations",
            },
        ),
        "Limits": _bullets(LIMITS if not record.synthetic else (synthetic, *LIMITS[1:2])),
        "Fingerprints": _format_files(record),
        "Licence": f"Code: Apache-2.0. Training data: {'synthetic' if record.synthetic else 'CC BY 4.0'}. "
        f"Weights: {AUTHORS}.",
        "Authors, contact and citation": f"{AUTHORS}.",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    title = f"# {record.config['model']}: chest X-rays of children, {' / '.join(record.info['class_names'])}"
    return "\n".join([_format_head(record), title, "", *warnings, body, ""])


def _format_head(record: RunRecord) -> str:
    """Formats the YAML head. A JSON string is a YAML string, so texts are quoted as JSON."""
    quote = json.dumps
    lines = [
        "---",
        "license: other",
        f"license_name: {quote(AUTHORS)}",
        "library_name: pneumojax",
        "pipeline_tag: image-classification",
        "tags: [jax, flax, chest-x-ray, pneumonia, research-only]",
    ]
    if record.evaluations:
        name = quote(f"{record.config['model']} {record.weights_sha256[:16]}")
        lines += ["model-index:", f"- name: {name}", "  results:"]
    for split, results in record.evaluations.items():
        dataset = quote("collection" if "collection" in results else record.config["dataset"])
        lines += [
            "  - task: {type: image-classification}",
            f"    dataset: {{name: {dataset}, type: {dataset}, split: {quote(split)}}}",
            "    metrics:",
        ]
        for key, kind in (("auroc", "roc_auc"), ("accuracy", "accuracy"), ("f1", "f1"), ("sensitivity", "recall")):
            if results["metrics"].get(key, {}).get("value") is not None:
                lines.append(f"    - {{type: {kind}, value: {results['metrics'][key]['value']:.4f}}}")
    return "\n".join([*lines, "---", ""])


def _list(facts: Mapping[str, Fact], names: Mapping[str, str]) -> str:
    return _bullets([f"**{title}**: {facts[name].format()}" for title, name in names.items()])


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def start_sentence(text: str) -> str:
    """Returns text with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Makes a Markdown table whose cells are escaped."""
    return Table(columns, [tuple(map(escape_cell, row)) for row in rows]).format_markdown()


def _format_config(record: RunRecord) -> str:
    """Formats the whole config, folded."""
    rows = [(f"`{name}`", f"`{json.dumps(value)}`") for name, value in record.config.items() if name != "data_dir"]
    table = make_table(("flag of train.py", "value"), rows)
    return f"<details><summary>All {len(rows)} values of the config</summary>\n\n{table}\n\n</details>"


def _format_results(record: RunRecord) -> str:
    """Formats the metrics of all evaluations, with their warnings."""
    evaluations, command = record.evaluations, record.evaluate_command
    parts = [] if evaluations else [f"Missing: this run has not been evaluated. Run `{command}` first."]
    if evaluations:
        columns = ["metric (95 % interval)"]
        for split, results in evaluations.items():
            counts = results["counts"]
            columns.append(f"{split}: {counts['images']:,} images of {counts['patients']:,} patients")
        rows = [
            (title, *(_format_metric(results, name) for results in evaluations.values()))
            for name, title in METRICS.items()
            if any(name in results["metrics"] for results in evaluations.values())
        ]
        parts += [make_table(columns, rows), "Intervals are by bootstrap over patients."]
    for split, results in evaluations.items():
        parts += [f"**{split}**: {sentence}" for sentence in describe_warnings(results)]
        measured = results["run"]["checkpoint"]["step"]
        if measured != record.step:
            parts.append(
                f"**{split}**: measured with the checkpoint of step {measured:,}, and this card describes step "
                f"{record.step:,}. Run `{record.command('evaluate.py', split=split)}` again."
            )
    if evaluations and "test" not in evaluations:
        if "test" in record.info["data"]["counts"]:
            parts.append(f"Missing: results on the test split. Run `{command}` first.")
        else:
            parts.append("Missing: results on a test split. The data set of this run has none.")
    return "\n\n".join(parts)


def _format_metric(results: Mapping[str, Any], name: str) -> str:
    metric = results["metrics"].get(name)
    return format_interval(metric, missing=metric.get("reason", "-")) if metric else "-"


def _format_decisions(record: RunRecord, facts: Mapping[str, Fact]) -> str:
    """Formats the threshold, the calibration and the error of the calibration."""
    text = _list(facts, {"Threshold": "threshold", "Calibration": "calibration"})
    threshold = record.threshold
    band = threshold.get("uncertain") if threshold else None
    if band and band["low"] is not None:
        text += f"\n- **Uncertain scores**: {format_score(band['low'])} to {format_score(band['high'])}"
    rows = [
        (split, *(format_interval(results["calibration"]["after"][name]) for name in ("brier", "ece")))
        for split, results in record.evaluations.items()
    ]
    if rows:
        text += "\n\n" + make_table(("after calibration", "Brier score", "calibration error (ECE)"), rows)
    return text


def _format_subgroups(record: RunRecord, facts: Mapping[str, Fact]) -> str:
    rows = []
    for split, results in record.evaluations.items():
        for name, group in results["subgroups"].items():
            metrics = group.get("metrics", {})
            shown = [
                format_interval(metrics[one]) if one in metrics else "-"
                for one in ("auroc", "sensitivity", "specificity")
            ]
            rows.append((split, name.replace("_", " "), f"{group['images']:,}", *shown))
    if not rows:
        return facts["subgroups"].format()
    return make_table(("split", "subgroup", "images", "AUROC", "sensitivity", "specificity"), rows)


def _format_files(record: RunRecord) -> str:
    """Formats the hashes by which the run and its data can be recognised."""
    rows = [("weights", record.weights_sha256)]
    rows += [(f"data: {split}", value) for split, value in record.info["data"]["fingerprints"].items()]
    rows += [(name, value or "missing") for name, value in record.files.items()]
    return make_table(("what", "sha256"), [(name, f"`{value}`") for name, value in rows])
