"""Trains a network, or goes on with a run that was stopped.

    scripts/run experiments/train.py                                                       # drawn radiographs, 1 minute
    scripts/run experiments/train.py --dataset=kermany --flagfile=experiments/presets/resnet.flags --workdir=runs/resnet
    scripts/run experiments/train.py --workdir=runs/seeds --replicas=4                     # 4 seeds in one program
    scripts/run experiments/train.py --workdir=runs/sweep --replicas=4 --sweep=rates.toml

The first needs nothing and takes about a minute on 2 CPU cores. The second needs the prepared X-rays
(scripts/prepare_data.py); its preset says what it reaches and how long it takes. The file of a sweep holds lists with a
value for each replica, as `learning_rate = [1e-4, 3e-4, 1e-3, 3e-3]`. Each config field is a flag: --help.
"""

import time

STARTED = time.perf_counter()  # before the imports, which are part of what a user waits for

import faulthandler  # noqa: E402
import pathlib  # noqa: E402
import shlex  # noqa: E402

from absl import flags  # noqa: E402

from experiments.cli import run  # noqa: E402
from experiments.flags import config_from_flags, define_config_flags, format_flags  # noqa: E402
from experiments.progress import Progress, format_stop  # noqa: E402
from pneumojax.config import SWEPT, Config, config_to_dict, plan_replicas  # noqa: E402
from pneumojax.reporting.tables import Table  # noqa: E402

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run: checkpoints, logs, pictures")
RESTART = flags.DEFINE_bool("restart", False, "delete the run in the workdir and begin anew")


def main() -> int:
    config = config_from_flags()
    if config.train.multihost:
        faulthandler.disable()  # JAX aborts where its coordinator is gone; its own line says so.
    workdir = pathlib.Path(WORKDIR.value)
    plans = plan_replicas(config)
    # They import JAX: after the flags are known to be good.
    from pneumojax.training.fit import fit
    from pneumojax.training.replicas import fit_replicas

    progress = Progress(STARTED)
    arguments = (config, workdir, RESTART.value, progress.report)
    try:
        results = fit_replicas(*arguments) if len(plans) > 1 else [fit(*arguments)]
    finally:
        progress.close()

    progress.print_cost()
    result = max(results, key=lambda one: one.step)  # What has diverged is behind.
    if result.stopped_by:
        print(format_stop(result.step, result.total_steps, workdir))
        return 128 + result.stopped_by
    split = config.data.selection_split
    words = format_flags({"workdir": workdir, "split": split, "data_dir": config.data.data_dir})
    evaluate = shlex.join(["experiments/evaluate.py", *words])
    done = "Finished" if result.trained_steps else "Nothing to do: this run has finished its"
    if len(plans) == 1:
        epoch = result.best_step / result.steps_per_epoch
        print(
            f"{done} {result.total_steps} steps. Best {split} AUROC {result.best_auroc:.4f}, after epoch {epoch:.0f}; "
            f"threshold {result.threshold['value']:.4f} ({result.threshold['rule']}).\n"
            f"The run lies in {workdir}: checkpoints, config.json, metrics.jsonl, learning_curves.png."
        )
    else:
        print(
            f"{done} {result.total_steps} steps of {len(plans)} replicas. Each is a run of its own in "
            f"{workdir / 'replica_*'}.\n{format_replicas(plans, results, split)}"
        )
    print(f"Next{', all as one ensemble' if len(plans) > 1 else ''}: scripts/run {evaluate}")
    return 0


def format_replicas(plans: list[Config], results: list, split: str) -> str:
    """A table with a line for each replica: what is its own, and what it reached (a `FitResult` each)."""
    values = [config_to_dict(plan) for plan in plans]
    own = ["seed", *(name for name in SWEPT if len({one[name] for one in values}) > 1)]
    rows = []
    for replica, (one, result) in enumerate(zip(values, results, strict=True)):
        reached = ("diverged", "", "")
        if result.threshold:
            epoch = result.best_step / result.steps_per_epoch
            reached = (f"{result.best_auroc:.4f}", f"{epoch:.0f}", f"{result.threshold['value']:.4f}")
        rows.append((str(replica), *(str(one[name]) for name in own), *reached))
    return Table(("replica", *own, f"best {split} AUROC", "after epoch", "threshold"), rows).format_text()


if __name__ == "__main__":
    define_config_flags()
    run(main)
