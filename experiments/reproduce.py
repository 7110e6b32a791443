"""Trains the reference systems and sets what their projects report beside what they reach here.

    scripts/run experiments/reproduce.py --dataset=kermany --seeds=3        # all of them
    scripts/run experiments/reproduce.py --systems=a1,e3 --dataset=kermany
    scripts/run experiments/reproduce.py --quick                            # a smoke test on drawn radiographs

Each system is a preset (experiments/presets/<name>.flags), trained once for each seed in `<workdir>/<name>/seed_<n>`: a
run like any other, which evaluate.py and compare.py take. Stopped at any time, the same command goes on. Writes
`<workdir>/results.md`, results.csv and results.html after each seed. e4 is not a system but a protocol: each of the
others again with epoch and threshold chosen on test, to show what that leak is worth; it needs a test split. About an
hour for three seeds on 2 CPU cores without e4.
"""

import csv
import dataclasses
import io
import json
import logging
import pathlib
import re
import shlex
import statistics
import sys
import time

from absl import flags

from experiments.flags import fail, read_preset, run
from experiments.progress import Progress
from experiments.systems import FIGURES, LEAKY, SYSTEMS
from pneumojax.config import Config
from pneumojax.files import read_rows, write_json, write_text

TITLE = "Reference systems: reported and ours"
PRESETS = pathlib.Path(__file__).parent / "presets"

# What --quick trains: enough to run every line.
QUICK = {"epochs": 1, "image_px": 32, "batch_size": 8, "vgg_width": 4, "resnet_width": 4}

METRICS = {
    "auroc": "AUROC",
    "specificity_at_sensitivity_0.95": "specificity at sensitivity 0.95",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}

WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs (default: runs/reproduce, or runs/quick)")
CHOSEN = flags.DEFINE_list("systems", [*SYSTEMS, LEAKY], "which, separated by commas")
SEEDS = flags.DEFINE_integer("seeds", None, "trainings of each system (default: 3, with --quick 1)", lower_bound=1)
DATASET = flags.DEFINE_enum(
    "dataset", None, ("phantom", "kermany"), "data set (default: kermany, with --quick phantom)"
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets")
IMAGE_PX = flags.DEFINE_integer("image_px", None, "size of the images in pixels (default: each preset's, 64)")
QUICKLY = flags.DEFINE_bool("quick", False, "one epoch at 32 px: runs everything, its figures mean nothing")

logger = logging.getLogger("experiments")


def main() -> int:
    unknown = [name for name in CHOSEN.value if name not in (*SYSTEMS, LEAKY)]
    if unknown or not CHOSEN.value:
        return fail(
            f"--systems: {', '.join(unknown) or 'none'} is not a system. There are {', '.join(SYSTEMS)}, {LEAKY}."
        )
    workdir = pathlib.Path(WORKDIR.value or ("runs/quick" if QUICKLY.value else "runs/reproduce")).expanduser()
    seeds = SEEDS.value or (1 if QUICKLY.value else 3)
    from pneumojax.data.dataset import ensure_prepared  # Imports JAX: after the flags are known to be good.

    runs = plan_runs(CHOSEN.value, seeds, workdir)
    record = ensure_prepared(next(iter(runs.values())).data)
    split = "test" if "test" in record["fingerprints"] else "validation"
    if split == "validation":
        runs = {path: config for path, config in runs.items() if not path.parent.name.endswith(LEAKY)}
        if not runs:
            return fail(f"--systems={LEAKY} chooses on test, and this data set has no test split.")
    for number, (path, config) in enumerate(runs.items()):
        logger.info("%d of %d: %s", number + 1, len(runs), path)
        if stopped_by := train_and_evaluate(path, config, split):
            write_results(workdir, [*runs][:number], split, record)
            print(f"Stopped. Go on: scripts/run {shlex.join(sys.argv)}")
            return 128 + stopped_by
        if number + 1 == len(runs) or [*runs][number + 1].name != path.name:  # A seed is through.
            write_results(workdir, [*runs][: number + 1], split, record)
    print((workdir / "results.md").read_text())
    print(f"Written to {workdir}: results.md, results.csv, results.html; each run beside them.")
    return 0


def plan_runs(chosen: list[str], seeds: int, workdir: pathlib.Path) -> dict[pathlib.Path, Config]:
    """{folder: config} of all trainings, seed after seed, the leaky protocol's last."""
    fields = dict(QUICK) if QUICKLY.value else {}
    fields |= {"dataset": DATASET.value or ("phantom" if QUICKLY.value else "kermany"), "data_dir": DATA_DIR.value}
    if IMAGE_PX.value:
        fields["image_px"] = IMAGE_PX.value
    systems = [name for name in SYSTEMS if name in chosen]
    protocols = [(systems, "", fields)]
    if LEAKY in chosen:
        protocols.append((systems or [*SYSTEMS], f"_{LEAKY}", fields | {"selection_split": "test"}))
    return {
        workdir / f"{name}{suffix}" / f"seed_{seed}": read_preset(PRESETS / f"{name}.flags", seed=seed, **fields)
        for names, suffix, fields in protocols
        for seed in range(seeds)
        for name in names
    }


def train_and_evaluate(path: pathlib.Path, config: Config, split: str) -> int | None:
    """Trains and scores one run, or what is left of it; returns the signal that stopped it, or None."""
    import jax

    from pneumojax.evaluation.evaluate import evaluate
    from pneumojax.evaluation.run import open_run
    from pneumojax.training.fit import fit

    cost = path / "cost.json"
    spent = json.loads(cost.read_text())["seconds"] if cost.exists() else 0.0
    started = time.perf_counter()
    progress = Progress(started)
    try:
        result = fit(config, path, report=progress.report)
    finally:
        progress.close()
    if result.trained_steps or not cost.exists():  # A kill can come between the last step and this.
        rates = [
            row["perf/images_per_second"]
            for row in read_rows(path / "metrics.jsonl")
            if "perf/images_per_second" in row
        ]
        seconds = spent + time.perf_counter() - started
        write_json(cost, {"seconds": seconds, "images_per_second": statistics.median(rates) if rates else None})
    if not result.stopped_by and not (path / "evaluation" / split / "metrics.json").exists():
        evaluate(open_run(path, data_dir=config.data.data_dir), split)
    jax.clear_caches()  # Else the compiled steps of all systems stay in memory.
    return result.stopped_by


def write_results(workdir: pathlib.Path, paths: list[pathlib.Path], split: str, record: dict) -> None:
    """Writes results.md, results.csv and results.html of the runs that are finished."""
    from pneumojax.reporting.figures.intervals import save_reported
    from pneumojax.reporting.html import load_picture, render_page

    results = collect_results(paths, split)
    if not results:
        return
    info = json.loads((paths[0] / "config.json").read_text())
    write_text(workdir / "results.csv", format_csv(results, split))
    sections = make_sections(results, split)
    lead = describe(results, split, record, info)
    warning = ""
    if QUICKLY.value:
        warning = "A smoke test of one epoch at 32 px: its figures mean nothing."
    elif record["synthetic"]:
        warning = "Drawn radiographs, not patients: these figures say nothing about X-rays."
    write_text(workdir / "results.md", format_markdown(lead, warning, sections))
    reported = list_reported(results)
    if reported:
        rows = [
            {"name": f"{figure}  {name}", "reported": value, "ours": ours} for name, figure, value, ours in reported
        ]
        save_reported(workdir / "results.png", rows, split)
        picture = load_picture(workdir / "results.png", "Reported figures beside ours", wide=True)
        sections[0] = dataclasses.replace(sections[0], blocks=[picture, *sections[0].blocks])
    page = render_page(TITLE, lead, [*sections, describe_presets(results)], warning)
    write_text(workdir / "results.html", page)


def collect_results(paths: list[pathlib.Path], split: str) -> dict[str, dict]:
    """{system, or system_e4: {"metrics": of `compute_mean_metrics`, "seeds", "seconds", "images_per_second"}}."""
    from pneumojax.evaluation.prediction_files import read_predictions
    from pneumojax.evaluation.summary import compute_mean_metrics

    runs_of = {}
    for path in paths:
        runs_of.setdefault(path.parent.name, []).append(path)
    results = {}
    for name, runs in sorted(runs_of.items(), key=lambda item: (LEAKY in item[0], item[0])):
        costs = [json.loads((path / "cost.json").read_text()) for path in runs]
        rates = [cost["images_per_second"] for cost in costs if cost["images_per_second"]]
        results[name] = {
            "metrics": compute_mean_metrics([read_predictions(path, split) for path in runs]),
            "seeds": len(runs),
            "seconds": statistics.mean(cost["seconds"] for cost in costs),
            "images_per_second": statistics.median(rates) if rates else None,
        }
    return results


def list_reported(results: dict) -> list[tuple[str, str, float, dict]]:
    """(system, figure, reported, ours) of each figure that a project reports."""
    return [
        (name, FIGURES[metric], reported, results[name]["metrics"][metric])
        for name in results
        if name in SYSTEMS
        for metric, reported in SYSTEMS[name].reported.items()
    ]


def describe(results: dict, split: str, record: dict, info: dict) -> list[str]:
    """What was scored, on what, how."""
    seeds = max(result["seeds"] for result in results.values())
    device, versions = info["device"], info["versions"]
    systems = len({name.removesuffix(f"_{LEAKY}") for name in results})
    how = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    first = (
        f"{systems} system{'s' * (systems > 1)}, {how}, with the 95 % interval of the mean (bootstrap by patient). "
        f"Reported figures are of the official test split; ours of {split}"
    )
    first += "." if split == "test" else ", since this data set has no test split: the two are not the same images."
    second = (
        f"Data {record['fingerprint'][:12]} ({split}: {sum(record['counts'][split].values())} images), "
        f"{info['image_px']} px, devices: {device['count']} ({device['kind']}), "
        f"jax {versions['jax']}, flax {versions['flax']}. Made by experiments/reproduce.py."
    )
    return [first, second]


def make_sections(results: dict, split: str) -> list:
    """The tables."""
    from pneumojax.reporting.html import Section, Table

    reported = [
        (name, SYSTEMS[name].network, figure, f"{value:.2f}", format_metric(ours))
        for name, figure, value, ours in list_reported(results)
    ]
    honest = {name: result for name, result in results.items() if name in SYSTEMS}
    leaky = {name: result for name, result in results.items() if name not in SYSTEMS}
    sections = []
    if honest:
        columns = ("system", "network", "figure", "reported, test", f"ours, {split}")
        sections.append(Section("Reported and ours", (), [Table(columns, reported)]))
        sections.append(Section(f"Ours on {split}", (), [make_table(honest)]))
    if leaky:
        text = (
            f"{LEAKY}: the same systems with epoch, threshold and temperature chosen on the images that are scored, as "
            "many publications do. The figures are worth nothing; the difference shows what the leak adds.",
        )
        sections.append(Section("Leaky protocol, for comparison only", text, [make_table(leaky)]))
    return sections


def make_table(results: dict):
    """One row a system: its metrics, what it cost."""
    from pneumojax.reporting.html import Table

    rows = []
    for name, result in results.items():
        cells = [format_metric(result["metrics"][metric]) for metric in METRICS]
        rate = result["images_per_second"]
        rows.append([name, *cells, f"{result['seconds']:.0f}", f"{rate:,.0f}" if rate else "-"])
    return Table(("system", *METRICS.values(), "seconds", "images/s"), rows)


def describe_presets(results: dict):
    """What is published of each system and what is our reading: the comments of its preset."""
    from pneumojax.reporting.html import Section

    names = dict.fromkeys(name.removesuffix(f"_{LEAKY}") for name in results)
    texts = [(PRESETS / f"{name}.flags").read_text() for name in names]
    paragraphs = [" ".join(re.findall(r"^# *(.*)$", text, re.MULTILINE)) for text in texts]
    return Section("The systems", paragraphs)


def format_metric(metric: dict) -> str:
    """As "0.9956 ± 0.0014 (0.992 to 0.998)"."""
    if metric["value"] is None:
        return "-"
    spread = f" ± {metric['standard_deviation']:.3f}" if metric["standard_deviation"] is not None else ""
    interval = " ({:.3f} to {:.3f})".format(*metric["ci95"]) if metric["ci95"] else ""
    return f"{metric['value']:.3f}{spread}{interval}"


def format_markdown(lead: list[str], warning: str, sections: list) -> str:
    """The lead and the tables as Markdown."""
    lines = [f"# {TITLE}", ""]
    lines += [f"**{warning}**", ""] if warning else []
    for paragraph in lead:
        lines += [paragraph, ""]
    for section in sections:
        lines += [f"## {section.heading}", ""]
        for paragraph in section.text:
            lines += [paragraph, ""]
        for table in section.blocks:
            lines += [
                "| " + " | ".join(row) + " |" for row in (table.columns, ["---"] * len(table.columns), *table.rows)
            ]
            lines.append("")
    return "\n".join(lines)


def format_csv(results: dict, split: str) -> str:
    """A row for each system and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("system", "protocol", "split", "metric", "reported_on_test", "mean", "standard_deviation", "low", "high")
    writer.writerow([*columns, "seeds", "seconds", "images_per_second"])
    for name, result in results.items():
        system = name.removesuffix(f"_{LEAKY}")
        honest = name == system
        for metric, ours in result["metrics"].items():
            reported = SYSTEMS[system].reported.get(metric, "") if honest else ""
            low, high = ours["ci95"] or ("", "")
            numbers = [ours["value"], ours["standard_deviation"], low, high]
            row = [system, "chosen on validation" if honest else "chosen on test (leaky)", split, metric, reported]
            row += ["" if number is None else number for number in numbers]
            writer.writerow([*row, result["seeds"], result["seconds"], result["images_per_second"]])
    return text.getvalue()


if __name__ == "__main__":
    run(main)
