"""Formats the differences between exports and networks as a Markdown page."""

from collections.abc import Iterable

from pneumojax.exported_program import OUTPUTS
from pneumojax.reporting.tables import Table

HOW_TO_READ = """\
The largest absolute difference of each output of an export from the prediction of the checkpoint, over random images in
batches of 1, 5 and 32. The limits are 1e-5 for the probabilities of StableHLO, 1e-4 for those of ONNX, and 0 for the
weights in model.safetensors; `export.py` writes no folder that exceeds them. The weights are random. Biases, scales and
batch statistics differ from their initial values, so none can be left out unnoticed. A temperature keeps the
probabilities away from 0 and 1; logits are compared before it, so a network with large logits has larger differences.
The checkpoint predicts as in predict.py, with the algorithms of this package for CPU; the exports have those of XLA or
onnxruntime. A run with dtype=bfloat16 is exported, and compared, in float32.

*StableHLO* is opened with jax.export and *ONNX* with onnxruntime, both on CPU. The program for CUDA and TPU is lowered
but was not run.

Made by experiments/export_parity.py."""

PARITY = (
    "network",
    "px",
    "classes",
    "parameters",
    "StableHLO: probabilities",
    "logits",
    "features",
    "ONNX: probabilities",
    "logits",
    "features",
    "weights",
)
COSTS = (
    "network",
    "StableHLO, MB",
    "ONNX, MB",
    "safetensors, MB",
    "StableHLO, s",
    "ONNX, s",
    "safetensors, s",
    "platforms of StableHLO",
)


def format_page(rows: list[dict], names: Iterable[str]) -> str:
    """Formats the latest row of each network as a Markdown page.

    Args:
      rows: rows of the results file.
      names: names of all networks, in the order of the page.
    """
    order = {name: place for place, name in enumerate(names)}
    latest = {row["network"]: row for row in rows}
    rows = sorted(latest.values(), key=lambda row: order.get(row["network"], len(order)))
    exported, refused = [row for row in rows if not row["reason"]], [row for row in rows if row["reason"]]
    parity = Table(PARITY, [_format_parity(row) for row in exported])
    costs = Table(COSTS, [_format_costs(row) for row in exported])
    lines = ["# Parity of exports", "", HOW_TO_READ, "", parity.format_markdown(), ""]
    if refused:
        lines += ["Not exported:", "", *(f"- {row['network']}: {row['reason']}" for row in refused), ""]
    lines += [
        "## Size and time",
        "",
        "The seconds depend on what else the machine does.",
        "",
        costs.format_markdown(),
        "",
    ]
    lines += ["## Versions", ""]
    groups: dict[str, list[str]] = {}
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        groups.setdefault(f"{row['device']['platform']}, {versions}, commit {row['commit']}", []).append(row["network"])
    if len(groups) == 1:
        return "\n".join([*lines, f"All rows: {next(iter(groups))}.", ""])
    return "\n".join([*lines, *(f"- {text}: {'; '.join(names)}" for text, names in groups.items()), ""])


def _format_parity(row: dict) -> list[str]:
    differences = {name: file["differences"] for name, file in row["files"].items()}
    cells = [row["network"], str(row["image_px"]), str(row["classes"]), f"{row['parameters']:,}"]
    for name in ("model.stablehlo", "model.onnx"):
        cells += [f"{differences[name][output]:.1e}" for output in OUTPUTS]
    return [*cells, f"{differences['model.safetensors']['weights']:.0e}".replace("0e+00", "0")]


def _format_costs(row: dict) -> list[str]:
    sizes = [f"{file['bytes'] / 1e6:.3g}" for file in row["files"].values()]
    seconds = [f"{file['seconds']:.1f}" for file in row["files"].values()]
    return [row["network"], *sizes, *seconds, ", ".join(row["platforms"])]
