"""Compares threshold rules and calibrations on the held-out folds of a cross-validation.

    scripts/run experiments/cross_validate.py --dataset=kermany --folds=2 --folds_by=series --workdir=runs/series \
        --flagfile=experiments/presets/flagship_small.flags
    scripts/run experiments/rules.py --workdir=runs/series

Each rule chooses on the validation split of a fold and is scored on the fold itself: a rule for another distribution
can be chosen without the official test split. Prints the tables and writes them to `<workdir>/rules.md`. It trains
nothing.
"""

import pathlib

from absl import flags

from experiments.cli import fail, run
from pneumojax.files import write_text

WORKDIR = flags.DEFINE_string("workdir", "runs/folds", "folder of the folds' runs, from cross_validate.py")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "which checkpoint of each run to score")
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets (default: where the runs found them)")


def main() -> int:
    workdir = pathlib.Path(WORKDIR.value).expanduser()
    paths = sorted(workdir.glob("fold_*"), key=lambda path: int(path.name.removeprefix("fold_")))
    if not paths:
        return fail(f"--workdir: {workdir} has no fold_0. Train the folds first with experiments/cross_validate.py.")
    # These import JAX, so they come after the flags were checked.
    from pneumojax.evaluation.rule_comparison import compare_rules, make_tables
    from pneumojax.evaluation.run import open_run

    runs = [open_run(path, CHECKPOINT.value, DATA_DIR.value) for path in paths]
    folds = runs[0].config.data.folds
    if folds != len(runs):
        return fail(f"--workdir: {workdir} has {len(runs)} of {folds} folds. Start cross_validate.py again.")
    tables = make_tables(compare_rules(runs))
    for table in tables:
        print("", table.format_text(), sep="\n")
    text = "\n\n".join(table.format_markdown() for table in tables)
    heading = f"{folds} folds by {runs[0].config.data.folds_by} of {workdir}, means over the folds."
    write_text(workdir / "rules.md", f"# Threshold rules on held-out folds\n\n{heading}\n\n{text}\n")
    print(f"\nWritten to {workdir / 'rules.md'}.")
    return 0


if __name__ == "__main__":
    run(main)
