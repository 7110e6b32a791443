"""Tests of the rows of metrics.jsonl: speed, host share and utilisation."""

import json
import time

import jax
import numpy as np

from pneumojax.config import config_from_dict
from pneumojax.training import metric_log
from pneumojax.training.metric_log import Watch, watch


def test_the_end_is_noted_without_waiting_even_of_what_fails():
    class Slow:
        def block_until_ready(self):
            time.sleep(0.05)

    class Failing:
        def block_until_ready(self):
            raise RuntimeError

    started = time.perf_counter()
    slow = watch([Slow()])
    assert started <= slow.dispatched <= time.perf_counter() < started + 0.05
    assert slow.wait_end() >= started + 0.05
    assert watch([Failing()]).wait_end() >= started


def test_the_host_costs_what_the_devices_wait(tmp_path, monkeypatch):
    moments = []
    monkeypatch.setattr(metric_log.time, "perf_counter", lambda: moments.pop(0))
    monkeypatch.setattr(metric_log, "find_peak_flops", lambda kind, dtype: 50.0)
    log = metric_log.MetricLog(tmp_path, config_from_dict({}), 4, 8, lambda row, total: None)
    log.costs = {"perf/flops_per_step": 40.0, "perf/compile_seconds": 9.0}
    sums = {name: np.ones(2, np.float32) for name in ("loss", "correct")} | {"count": np.full(2, 16.0, np.float32)}
    # Times of (start of the host's work, dispatch, end on the devices). The host is in time, late by 3, in time, and
    # late by 1 after a validation, whose time does not count.
    for step, (started, dispatched, ended) in enumerate([(0, 1, 11), (2, 14, 21), (15, 16, 31), (40, 41, 45)]):
        moments[:] = [started]
        log.start_chunk()
        log.end_chunk(2 * step + 2, sums, Watch(dispatched, lambda ended=ended: ended))
    log.flush()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {name: rows[0][name] for name in log.costs} == log.costs
    assert "perf/host_share" not in rows[0]
    assert [row["perf/host_share"] for row in rows[1:]] == [0.3, 0, 0.2]
    np.testing.assert_allclose([row["perf/images_per_second"] for row in rows[1:]], [3.2, 3.2, 6.4])
    # Two steps of 40 FLOP take 10 and 5 seconds, on 8 devices with 50 FLOP/s each.
    np.testing.assert_allclose([row["perf/model_flop_utilisation"] for row in rows[1:]], [0.02, 0.02, 0.04])
    assert not any(name in row for row in rows[1:] for name in log.costs)


def test_a_row_is_written_while_the_next_chunk_still_runs(tmp_path):
    log = metric_log.MetricLog(tmp_path, config_from_dict({}), 4, 8, lambda row, total: None)
    sums = {name: np.ones(2, np.float32) for name in ("loss", "correct", "count")}
    log.end_chunk(2, sums, watch(sums))
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, x: x @ x / 500, x))(np.ones((500, 500), np.float32))
    log.end_chunk(4, sums, watch([slow]))
    assert not slow.is_ready()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 2
