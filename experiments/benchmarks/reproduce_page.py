"""Formats the results of reproduce.py as Markdown, CSV and HTML: reported metrics compared with ours."""

import dataclasses
import json
import pathlib
import re
import statistics

from experiments.benchmarks.systems import FIGURES, LEAKY, SYSTEMS
from pneumojax.files import read_rows, write_text
from pneumojax.reporting.caveats import describe_synthetic
from pneumojax.reporting.format import format_interval
from pneumojax.reporting.html import Section, load_picture, render_page
from pneumojax.reporting.tables import Table, format_csv

TITLE = "Reference systems: reported and ours"
PRESETS = pathlib.Path(__file__).parents[1] / "presets"

METRICS = {
    "auroc": "AUROC",
    "specificity_at_sensitivity_0.95": "specificity at sensitivity 0.95",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


SHIFT = "AUROC of the selection split, aspects swapped"

SHIFT_TEXT = (
    "Aspects swapped: in the split that chose the threshold (validation), NORMAL images are cropped to the central "
    "86 % of their height and images of pneumonia to the central 86 % of their width. The shape of the child then no "
    "longer tells the classes apart."
)


def write_results(workdir: pathlib.Path, paths: list[pathlib.Path], split: str, metadata: dict, quick: bool) -> None:
    """Writes results.md, results.csv, results.png and results.html.

    Args:
      workdir: folder to write to.
      paths: folders of the finished runs.
      split: the split on which the runs were evaluated.
      metadata: metadata of the prepared data set.
      quick: whether the runs are a smoke test, whose metrics mean nothing.
    """
    from pneumojax.reporting.figures.intervals import save_reported

    results = collect_results(paths, split)
    if not results:
        return
    info = json.loads((paths[0] / "config.json").read_text())
    write_text(workdir / "results.csv", format_results(results, split))
    sections = make_sections(results, split)
    lead = describe(results, split, metadata, info)
    smoke_test = "This is a smoke test of one epoch at 32 px: its metrics mean nothing."
    warning = smoke_test if quick else describe_synthetic(metadata)
    write_text(workdir / "results.md", format_markdown(lead, warning, sections))
    reported = list_reported(results)
    if reported:
        rows = [
            {"name": f"{figure}  {name}", "reported": value, "ours": ours} for name, figure, value, ours in reported
        ]
        save_reported(workdir / "results.png", rows, split)
        picture = load_picture(workdir / "results.png", "Reported figures compared with ours", wide=True)
        sections[0] = dataclasses.replace(sections[0], blocks=[picture, *sections[0].blocks])
    page = render_page(TITLE, lead, [*sections, describe_presets(results)], warning)
    write_text(workdir / "results.html", page)


def collect_results(paths: list[pathlib.Path], split: str) -> dict[str, dict]:
    """Collects the metrics and costs of each system over its seeds.

    Args:
      paths: folders of the runs, <workdir>/<system>/seed_<n>.
      split: the split on which the runs were evaluated.

    Returns:
      {system: {"metrics": from `compute_mean_metrics`, "shift_auroc": the AUROC of the selection split with swapped
      aspects, "seeds": number of seeds, "seconds": mean training time, "images_per_second": median}}. If a system was
      trained by the leaky protocol, its name ends with "_" + LEAKY.
    """
    from pneumojax.evaluation.prediction_files import read_predictions
    from pneumojax.evaluation.summary import compute_mean_metrics

    runs_of: dict[str, list[pathlib.Path]] = {}
    for path in paths:
        runs_of.setdefault(path.parent.name, []).append(path)
    results = {}
    for name, runs in sorted(runs_of.items(), key=lambda item: (LEAKY in item[0], item[0])):
        costs = [json.loads((path / "cost.json").read_text()) for path in runs]
        rates = [cost["images_per_second"] for cost in costs if cost["images_per_second"]]
        results[name] = {
            "metrics": compute_mean_metrics([read_predictions(path, split) for path in runs]),
            "shift_auroc": summarise_shift([read_shift(path, split) for path in runs]),
            "seeds": len(runs),
            "seconds": statistics.mean(cost["seconds"] for cost in costs),
            "images_per_second": statistics.median(rates) if rates else None,
        }
    return results


def read_shift(path: pathlib.Path, split: str) -> float:
    """Reads from the log of a run the AUROC with swapped aspects, of the checkpoint that was evaluated."""
    step = json.loads((path / "evaluation" / split / "metrics.json").read_text())["run"]["checkpoint"]["step"]
    return next(
        row["val/shift_auroc"]
        for row in read_rows(path / "metrics.jsonl")
        if row["step"] == step and "val/shift_auroc" in row
    )


def summarise_shift(values: list[float]) -> dict:
    """Computes mean and standard deviation over the seeds, for `format_interval`."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"value": statistics.mean(values), "standard_deviation": spread, "ci95": None}


def list_reported(results: dict) -> list[tuple[str, str, float, dict]]:
    """Returns (system, name of the metric, reported value, our value) for each metric that a project reports."""
    return [
        (name, FIGURES[metric], reported, results[name]["metrics"][metric])
        for name in results
        if name in SYSTEMS
        for metric, reported in SYSTEMS[name].reported.items()
    ]


def describe(results: dict, split: str, metadata: dict, info: dict) -> list[str]:
    """Describes the evaluation: systems, seeds, data and versions.

    Args:
      results: from `collect_results`.
      split: the split on which the runs were evaluated.
      metadata: metadata of the prepared data set.
      info: content of the config.json of a run.
    """
    seeds = max(result["seeds"] for result in results.values())
    device, versions = info["device"], info["versions"]
    systems = len({name.removesuffix(f"_{LEAKY}") for name in results})
    how = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    first = (
        f"{systems} system{'s' * (systems > 1)}, {how}, with the 95 % interval of the mean (bootstrap by patient). "
        f"The reported metrics are of the official test split. Ours are of {split}"
    )
    first += "." if split == "test" else ", because this data set has no test split. These are not the same images."
    second = (
        f"Data {metadata['fingerprint'][:12]} ({split}: {sum(metadata['counts'][split].values())} images), "
        f"{info['image_px']} px, devices: {device['count']} ({device['kind']}), "
        f"jax {versions['jax']}, flax {versions['flax']}. Made by experiments/reproduce.py."
    )
    return [first, second]


def make_sections(results: dict, split: str) -> list[Section]:
    """Returns the sections with tables."""
    reported = [
        (name, SYSTEMS[name].network, figure, f"{value:.2f}", format_interval(ours))
        for name, figure, value, ours in list_reported(results)
    ]
    honest = {name: result for name, result in results.items() if name in SYSTEMS}
    leaky = {name: result for name, result in results.items() if name not in SYSTEMS}
    sections = []
    if honest:
        columns = ("system", "network", "figure", "reported, test", f"ours, {split}")
        sections.append(Section("Reported and ours", (), [Table(columns, reported)]))
        sections.append(Section(f"Ours on {split}", (SHIFT_TEXT,), [make_table(honest)]))
    if leaky:
        text = (
            f"{LEAKY}: the same systems, with epoch, threshold and calibration chosen on the evaluated images, as in "
            "many publications. These metrics are invalid. Their difference from those above shows how much the "
            "leak adds.",
        )
        sections.append(Section("Leaky protocol, for comparison only", text, [make_table(leaky)]))
    return sections


def make_table(results: dict) -> Table:
    """Returns a table with the metrics and the cost of each system."""
    rows = []
    for name, result in results.items():
        cells = [format_interval(result["metrics"][metric]) for metric in METRICS]
        cells.append(format_interval(result["shift_auroc"]))
        rate = result["images_per_second"]
        rows.append([name, *cells, f"{result['seconds']:.0f}", f"{rate:,.0f}" if rate else "-"])
    return Table(("system", *METRICS.values(), SHIFT, "seconds", "images/s"), rows)


def describe_presets(results: dict) -> Section:
    """Returns a section with the comments of the presets, which describe each system and how it is rebuilt here."""
    names = dict.fromkeys(name.removesuffix(f"_{LEAKY}") for name in results)
    texts = [(PRESETS / f"{name}.flags").read_text() for name in names]
    paragraphs = [" ".join(re.findall(r"^# *(.*)$", text, re.MULTILINE)) for text in texts]
    return Section("The systems", paragraphs)


def format_markdown(lead: list[str], warning: str, sections: list[Section]) -> str:
    """Formats the lead and the tables as Markdown."""
    paragraphs = [f"# {TITLE}", *([f"**{warning}**"] if warning else []), *lead]
    for section in sections:
        tables = [block.format_markdown() for block in section.blocks if isinstance(block, Table)]
        paragraphs += [f"## {section.heading}", *section.text, *tables]
    return "\n\n".join(paragraphs) + "\n"


def format_results(results: dict, split: str) -> str:
    """Returns CSV text with a row for each system and metric."""
    columns = ("system", "protocol", "split", "metric", "reported_on_test", "mean", "standard_deviation", "low", "high")
    rows = []
    for name, result in results.items():
        system = name.removesuffix(f"_{LEAKY}")
        honest = name == system
        protocol = "chosen on validation" if honest else "chosen on test (leaky)"
        for metric, ours in (result["metrics"] | {"shift_auroc": result["shift_auroc"]}).items():
            reported = SYSTEMS[system].reported.get(metric) if honest else None
            low, high = ours["ci95"] or (None, None)
            numbers = (ours["value"], ours["standard_deviation"], low, high)
            costs = (result["seeds"], result["seconds"], result["images_per_second"])
            rows.append((system, protocol, split, metric, reported, *numbers, *costs))
    return format_csv((*columns, "seeds", "seconds", "images_per_second"), rows)
