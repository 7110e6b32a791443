"""Writes metrics.jsonl, which has a row for each chunk of training steps and each validation."""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import jax
import numpy as np

from pneumojax.config import Config
from pneumojax.errors import Diverged
from pneumojax.files import append_row
from pneumojax.optimizer import make_schedule
from pneumojax.training.chips import find_peak_flops
from pneumojax.training.interrupts import STOP_REQUESTED

# A function that is called with each row and the total number of steps. If it returns True, training stops.
Report = Callable[[dict[str, float], int], bool | None]


def report_nothing(row: dict[str, float], total_steps: int) -> None:
    """A `Report` that does nothing."""
    del row, total_steps


@dataclasses.dataclass(frozen=True)
class Watch:
    """Times of a computation, in seconds of `time.perf_counter()`.

    Attributes:
      dispatched: when the computation was dispatched.
      wait_end: blocks until the computation has ended and returns the time of its end.
    """

    dispatched: float
    wait_end: Callable[[], float]


def watch(arrays: Any) -> Watch:
    """Measures in a background thread when a computation ends.

    Args:
      arrays: results of a computation that was just dispatched, as any tree of arrays.
    """
    dispatched = time.perf_counter()
    ended: concurrent.futures.Future[float] = concurrent.futures.Future()

    def wait() -> None:
        with contextlib.suppress(Exception):  # A failed computation raises where its results are fetched.
            jax.block_until_ready(arrays)
        ended.set_result(time.perf_counter())

    # A daemon thread that still waits inside JAX when Python exits would abort the process.
    threading.Thread(target=wait).start()
    return Watch(dispatched, ended.result)


class ChunkLog(Protocol):
    """The interface by which a training logs its chunks: a `MetricLog`, or the logs of several replicas."""

    stop_requested: int

    def start_size(self, costs: dict[str, float]) -> None:
        """Called after the first chunk of an image size was dispatched, with the cost of its steps (`compile_cost`)."""

    def start_chunk(self) -> None:
        """Called before the host prepares a chunk."""

    def end_chunk(self, step: int, sums: dict[str, jax.Array], chunk: Watch) -> None:
        """Called after a chunk was dispatched.

        Args:
          step: training steps of the run after this chunk.
          sums: {metric: [S] float32} on the devices, each a sum over the images of a batch; [R, S] with replicas.
          chunk: the times of the chunk.
        """

    def flush(self) -> None:
        """Called after the last chunk of an epoch."""


class MetricLog:
    """Writes the rows of metrics.jsonl.

    The metrics of a chunk are fetched only after the next chunk is dispatched, so that the devices never wait for the
    log.

    Args:
      workdir: folder of the run.
      config: the config of the run.
      steps_per_epoch: training steps per epoch.
      total_steps: training steps of the whole run.
      report: called with each row in the process that writes the log.
      replica: index of the replica whose metrics are logged; None for a single run.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        config: Config,
        steps_per_epoch: int,
        total_steps: int,
        report: Report,
        replica: int | None = None,
    ):
        self.path = workdir / "metrics.jsonl"
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.report = report
        self.replica = replica
        self.stop_requested = 0  # STOP_REQUESTED once the report asked for a stop.
        # Computed here, because during the training a computation would wait for the chunks that were dispatched.
        self.learning_rates = np.asarray(make_schedule(config.optimizer, total_steps)(np.arange(total_steps)))
        self.peak_flops = find_peak_flops(jax.devices()[0].device_kind, config.model.dtype)
        self.costs: dict[str, float] = {}
        self.pending: tuple[int, dict, float, Watch] | None = None
        self.started = 0.0
        self.ended: float | None = None

    def start_size(self, costs: dict[str, float]) -> None:
        """Stores the cost of a step at a new image size. The row of the first chunk has it instead of a speed."""
        self.costs, self.ended = costs, None

    def start_chunk(self) -> None:
        """Stores when the host starts to prepare a chunk. If a device is idle later, it waits for the host."""
        self.started = time.perf_counter()

    def end_chunk(self, step: int, sums: dict[str, jax.Array], chunk: Watch) -> None:
        """Stores the metrics of a chunk that was just dispatched, and writes the row of the previous chunk."""
        current = (step, sums, self.started, chunk)
        self.flush()
        self.pending = current

    def flush(self) -> None:
        """Waits for the chunk that was dispatched last, and writes its row.

        Raises:
          Diverged: the loss of that chunk is not finite.
        """
        if self.pending is None:
            return
        step, sums, started, chunk = self.pending
        self.pending = None
        sums = jax.device_get(sums)
        if self.replica is not None:
            sums = {name: values[self.replica] for name, values in sums.items()}
        losses, count = sums["loss"] / sums["count"], sums["count"].sum()
        if not np.isfinite(losses).all():
            self._raise_diverged(step - len(losses) + 1 + int(np.argmin(np.isfinite(losses))))
        row = {
            "train/loss": float(sums["loss"].sum() / count),
            "train/accuracy": float(sums["correct"].sum() / count),
            "train/learning_rate": float(self.learning_rates[step - 1]),
        }
        self._write(step, row | self._compute_speed(started, chunk, count, len(losses)))

    def _compute_speed(self, started: float, chunk: Watch, images: float, num_steps: int) -> dict[str, float]:
        """Returns the `perf/` columns of a chunk: in the first chunk of a size the cost of a step, then the speed."""
        before, self.ended = self.ended, chunk.wait_end()
        if before is None:
            return self.costs
        free = max(started, before)  # From this time on the devices had no other work.
        seconds = self.ended - free
        speed = {
            "perf/images_per_second": float(images / seconds),
            "perf/host_share": max(0.0, chunk.dispatched - free) / seconds,
        }
        if self.peak_flops and "perf/flops_per_step" in self.costs:
            reached = self.costs["perf/flops_per_step"] * num_steps / seconds
            speed["perf/model_flop_utilisation"] = reached / (self.peak_flops * jax.device_count())
        return speed

    def write_validation(self, step: int, row: dict[str, float]) -> None:
        """Writes a validation row.

        Raises:
          Diverged: the loss is not finite.
        """
        if not np.isfinite(row["val/loss"]):
            self._raise_diverged(step)
        self._write(step, row)

    def _write(self, step: int, row: dict[str, float]) -> None:
        row = {"step": step, "epoch": step / self.steps_per_epoch} | row
        if jax.process_index() == 0:
            append_row(self.path, row)
            if self.report(row, self.total_steps) is True:
                self.stop_requested = STOP_REQUESTED

    def _raise_diverged(self, step: int) -> NoReturn:
        raise Diverged(
            f"the loss is not finite at step {step} of {self.total_steps}. The last good checkpoint is kept in "
            f"{self.path.parent}. Train again with a lower --learning_rate in another --workdir."
        )
