"""Exports networks of every kind to every format of export.py, and compares the exports with the networks.

    scripts/run pip install -e '.[onnx]'
    scripts/run experiments/export_parity.py                          # all networks and presets: half an hour
    scripts/run experiments/export_parity.py --rows=a1,flagship       # some of them

The weights are random, so nothing is trained and no data set is read. For each network the command appends a row to
--results, and writes a Markdown page of all rows with the same name. The exit code is 1 if an export differs from its
network by more than export.py accepts.
"""

import logging
import pathlib

from absl import flags

from experiments.benchmarks.records import RESULTS
from experiments.cli import fail, run
from pneumojax.files import append_row, read_rows, write_text

ROWS = flags.DEFINE_list("rows", [], "networks and presets to export, separated by commas (default: all)")
RESULT_FILE = flags.DEFINE_string("results", str(RESULTS / "export.jsonl"), "file of JSON rows to append to")

logger = logging.getLogger("experiments")


def main() -> int:
    # They import JAX, so they come after the flags were parsed.
    from experiments.benchmarks import parity, parity_page

    cases = parity.list_cases()
    known = dict.fromkeys(name.split()[0] for name in cases)  # A network has several cases.
    if unknown := [name for name in ROWS.value if name not in known]:
        return fail(f"--rows: {unknown[0]} is not a network or preset. There are {', '.join(known)}.")
    chosen = [name for name in cases if not ROWS.value or name.split()[0] in ROWS.value]
    results = pathlib.Path(RESULT_FILE.value).expanduser()
    results.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, name in enumerate(chosen):
        logger.info("%d of %d: %s", number + 1, len(chosen), name)
        rows.append(parity.measure(name, cases[name]))
        append_row(results, rows[-1])
        write_text(results.with_suffix(".md"), parity_page.format_page(read_rows(results), cases))
    print(f"{len(rows)} rows added to {results} and to the tables in {results.with_suffix('.md')}.")
    failures = parity.find_failures(rows)
    return fail(" ".join(failures)) if failures else 0


if __name__ == "__main__":
    run(main)
