"""Trains the rows of an ablation, one change at a time, and writes the table of what each change gains or costs.

    scripts/run experiments/ablation.py --dataset=kermany                      # all rows of experiments/ablation.toml
    scripts/run experiments/ablation.py --dataset=kermany --rows=base,aspect   # some of them
    scripts/run experiments/ablation.py --quick                                # a smoke test on synthetic radiographs

A row is a base with some fields of the config changed. It is trained once for each seed, as replicas of one program, in
`<workdir>/<row>`. Each is a run like any other: evaluate.py, robustness.py and compare.py accept
`<workdir>/<row>/replica_<n>`. Rows are scored on validation only, as it is and with nuisances swapped between the
classes (see robustness.py).

After each row the command appends the scores to the file --results, and writes all rows of this file as a Markdown page
with the same name. Rows that are already in the file are not trained again, also not on another machine. The same
command resumes a training that was stopped.
"""

import json
import logging
import pathlib
import time

from absl import flags

from experiments.benchmarks.ablation_page import format_page, read_table
from experiments.benchmarks.records import RESULTS, count_cores, describe_machine, find_commit, find_time
from experiments.cli import fail, run
from experiments.flags import read_preset
from experiments.progress import Progress, format_resume
from pneumojax.config import Config, config_from_dict, config_to_dict, replace_fields
from pneumojax.files import append_row, read_rows, write_json, write_text

EXPERIMENTS = pathlib.Path(__file__).parent

# What --quick changes: training is as short as possible.
QUICK = {"epochs": 1, "image_px": 32, "batch_size": 8, "resnet_width": 4, "progressive_px": ()}

TABLE = flags.DEFINE_string("table", str(EXPERIMENTS / "ablation.toml"), "TOML file of the base and the rows")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs (default: runs/ablation, or runs/quick_ablation)")
RESULT_FILE = flags.DEFINE_string(
    "results",
    None,
    "file of JSON rows to append to (default: experiments/results/ablation.jsonl, with --quick in the workdir)",
)
ROWS = flags.DEFINE_list("rows", [], "rows to train, separated by commas (default: all)")
SEEDS = flags.DEFINE_integer("seeds", None, "trainings of each row (default: 3, with --quick 1)", lower_bound=1)
FIRST_SEED = flags.DEFINE_integer(
    "first_seed", 100, "first seed; the presets were chosen with other seeds", lower_bound=0
)
DATASET = flags.DEFINE_enum(
    "dataset", None, ("phantom", "kermany"), "data set (default: kermany, with --quick phantom)"
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets")
QUICKLY = flags.DEFINE_bool("quick", False, "one epoch at 32 px: a smoke test whose figures mean nothing")

logger = logging.getLogger("experiments")


def main() -> int:
    base, rows = read_table(pathlib.Path(TABLE.value))
    unknown = [name for name in ROWS.value if name not in rows]
    if unknown:
        return fail(f"--rows: {unknown[0]} is not a row of {TABLE.value}. It has {', '.join(rows)}.")
    workdir = pathlib.Path(WORKDIR.value or ("runs/quick_ablation" if QUICKLY.value else "runs/ablation")).expanduser()
    results = pathlib.Path(RESULT_FILE.value or (workdir if QUICKLY.value else RESULTS) / "ablation.jsonl").expanduser()
    results.parent.mkdir(parents=True, exist_ok=True)
    names = ROWS.value or list(rows)
    for number, name in enumerate(names):
        logger.info("%d of %d: %s", number + 1, len(names), rows[name]["title"])
        config = make_config(base, rows[name]["fields"])
        if not any(is_of(row, config) for row in read_rows(results)):
            outcome = train_and_measure(workdir / name, config)
            if isinstance(outcome, int):
                print(f"Stopped.\n{format_resume()}")
                return 128 + outcome
            append_row(results, {"row": name} | outcome)
        measured = {row["row"]: row for row in read_rows(results) if row["row"] in rows}
        write_text(results.with_suffix(".md"), format_page(base, rows, measured, QUICKLY.value))
    print(results.with_suffix(".md").read_text())
    print(f"The scores are in {results}, this page is in {results.with_suffix('.md')}, the runs are in {workdir}.")
    return 0


def is_of(row: dict, config: Config) -> bool:
    """Tells whether a row of --results has the scores of a config. The place of the data set does not matter."""
    return replace_fields(config_from_dict(row["config"]), {"data_dir": config.data.data_dir}) == config


def make_config(base: dict, fields: dict) -> Config:
    """Makes the config of a row: the base's preset, the base's fields, the row's fields, and the flags."""
    seeds = SEEDS.value or (1 if QUICKLY.value else 3)
    values = {key: value for key, value in (base | fields).items() if key != "flagfile"}
    values |= {"dataset": DATASET.value or ("phantom" if QUICKLY.value else "kermany"), "data_dir": DATA_DIR.value}
    values |= {"seed": FIRST_SEED.value, "replicas": seeds} | (QUICK if QUICKLY.value else {})
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return read_preset(EXPERIMENTS / "presets" / base["flagfile"], **values)


def train_and_measure(path: pathlib.Path, config: Config) -> dict | int:
    """Trains the seeds of a row and scores them, or resumes.

    Returns:
      A row of --results without its name, or the number of the signal that stopped the training: {"config", "seeds":
      [{"best": scores, "latest": scores} of each seed], "parameters", "seconds" of all trainings together, "device",
      "versions", "cores", "created", "commit"}, with scores as `robustness.measure_shifts` returns them.
    """
    import jax

    from pneumojax.evaluation.robustness import measure_shifts
    from pneumojax.evaluation.run import open_run
    from pneumojax.training.fit import fit
    from pneumojax.training.replicas import fit_replicas

    cost = path / "cost.json"
    spent = json.loads(cost.read_text())["seconds"] if cost.exists() else 0.0
    started = time.perf_counter()
    progress = Progress(started)
    several = config.train.replicas > 1
    try:
        if several:
            results = fit_replicas(config, path, report=progress.report)
        else:
            results = [fit(config, path, report=progress.report)]
    finally:
        progress.close()
    spent += time.perf_counter() - started
    write_json(cost, {"seconds": spent})
    for result in results:
        if result.stopped_by:
            return result.stopped_by
    folders = [path / f"replica_{seed}" for seed in range(len(results))] if several else [path]
    scores = measure_shifts([open_run(folder, which) for which in ("best", "latest") for folder in folders])
    best, latest = scores[: len(folders)], scores[len(folders) :]
    row = {
        "config": config_to_dict(replace_fields(config, {"data_dir": None})),
        "seeds": [{"best": one, "latest": other} for one, other in zip(best, latest, strict=True)],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(open_run(folders[0]).variables["params"])),
        "seconds": spent,
        **describe_machine(),
        "cores": count_cores(),
        "created": find_time(),
        "commit": find_commit(),
    }
    jax.clear_caches()  # Frees the memory of the compiled steps.
    return row


if __name__ == "__main__":
    run(main)
