"""Trains a network, or goes on with a run that was stopped.

    scripts/run experiments/train.py                                                       # drawn radiographs, 1 minute
    scripts/run experiments/train.py --dataset=kermany --flagfile=experiments/presets/resnet.flags --workdir=runs/resnet

The first needs nothing and takes about a minute on 2 CPU cores. The second needs the prepared X-rays
(scripts/prepare_data.py); its preset says what it reaches and how long it takes. Each config field is a flag: --help.
"""

import time

STARTED = time.perf_counter()  # before the imports, which are part of what a user waits for

import faulthandler  # noqa: E402
import pathlib  # noqa: E402
import resource  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402

from absl import flags  # noqa: E402

from experiments.flags import config_from_flags, define_config_flags, run  # noqa: E402
from experiments.progress import Progress  # noqa: E402

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run: checkpoints, logs, pictures")
RESTART = flags.DEFINE_bool("restart", False, "delete the run in the workdir and begin anew")


def main() -> int:
    config = config_from_flags()
    if config.train.multihost:
        faulthandler.disable()  # JAX aborts where its coordinator is gone; its own line says so.
    workdir = pathlib.Path(WORKDIR.value)
    from pneumojax.train import fit  # Imports JAX: after the flags are known to be good.

    progress = Progress()
    try:
        result = fit(config, workdir, RESTART.value, progress.report)
    finally:
        progress.close()

    if progress.first_row is not None:
        speed = f"{progress.images_per_second():.0f} images/s, " if progress.rates else ""
        # ru_maxrss is in KiB on Linux, in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(
            f"\n{speed}first steps after {progress.first_row - STARTED:.1f} s, "
            f"{time.perf_counter() - STARTED:.0f} s in all, peak memory {peak / 2**30:.2f} GiB"
        )
    if result.stopped_by:
        again = shlex.join(word for word in sys.argv if word.lstrip("-").split("=")[0] != "restart")
        print(
            f"Stopped and saved at step {result.step} of {result.total_steps} in {workdir}.\nGo on: scripts/run {again}"
        )
        return 128 + result.stopped_by
    epoch = result.best_step / result.steps_per_epoch
    where = [f"--data_dir={config.data.data_dir}"] if config.data.data_dir else []
    evaluate = shlex.join(["experiments/evaluate.py", f"--workdir={workdir}", "--split=validation", *where])
    done = "Finished" if result.trained_steps else "Nothing to do: this run has finished its"
    print(
        f"{done} {result.total_steps} steps. Best validation AUROC {result.best_auroc:.4f}, after epoch {epoch:.0f}; "
        f"threshold {result.threshold['value']:.4f} ({result.threshold['rule']}).\n"
        f"The run lies in {workdir}: checkpoints, config.json, metrics.jsonl, learning_curves.png.\n"
        f"Next: scripts/run {evaluate}"
    )
    return 0


if __name__ == "__main__":
    define_config_flags()
    run(main)
