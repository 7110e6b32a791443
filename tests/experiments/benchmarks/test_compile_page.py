"""Tests of the page of compiled programs."""

from experiments.benchmarks.compile_page import (
    COLUMNS,
    format_misfit,
    format_page,
    format_row,
    format_table,
    keep_latest,
)

FITS = {
    "what": "compile",
    "target": "v5e:2x4",
    "model": "resnet50",
    "image_px": 224,
    "batch_size": 1024,
    "dtype": "bfloat16",
    "num_images": 4449,
    "fields": {"resnet_stride": "1x1"},
    "compiler_flags": {},
    "device": {"kind": "TPU v5 lite", "platform": "tpu", "count": 8},
    "versions": {"jax": "0.10.2", "libtpu": "0.0.42"},
    "fits": True,
    "memory": {"needed": 5 * 2**30, "usable": 16 * 2**30, "arguments": 2**30, "temporaries": 4 * 2**30},
    "compile_seconds": 220.4,
    "flops_per_step": 24.5e12,
    "bytes_per_step": 30_700_000_000,
    "bytes_per_image": 239_800_000.0,
    "other_convolutions": 3,
    "kernels": {"fusion": 567, "other": 237},
    "convolutions": {"HWNC bfloat16": 155, "HWCN float32": 3},
    "transposes": {"count": 2, "bytes": 51_800_000},
    "copies": {"count": 0, "bytes": 0},
    "collectives": {"all-reduce": {"count": 107, "bytes": 94_500_000}},
    "seconds_bound": 0.0375,
    "images_per_second_bound": 27307.0,
    "bound_by": "bytes",
    "created": "2026-11-25T04:00:00+00:00",
    "commit": "0123456789ab",
    "command": "experiments/compile.py --target=v5e:2x4 --model=resnet50",
}
UNKNOWN = {
    name for name in FITS if name.endswith(("_step", "_image", "_bound", "_seconds", "_convolutions", "bound_by"))
}
UNKNOWN |= {"kernels", "convolutions", "transposes", "copies", "collectives"}
TOO_LARGE = {name: value for name, value in FITS.items() if name not in UNKNOWN}
TOO_LARGE |= {"batch_size": 8192, "fits": False, "memory": {"needed": 40 * 2**30, "usable": 16 * 2**30}}


def test_a_row_has_a_cell_for_each_column():
    cells = dict(zip(COLUMNS, format_row(FITS), strict=True))
    assert cells["work"] == "resnet50 224 px, batch 1024, bfloat16, resnet_stride 1x1"
    assert (cells["memory"], cells["largest batch"]) == ("5.00 of 16 GiB", "")
    assert (cells["TFLOP a step"], cells["GB a step"], cells["MB an image"]) == ("24.5", "30.7", "239.8")
    assert cells["kernels"] == "567 fusion, 237 other" and cells["other convolutions"] == "3 of 158"
    assert (cells["transposed"], cells["copied"]) == ("2, 51.8 MB", "0")
    assert (cells["bound, ms a step"], cells["images/s, at most"]) == ("37.5 (bytes)", "27,307")
    assert format_row(FITS | {"largest_batch": 4096})[3] == "4,096"
    assert format_row(FITS | {"largest_batch": None})[3] == "none"


def test_a_program_that_does_not_fit_says_so_and_what_would_fit():
    cells = format_row(TOO_LARGE)
    assert len(cells) == len(COLUMNS) and cells[2] == "40.00 of 16 GiB: does not fit" and set(cells[4:]) == {""}
    sentence = format_misfit(TOO_LARGE)
    assert "v5e:2x4: batch_size 8192 does not fit: it needs 40.00 GiB for each device, which has 16.00 GiB" in sentence
    assert "A batch of about 3272 would fit; --largest_batch finds it." in sentence
    assert format_misfit(TOO_LARGE | {"largest_batch": 2048}).endswith("The largest batch that fits is 2048.")
    assert format_misfit(TOO_LARGE | {"largest_batch": None}).endswith("No batch fits.")


def test_the_page_has_the_latest_row_of_each_work_with_its_layouts_communication_and_command():
    old, new = FITS | {"commit": "old"}, FITS | {"commit": "new"}
    flagged = FITS | {"compiler_flags": {"XLA_FLAGS": "--xla_a=1"}}
    assert keep_latest([old, TOO_LARGE, flagged, new]) == [new, TOO_LARGE, flagged]
    assert "resnet_stride 1x1, `XLA_FLAGS=--xla_a=1`" in format_page([flagged])
    page = format_page([old, TOO_LARGE, new])
    assert "| v5e:2x4 | resnet50 224 px, batch 1024" in page and "does not fit" in page
    assert "155 HWNC bfloat16, 3 HWCN float32" in page and "| all-reduce | 107 | 94.5 |" in page
    assert "- `experiments/compile.py --target=v5e:2x4 --model=resnet50`: v5e:2x4, jax 0.10.2, libtpu 0.0.42" in page
    assert "commit new" in page and "commit old" not in page
    assert "Communication" not in format_page([TOO_LARGE])
    assert "images/s, at most" in format_table([FITS])
