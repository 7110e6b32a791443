"""Trains a network, or goes on with a run that was stopped.

    scripts/run experiments/train.py                                                       # drawn radiographs, 1 minute
    scripts/run experiments/train.py --dataset=kermany --flagfile=experiments/presets/resnet.flags --workdir=runs/resnet

The first needs nothing and takes about a minute on 2 CPU cores. The second needs the prepared X-rays
(scripts/prepare_data.py); its preset says what it reaches and how long it takes. Each config field is a flag: --help.
"""

import time

STARTED = time.perf_counter()  # before the imports, which are part of what a user waits for

import logging  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import resource  # noqa: E402
import shlex  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402

from absl import flags  # noqa: E402

from experiments.flags import config_from_flags, define_config_flags, run  # noqa: E402

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run: checkpoints, logs, pictures")
RESTART = flags.DEFINE_bool("restart", False, "delete the run in the workdir and begin anew")


class Progress:
    """A progress bar, or log lines where there is no terminal."""

    def __init__(self):
        # A terminal that does not tell its size (0 x 0) would be given an empty bar.
        self.has_terminal = sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0
        self.bar = None
        self.rates = []
        self.auroc = ""
        self.first_step_seconds = None
        self.last_line = time.monotonic()

    def report(self, row: dict, total_steps: int) -> None:
        if self.first_step_seconds is None:
            self.first_step_seconds = time.perf_counter() - STARTED
        rate = row.get("perf/images_per_second")
        if rate:
            self.rates.append(rate)
        if "val/auroc" in row:
            self.auroc = f"val AUROC {row['val/auroc']:.4f}"
        if self.has_terminal:
            self._draw(row, total_steps)
        elif "val/auroc" in row or time.monotonic() - self.last_line > 30:
            self.last_line = time.monotonic()
            loss = f"loss {row.get('train/loss', row.get('val/loss')):.4f} ({'val' if 'val/loss' in row else 'train'})"
            speed = f"{self.images_per_second():.0f} images/s" if self.rates else ""
            parts = [f"epoch {row['epoch']:.1f}", f"step {row['step']}/{total_steps}", loss, self.auroc, speed]
            logging.getLogger("experiments").info(", ".join(part for part in parts if part))

    def images_per_second(self) -> float:
        return statistics.median(self.rates)

    def _draw(self, row: dict, total_steps: int) -> None:
        import tqdm

        if self.bar is None:
            # From here on, so that neither compilation nor an earlier start counts in the rate.
            self.bar = tqdm.tqdm(total=total_steps, initial=row["step"], unit="step", dynamic_ncols=True)
        self.bar.n = row["step"]
        parts = [f"loss {row['train/loss']:.4f}"] if "train/loss" in row else []
        parts += [self.auroc] if self.auroc else []
        parts += [f"{self.rates[-1]:.0f} images/s"] if self.rates else []
        self.bar.set_postfix_str(", ".join(parts))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def main() -> int:
    config = config_from_flags()
    workdir = pathlib.Path(WORKDIR.value)
    from pneumojax.train import fit  # Imports JAX: after the flags are known to be good.

    progress = Progress()
    try:
        result = fit(config, workdir, RESTART.value, progress.report)
    finally:
        progress.close()

    if progress.first_step_seconds is not None:
        speed = f"{progress.images_per_second():.0f} images/s, " if progress.rates else ""
        # ru_maxrss is in KiB on Linux, in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(
            f"\n{speed}first steps after {progress.first_step_seconds:.1f} s, "
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
