"""Measures how far a run's AUROC falls when nuisances are swapped between the classes and images are corrupted.

    scripts/run experiments/robustness.py --workdir=runs/resnet
    scripts/run experiments/robustness.py --workdir=runs/resnet --checkpoint=latest

Validation images resemble the training images, so a network that learned a property of this data set scores well on
them. This command swaps such properties (aspect, sharpness, exposure, contrast, border, marks) between the classes, and
changes exposure, contrast, gamma, blur, noise, JPEG quality and zoom of all images. Writes robustness.html,
robustness.json and robustness.png to `<workdir>/evaluation/<split>/`. It takes half a minute on 2 CPU cores.
"""

import shlex

from absl import flags

from experiments.cli import run
from experiments.flags import format_flags

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run")
SPLIT = flags.DEFINE_enum("split", "validation", ("train", "validation", "test"), "split to score")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "which checkpoint to score")
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets (default: where the run found them)")


def main() -> int:
    # These import JAX, so they come after the flags were checked.
    from pneumojax.evaluation.robustness import explain, make_tables, measure_robustness
    from pneumojax.evaluation.run import open_run
    from pneumojax.reporting.caveats import describe_synthetic
    from pneumojax.sharding import initialize

    initialize(multihost=False)
    opened = open_run(WORKDIR.value, CHECKPOINT.value, DATA_DIR.value)
    results = measure_robustness(opened, SPLIT.value)
    if warning := describe_synthetic(results["run"]["data"]):
        print(warning)
    for table in make_tables(results):
        print("", table.format_text(), sep="\n")
    print("", *explain(results), sep="\n")
    audit = shlex.join(["experiments/audit.py", *format_flags({"workdir": WORKDIR.value, "data_dir": DATA_DIR.value})])
    print(f"Written to {opened.workdir / 'evaluation' / SPLIT.value}: robustness.html, robustness.json, robustness.png")
    print(f"Next, to see what the network reads outside of the lungs: scripts/run {audit}")
    return 0


if __name__ == "__main__":
    run(main)
