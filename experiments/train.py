"""Trains a network, or goes on with a run that was stopped.

    scripts/run experiments/train.py                                                       # drawn radiographs, 1 minute
    scripts/run experiments/train.py --dataset=kermany --flagfile=experiments/presets/resnet.flags --workdir=runs/resnet

The first needs nothing and takes about a minute on 2 CPU cores. The second needs the prepared X-rays
(scripts/prepare_data.py); its preset says what it reaches and how long it takes. Each config field is a flag: --help.
"""

import time

STARTED = time.perf_counter()  # before the imports, which are part of what a user waits for

import pathlib  # noqa: E402
import shlex  # noqa: E402

from absl import flags  # noqa: E402

from experiments.flags import config_from_flags, define_config_flags, run  # noqa: E402
from experiments.progress import Progress, format_stop  # noqa: E402

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run: checkpoints, logs, pictures")
RESTART = flags.DEFINE_bool("restart", False, "delete the run in the workdir and begin anew")


def main() -> int:
    config = config_from_flags()
    workdir = pathlib.Path(WORKDIR.value)
    from pneumojax.train import fit  # Imports JAX: after the flags are known to be good.

    progress = Progress(STARTED)
    try:
        result = fit(config, workdir, RESTART.value, progress.report)
    finally:
        progress.close()

    progress.print_cost()
    if result.stopped_by:
        print(format_stop(result.step, result.total_steps, workdir))
        return 128 + result.stopped_by
    epoch = result.best_step / result.steps_per_epoch
    where = [f"--data_dir={config.data.data_dir}"] if config.data.data_dir else []
    split = config.data.selection_split
    evaluate = shlex.join(["experiments/evaluate.py", f"--workdir={workdir}", f"--split={split}", *where])
    done = "Finished" if result.trained_steps else "Nothing to do: this run has finished its"
    print(
        f"{done} {result.total_steps} steps. Best {split} AUROC {result.best_auroc:.4f}, after epoch {epoch:.0f}; "
        f"threshold {result.threshold['value']:.4f} ({result.threshold['rule']}).\n"
        f"The run lies in {workdir}: checkpoints, config.json, metrics.jsonl, learning_curves.png.\n"
        f"Next: scripts/run {evaluate}"
    )
    return 0


if __name__ == "__main__":
    define_config_flags()
    run(main)
