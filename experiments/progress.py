"""Shows the progress of a training or a prediction, its cost, the command that resumes it, and results of replicas."""

import logging
import os
import pathlib
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pneumojax.config import SWEPT, Config, config_to_dict
from pneumojax.reporting.tables import Table

if TYPE_CHECKING:
    import tqdm

    from pneumojax.evaluation.prediction_table import Counts


class Progress:
    """Shows the progress as a bar, or as log lines if standard error is not a terminal.

    Args:
      started: start of the command, in seconds of `time.perf_counter()`.
    """

    def __init__(self, started: float):
        self.started = started
        self.has_terminal = _has_terminal()
        self.bar: tqdm.tqdm | None = None
        self.rates: list[float] = []
        self.auroc = ""
        self.first_step_seconds: float | None = None
        self.last_line = time.monotonic()

    def report(self, row: dict, total_steps: int) -> None:
        """Shows a row of the training's log.

        Args:
          row: a row of metrics.jsonl.
          total_steps: training steps of the whole run.
        """
        if self.first_step_seconds is None:
            self.first_step_seconds = time.perf_counter() - self.started
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
        """Returns the median speed of all chunks so far, in images per second."""
        return statistics.median(self.rates)

    def _draw(self, row: dict, total_steps: int) -> None:
        import tqdm

        if self.bar is None:
            # The bar starts with the first row, so that its rate counts neither compilation nor an earlier start.
            self.bar = tqdm.tqdm(total=total_steps, initial=row["step"], unit="step", dynamic_ncols=True)
        self.bar.n = row["step"]
        parts = [f"loss {row['train/loss']:.4f}"] if "train/loss" in row else []
        parts += [self.auroc] if self.auroc else []
        parts += [f"{self.rates[-1]:.0f} images/s"] if self.rates else []
        self.bar.set_postfix_str(", ".join(parts))

    def print_cost(self) -> None:
        """Prints speed, time and memory. Prints nothing if no step was trained."""
        if self.first_step_seconds is None:
            return
        speed = f"{self.images_per_second():.0f} images/s, " if self.rates else ""
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(
            f"\n{speed}first steps after {self.first_step_seconds:.1f} s, "
            f"{time.perf_counter() - self.started:.0f} s in total, peak memory {peak / 2**30:.2f} GiB"
        )

    def close(self) -> None:
        """Ends the progress bar."""
        if self.bar is not None:
            self.bar.close()


class FileProgress:
    """Shows how many files are predicted, as a bar, or as log lines if standard error is not a terminal."""

    def __init__(self) -> None:
        self.has_terminal = _has_terminal()
        self.bar: tqdm.tqdm | None = None
        self.started: tuple[float, int] | None = None
        self.last_line = time.monotonic()

    def report(self, counts: "Counts") -> None:
        """Shows the numbers of the table, after a batch. The first batch starts the clock of the speed."""
        if self.has_terminal:
            import tqdm

            if self.bar is None:
                self.bar = tqdm.tqdm(initial=counts.files, unit="file", dynamic_ncols=True)
            self.bar.update(counts.files - self.bar.n)
            self.bar.set_postfix_str(f"{counts.uncertain} uncertain, {counts.flagged} flagged, {counts.failed} failed")
        elif self.started and time.monotonic() - self.last_line > 10:
            self.last_line = time.monotonic()
            rate = (counts.files - self.started[1]) / (self.last_line - self.started[0])
            logging.getLogger("experiments").info(
                "%d files, %d uncertain, %d flagged, %d failed, %.0f files/s",
                counts.files,
                counts.uncertain,
                counts.flagged,
                counts.failed,
                rate,
            )
        self.started = self.started or (time.monotonic(), counts.files)

    def close(self) -> None:
        """Ends the progress bar."""
        if self.bar is not None:
            self.bar.close()


def _has_terminal() -> bool:
    # Some terminals report the size 0 x 0, for which tqdm draws an empty bar.
    return sys.stderr.isatty() and min(os.get_terminal_size(sys.stderr.fileno())) > 0


def format_resume() -> str:
    """Returns a line with the command that resumes this one, which is the same command without --restart."""
    words = [word for word in sys.argv if word.lstrip("-").split("=")[0] != "restart"]
    return f"To resume: scripts/run {shlex.join(words)}"


def format_stop(step: int, total_steps: int, workdir: pathlib.Path) -> str:
    """Returns a message in two lines: the step at which a training was stopped, and the command that resumes it."""
    return f"Stopped and saved at step {step} of {total_steps} in {workdir}.\n{format_resume()}"


def format_replicas(configs: Sequence[Config], results: Sequence, split: str) -> str:
    """Formats a table with a row for each replica: the fields that differ, and its AUROC or "diverged".

    Args:
      configs: the config of each replica.
      results: the `FitResult` of each replica.
      split: the selection split, for the heading.
    """
    values = [config_to_dict(config) for config in configs]
    own = ["seed", *(name for name in SWEPT if len({one[name] for one in values}) > 1)]
    rows = []
    for replica, (one, result) in enumerate(zip(values, results, strict=True)):
        reached = ("diverged", "", "")
        if result.threshold:
            epoch = result.best_step / result.steps_per_epoch
            reached = (f"{result.best_auroc:.4f}", f"{epoch:.0f}", f"{result.threshold['value']:.4f}")
        rows.append((str(replica), *(str(one[name]) for name in own), *reached))
    return Table(("replica", *own, f"{split} AUROC", "after epoch", "threshold"), rows).format_text()
