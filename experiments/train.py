"""Trains a network, or resumes a run that was stopped.

    scripts/run experiments/train.py                                             # synthetic radiographs, 1 minute
    scripts/run experiments/train.py --dataset=kermany --flagfile=experiments/presets/resnet.flags --workdir=runs/resnet
    scripts/run experiments/train.py --workdir=runs/seeds --replicas=4           # four seeds in one program
    scripts/run experiments/train.py --workdir=runs/sweep --replicas=4 --sweep=rates.toml

The first command needs no data and takes about a minute on 2 CPU cores. The second needs the prepared X-rays
(scripts/prepare_data.py). The comments in its preset state the results and the training time. A sweep file lists one
value for each replica, such as `learning_rate = [1e-4, 3e-4, 1e-3, 3e-3]`. Each config field is a flag: see --help.
"""

import time

STARTED = time.perf_counter()  # Before the imports, because a user waits for them too.

import faulthandler  # noqa: E402
import pathlib  # noqa: E402
import shlex  # noqa: E402

from absl import flags  # noqa: E402

from experiments.cli import run  # noqa: E402
from experiments.flags import config_from_flags, define_config_flags, format_flags  # noqa: E402
from experiments.progress import Progress, format_replicas, format_stop  # noqa: E402
from pneumojax.training.sweep import plan_replicas  # noqa: E402

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run: checkpoints, logs, figures")
RESTART = flags.DEFINE_bool("restart", False, "delete the run in the workdir and start again")


def main() -> int:
    config = config_from_flags()
    if config.train.multihost:
        faulthandler.disable()  # JAX aborts if its coordinator is lost; its own message is enough.
    workdir = pathlib.Path(WORKDIR.value)
    configs = plan_replicas(config)
    progress = Progress(STARTED)
    arguments = (config, workdir, RESTART.value, progress.report)
    try:
        # These import JAX, so they come after the flags were checked.
        if len(configs) == 1:
            from pneumojax.training.fit import fit

            results = [fit(*arguments)]
        else:
            from pneumojax.training.replicas import fit_replicas

            results = fit_replicas(*arguments)
    finally:
        progress.close()

    progress.print_cost()
    result = max(results, key=lambda one: one.step)  # A diverged replica stopped at an earlier step.
    if result.stopped_by:
        print(format_stop(result.step, result.total_steps, workdir))
        return 128 + result.stopped_by
    split = config.data.selection_split
    words = format_flags({"workdir": workdir, "split": split, "data_dir": config.data.data_dir})
    evaluate = shlex.join(["experiments/evaluate.py", *words])
    done = "Finished" if result.trained_steps else "Nothing to do: this run has already finished its"
    if len(configs) == 1:
        assert result.best_step is not None and result.threshold is not None  # The run is finished.
        epoch = result.best_step / result.steps_per_epoch
        print(
            f"{done} {result.total_steps} steps. "
            f"Best checkpoint: {split} AUROC {result.best_auroc:.4f}, after epoch {epoch:.0f}; "
            f"threshold {result.threshold['value']:.4f} ({result.threshold['rule']}).\n"
            f"The run is in {workdir}: checkpoints, config.json, metrics.jsonl, learning_curves.png."
        )
    else:
        print(
            f"{done} {result.total_steps} steps of {len(configs)} replicas. Each is a run of its own in "
            f"{workdir / 'replica_*'}.\n{format_replicas(configs, results, split)}"
        )
    print(f"Next{', all as one ensemble' if len(configs) > 1 else ''}: scripts/run {evaluate}")
    return 0


if __name__ == "__main__":
    define_config_flags()
    run(main)
