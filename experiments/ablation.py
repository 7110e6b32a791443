"""Trains the rows of an ablation, one change at a time, and writes the table of what each change gains or costs.

    scripts/run experiments/ablation.py --dataset=kermany                      # all rows of experiments/ablation.toml
    scripts/run experiments/ablation.py --dataset=kermany --rows=base,aspect   # some of them
    scripts/run experiments/ablation.py --quick                                # a smoke test on synthetic radiographs

A row is a base with some fields of the config changed. It is trained once for each seed, as replicas of one program, in
`<workdir>/<row>`. Each is a run like any other: evaluate.py, robustness.py and compare.py accept
`<workdir>/<row>/replica_<n>`. The same command resumes what was stopped and trains only rows that are new. Rows are
scored on validation only, as it is and with nuisances swapped between the classes (see robustness.py). After each row
the command writes `<workdir>/ablation.md`.
"""

import json
import logging
import pathlib
import time

from absl import flags

from experiments.benchmarks.ablation_page import format_page, read_table
from experiments.cli import fail, run
from experiments.flags import read_preset
from experiments.progress import Progress, format_resume
from pneumojax.config import Config
from pneumojax.files import write_json, write_text

EXPERIMENTS = pathlib.Path(__file__).parent

# What --quick changes: training is as short as possible.
QUICK = {"epochs": 1, "image_px": 32, "batch_size": 8, "resnet_width": 4, "progressive_px": ()}

TABLE = flags.DEFINE_string("table", str(EXPERIMENTS / "ablation.toml"), "TOML file of the base and the rows")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs (default: runs/ablation, or runs/quick_ablation)")
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
    configs = {name: make_config(base, rows[name]["fields"]) for name in ROWS.value or rows}
    results = {}
    for number, (name, config) in enumerate(configs.items()):
        logger.info("%d of %d: %s", number + 1, len(configs), rows[name]["title"])
        outcome = train_and_measure(workdir / name, config)
        if isinstance(outcome, int):
            print(f"Stopped.\n{format_resume()}")
            return 128 + outcome
        results[name] = outcome
        write_text(workdir / "ablation.md", format_page(base, rows, results, QUICKLY.value))
    print((workdir / "ablation.md").read_text())
    print(f"Written to {workdir}: ablation.md and the runs.")
    return 0


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
      The content of ablation.json, or the number of the signal that stopped the training: {"seconds", "seeds":
      [{"best": scores, "latest": scores} of each seed]}, with scores as `robustness.measure_shifts` returns them.
    """
    import jax

    from pneumojax.evaluation.robustness import measure_shifts
    from pneumojax.evaluation.run import open_run
    from pneumojax.training.fit import fit
    from pneumojax.training.replicas import fit_replicas

    stored, cost = path / "ablation.json", path / "cost.json"
    if stored.exists():
        return json.loads(stored.read_text())
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
    write_json(cost, {"seconds": spent + time.perf_counter() - started})
    for result in results:
        if result.stopped_by:
            return result.stopped_by
    folders = [path / f"replica_{seed}" for seed in range(len(results))] if several else [path]
    measured = {
        "seconds": json.loads(cost.read_text())["seconds"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(open_run(folders[0]).variables["params"])),
        "seeds": [
            {which: measure_shifts(open_run(folder, which)) for which in ("best", "latest")} for folder in folders
        ],
    }
    write_json(stored, measured)
    jax.clear_caches()  # Frees the memory of the compiled steps.
    return measured


if __name__ == "__main__":
    run(main)
