"""Writes the model card, the data card and three reporting checklists of a trained run, from what the run recorded.

    scripts/run experiments/evaluate.py --workdir=runs/resnet --split=test       # the figures that the cards show
    scripts/run experiments/card.py --workdir=runs/resnet --out=cards

Writes model_card.md (with the head that Hugging Face reads), data_card.md, claim_2024.md (CLAIM 2024), tripod_ai.md
(TRIPOD+AI) and stard_ai.md (STARD-AI). The results are those that evaluate.py, robustness.py, audit.py and explain.py
--measure stored in the folder of the run. Nothing is invented: what is missing is marked with the command that writes
it, and what no run can know is marked "unknown: to be filled by the authors".
"""

import pathlib

from absl import flags

from experiments.cli import run

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run")
OUT = flags.DEFINE_string("out", None, "folder to make (default: cards in the folder of the run)")
CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ("best", "latest"), "the best checkpoint by the run's --select_by, or the latest one"
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder of prepared data sets, to count the patients (default: where the run found them)"
)


def main() -> None:
    # These import JAX, so they come after the flags were parsed.
    from pneumojax.evaluation.cards import write_cards
    from pneumojax.evaluation.run import open_run
    from pneumojax.sharding import initialize

    initialize(multihost=False)
    opened = open_run(WORKDIR.value, CHECKPOINT.value, DATA_DIR.value)
    out = pathlib.Path(OUT.value).expanduser() if OUT.value else opened.workdir / "cards"
    names = write_cards(opened, out)
    if not list(opened.workdir.glob("evaluation/*/metrics.json")):
        print(
            f"{opened.workdir} has not been evaluated, so the cards have no results. Evaluate it with evaluate.py, and "
            "write the cards again."
        )
    print(f"Written to {out}: {', '.join(names)}")


if __name__ == "__main__":
    run(main)
