"""Trains the reference systems and compares the reported metrics of their projects with ours.

    scripts/run experiments/reproduce.py --dataset=kermany --seeds=3        # all of them
    scripts/run experiments/reproduce.py --systems=a1,e3 --dataset=kermany
    scripts/run experiments/reproduce.py --quick                            # a smoke test on synthetic radiographs

Each system is a preset, experiments/presets/<name>.flags. It is trained once for each seed in
`<workdir>/<name>/seed_<n>`, which is a run that evaluate.py and compare.py accept. After each seed the command writes
`<workdir>/results.md`, results.csv and results.html. If it is stopped, the same command resumes it.

e4 is not a system but a protocol: it trains the other systems again, with epoch and threshold chosen on test, to show
how much this leak improves the metrics. It needs a test split. Without e4, three seeds take about an hour on 2 CPU
cores.
"""

import json
import logging
import pathlib
import statistics
import time
from typing import Any

from absl import flags

from experiments.benchmarks.reproduce_page import PRESETS, write_results
from experiments.benchmarks.systems import LEAKY, SYSTEMS
from experiments.cli import fail, run
from experiments.flags import read_preset
from experiments.progress import Progress, format_resume
from pneumojax.config import Config
from pneumojax.files import read_rows, write_json

# The fields that --quick changes, so that a training is as short as possible.
QUICK = {"epochs": 1, "image_px": 32, "batch_size": 8, "vgg_width": 4, "resnet_width": 4}

WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs (default: runs/reproduce, or runs/quick)")
CHOSEN = flags.DEFINE_list("systems", [*SYSTEMS, LEAKY], "systems to train, separated by commas")
SEEDS = flags.DEFINE_integer(
    "seeds", None, "number of trainings of each system (default: 3, with --quick 1)", lower_bound=1
)
DATASET = flags.DEFINE_enum(
    "dataset", None, ("phantom", "kermany"), "data set (default: kermany, with --quick phantom)"
)
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets")
IMAGE_PX = flags.DEFINE_integer(
    "image_px", None, "height and width of the images in pixels (default: the presets', 64)"
)
QUICKLY = flags.DEFINE_bool("quick", False, "train one epoch at 32 px: a smoke test, whose metrics mean nothing")

logger = logging.getLogger("experiments")


def main() -> int:
    unknown = [name for name in CHOSEN.value if name not in (*SYSTEMS, LEAKY)]
    if unknown or not CHOSEN.value:
        return fail(
            f"--systems: {', '.join(unknown) or 'none'} is not a system. There are {', '.join(SYSTEMS)}, {LEAKY}."
        )
    workdir = pathlib.Path(WORKDIR.value or ("runs/quick" if QUICKLY.value else "runs/reproduce")).expanduser()
    seeds = SEEDS.value or (1 if QUICKLY.value else 3)
    from pneumojax.data.dataset import ensure_prepared  # Imports JAX, so it comes after the flag checks.

    runs = plan_runs(CHOSEN.value, seeds, workdir)
    metadata = ensure_prepared(next(iter(runs.values())).data)
    split = "test" if "test" in metadata["fingerprints"] else "validation"
    if split == "validation":
        runs = {path: config for path, config in runs.items() if not path.parent.name.endswith(LEAKY)}
        if not runs:
            return fail(f"--systems={LEAKY} chooses on test, and this data set has no test split.")
    for number, (path, config) in enumerate(runs.items()):
        logger.info("%d of %d: %s", number + 1, len(runs), path)
        if stopped_by := train_and_evaluate(path, config, split):
            write_results(workdir, [*runs][:number], split, metadata, QUICKLY.value)
            print(f"Stopped.\n{format_resume()}")
            return 128 + stopped_by
        if number + 1 == len(runs) or [*runs][number + 1].name != path.name:  # All systems were trained with this seed.
            write_results(workdir, [*runs][: number + 1], split, metadata, QUICKLY.value)
    print((workdir / "results.md").read_text())
    print(f"Written to {workdir}: results.md, results.csv, results.html and the runs.")
    return 0


def plan_runs(chosen: list[str], seeds: int, workdir: pathlib.Path) -> dict[pathlib.Path, Config]:
    """Plans all trainings, ordered by seed.

    The leaky protocol, which chooses the epoch and the threshold on test, comes last.

    Args:
      chosen: names of the systems to train, from SYSTEMS, and LEAKY for the leaky protocol.
      seeds: number of seeds.
      workdir: parent folder of all runs.

    Returns:
      {folder of a run: its config}.
    """
    fields: dict[str, Any] = dict(QUICK) if QUICKLY.value else {}
    fields |= {"dataset": DATASET.value or ("phantom" if QUICKLY.value else "kermany"), "data_dir": DATA_DIR.value}
    if IMAGE_PX.value:
        fields["image_px"] = IMAGE_PX.value
    systems = [name for name in SYSTEMS if name in chosen]
    protocols = [(systems, "", fields)]
    if LEAKY in chosen:
        protocols.append(
            (systems or [*SYSTEMS], f"_{LEAKY}", fields | {"selection_split": "test", "select_by": "auroc"})
        )
    return {
        workdir / f"{name}{suffix}" / f"seed_{seed}": read_preset(PRESETS / f"{name}.flags", seed=seed, **fields)
        for names, suffix, fields in protocols
        for seed in range(seeds)
        for name in names
    }


def train_and_evaluate(path: pathlib.Path, config: Config, split: str) -> int | None:
    """Trains or resumes a run and evaluates it. Returns the number of the signal that stopped it, or None."""
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
    if result.trained_steps or not cost.exists():  # Earlier starts may have been killed before they wrote this file.
        rates = [
            row["perf/images_per_second"]
            for row in read_rows(path / "metrics.jsonl")
            if "perf/images_per_second" in row
        ]
        seconds = spent + time.perf_counter() - started
        write_json(cost, {"seconds": seconds, "images_per_second": statistics.median(rates) if rates else None})
    if not result.stopped_by and not (path / "evaluation" / split / "metrics.json").exists():
        evaluate(open_run(path, data_dir=config.data.data_dir), split, explain=False)
    jax.clear_caches()  # Frees the memory of the compiled steps.
    return result.stopped_by


if __name__ == "__main__":
    run(main)
