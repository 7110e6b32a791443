"""Formats the results of compile.py as a text table and as a Markdown page."""

import json

from experiments.benchmarks.compiling import estimate_batch
from experiments.flags import format_value
from pneumojax.reporting.tables import Table

GIB = 2**30

HOW_TO_READ = """\
The training step, compiled for devices that were not there. Nothing was run, so no figure is a measured speed. All
columns but *TFLOP a step* and *images/s* are for one device and one step.

- *memory*: what the program needs, and what it can use. On GPU, JAX reserves 75 % of the memory for programs, and
  XLA chooses convolution algorithms when it runs there, so the memory that they need for themselves is missing.
- *largest batch*: searched among the number of devices times the powers of two.
- *TFLOP a step*: of all devices together, counted before optimisation.
- *GB a step*: what the kernels read from and write to main memory. An array counts each time that a kernel reads or
  writes it, so a cache can make it less.
- *other convolutions*: those of another dtype than the config's and, on GPU, those whose images are not NHWC.
- *transposed*, *copied*: activations only; their number and the size of the results.
- *bound*: the roofline, which is the FLOP divided by the peak FLOP/s or the bytes divided by the memory bandwidth,
  whichever is longer. The rates are those of the data sheets that pneumojax/training/chips.py names.

Made by experiments/compile.py."""

COLUMNS = (
    "target",
    "work",
    "memory",
    "largest batch",
    "TFLOP a step",
    "GB a step",
    "MB an image",
    "kernels",
    "other convolutions",
    "transposed",
    "copied",
    "bound, ms a step",
    "images/s, at most",
    "compile s",
)


def format_table(rows: list[dict]) -> str:
    """Formats rows of results as a text table."""
    return Table(COLUMNS, [format_row(row) for row in rows]).format_text()


def format_row(row: dict) -> tuple[str, ...]:
    """Returns the table cells of a row of results, in the order of COLUMNS. Missing values are empty cells."""
    memory = row["memory"]
    needed = f"{memory['needed'] / GIB:.2f} of {memory['usable'] / GIB:.0f} GiB"
    cells = [row["target"], format_work(row), needed if row["fits"] else f"{needed}: does not fit"]
    # Without --largest_batch, the column is empty. "none" means that one image for each device is too many.
    cells.append((f"{row['largest_batch']:,}" if row["largest_batch"] else "none") if "largest_batch" in row else "")
    if "flops_per_step" not in row:
        return (*cells, *[""] * (len(COLUMNS) - len(cells)))
    return (
        *cells,
        f"{row['flops_per_step'] / 1e12:.4g}",
        f"{row['bytes_per_step'] / 1e9:.4g}",
        f"{row['bytes_per_image'] / 1e6:.4g}",
        ", ".join(f"{number} {kind}" for kind, number in row["kernels"].items()),
        f"{row['other_convolutions']} of {sum(row['convolutions'].values())}",
        format_total(row["transposes"]),
        format_total(row["copies"]),
        f"{row['seconds_bound'] * 1e3:.3g} ({row['bound_by']})",
        f"{row['images_per_second_bound']:,.0f}",
        f"{row['compile_seconds']:.0f}",
    )


def format_work(row: dict) -> str:
    """Describes what was compiled."""
    work = [f"{row['model']} {row['image_px']} px", f"batch {row['batch_size']}", row["dtype"]]
    work += [f"{name} {format_value(value)}" for name, value in row["fields"].items()]
    return ", ".join([*work, *(f"`{name}={value}`" for name, value in row["compiler_flags"].items())])


def format_total(total: dict) -> str:
    """Formats a number of instructions and the size of their results, such as "33, 1.2 MB"."""
    return f"{total['count']}, {total['bytes'] / 1e6:.3g} MB" if total["count"] else "0"


def format_misfit(row: dict) -> str:
    """Says that a row's program is too large, and which batch would fit."""
    memory = row["memory"]
    needs = f"{memory['needed'] / GIB:.2f} GiB for each device, which has {memory['usable'] / GIB:.2f} GiB for programs"
    if "largest_batch" in row:
        what = f"The largest batch that fits is {row['largest_batch']}" if row["largest_batch"] else "No batch fits"
    else:
        batch = estimate_batch(row["batch_size"], memory, row["device"]["count"])
        what = f"A batch of about {batch} would fit" if batch else "Not even one image for each device would fit"
        what += "; --largest_batch finds it"
    return f"{row['target']}: batch_size {row['batch_size']} does not fit: it needs {needs}. {what}."


def keep_latest(rows: list[dict]) -> list[dict]:
    """Removes each row for which a later row compiles the same work for the same target."""

    def identify(row: dict) -> str:
        named = ("target", "model", "image_px", "batch_size", "dtype", "num_images", "fields", "compiler_flags")
        return json.dumps([row[name] for name in named], sort_keys=True)

    return list({identify(row): row for row in rows}.values())


def format_page(rows: list[dict]) -> str:
    """Formats the latest row of each work and target as a Markdown page.

    Args:
      rows: rows of the results file.
    """
    rows = keep_latest(rows)
    lines = ["# Programs for accelerators", "", HOW_TO_READ, ""]
    lines += [Table(COLUMNS, [format_row(row) for row in rows]).format_markdown(), ""]
    if cells := [_format_convolutions(row) for row in rows if row.get("convolutions")]:
        text = "By the layout of their images in memory, from slowest to fastest, and by dtype."
        table = Table(("target", "work", "convolutions"), cells)
        lines += ["## Convolutions", "", text, "", table.format_markdown(), ""]
    if cells := [line for row in rows for line in _list_collectives(row)]:
        text = "What the devices exchange in a step. Bytes are the size of the results on one device."
        table = Table(("target", "work", "kind", "number", "MB"), cells)
        lines += ["## Communication", "", text, "", table.format_markdown(), ""]
    lines += ["## Commands", "", "In the order of the first table:", ""]
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        lines.append(f"- `{row['command']}`: {row['target']}, {versions}, commit {row['commit']}")
    return "\n".join(lines) + "\n"


def _format_convolutions(row: dict) -> tuple[str, ...]:
    layouts = (f"{number} {layout}" for layout, number in row["convolutions"].items())
    return row["target"], format_work(row), ", ".join(layouts)


def _list_collectives(row: dict) -> list[tuple[str, ...]]:
    return [
        (row["target"], format_work(row), kind, str(total["count"]), f"{total['bytes'] / 1e6:.3g}")
        for kind, total in row.get("collectives", {}).items()
    ]
