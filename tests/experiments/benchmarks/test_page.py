"""Tests of the page of benchmark results."""

import pytest

from experiments.benchmarks import cases
from experiments.benchmarks import page as benchmark_page


def make_row(what="step", seconds=1.0, **choices):
    row = {name: None for name in cases.KEY_COLUMNS} | {"what": what, "framework": "pneumojax"}
    row |= {"model": "cnn", "image_px": 64, "batch_size": 32, "dtype": "float32", "fields": {}, "devices": None}
    speed = {"median": 320 / seconds, "low": 300 / seconds, "high": 340 / seconds}
    row |= {"seconds": {"median": seconds, "low": seconds, "high": seconds}, "images_per_second": speed}
    device = {"kind": "NVIDIA H200", "platform": "gpu", "count": choices.get("devices") or 1}
    row |= {"device": device, "cores": 2, "load": 0.1, "versions": {"jax": "0.10.2"}, "commit": "abc"}
    row |= {"created": "2026-01-02T03:04:05+00:00", "flops_per_step": 3e12, "bytes_per_step": 1e10}
    return row | choices


def test_growth_is_the_power_of_what_was_varied_and_the_last_row_of_a_case_counts():
    rows = [make_row(seconds=9.0, image_px=32)]
    rows += [make_row(seconds=(px / 32) ** 2, image_px=px) for px in (32, 64, 128)]
    rows += [make_row(seconds=3.0, batch_size=64, devices=devices) for devices in (1, 2, 4)]
    rows += [make_row("epoch", seconds=2.0 * limit, limit=limit) for limit in (100, 200)]
    kept = benchmark_page.keep_latest(rows)
    assert len(kept) == len(rows) - 1
    growth = {one["varied"]: one for one in benchmark_page.compute_growth(kept)}
    assert growth.keys() == {"image_px", "devices"}
    assert growth["image_px"]["power"] == pytest.approx(2)
    assert growth["devices"]["power"] == pytest.approx(0)


def test_the_page_shows_ratios_speeds_roofline_and_growth(tmp_path, draw_pictures):
    rows = [make_row(seconds=(px / 32) ** 2, image_px=px) for px in (32, 64, 128)]
    rows += [make_row(seconds=1 / devices, batch_size=64, devices=devices) for devices in (1, 2, 4)]
    rows += [make_row(model="resnet18", ratio=1.25), make_row(model="resnet18", framework="torch", seconds=1.25)]
    rows[0]["load"] = 7.0
    with draw_pictures():
        page = benchmark_page.write_page(tmp_path / "rows.jsonl", rows).read_text()
    for text in ("Compared with PyTorch and Keras", "1.25", "How cost grows", "Roofline", "1 of 8 cases", "2.00"):
        assert text in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"step_image_px.png", "step_devices.png", "roofline.png"}
    assert page.count("data:image/png") == 3


def test_flags_of_xla_are_compared_with_the_row_without_and_failures_have_their_reason(tmp_path):
    rows = [make_row(xla_flags="none", seconds=2.0), make_row(xla_flags="--xla_a=1", seconds=1.0)]
    reason = "pneumojax: Unknown flag in XLA_FLAGS: --xla_b=1"
    failed = make_row(xla_flags="--xla_b=1", error=reason)
    for name in ("device", "seconds", "images_per_second"):
        del failed[name]
    measured_later = make_row(model="resnet18", error="out of memory"), make_row(model="resnet18")
    page = benchmark_page.write_page(tmp_path / "rows.jsonl", [*rows, failed, *measured_later]).read_text()
    for text in ("Flags of XLA", "+100.0%", "+0.0%", "Not measured", reason):
        assert text in page
    assert "out of memory" not in page
    assert reason in benchmark_page.format_table([failed])
