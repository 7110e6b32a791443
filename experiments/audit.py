"""Tests whether a run's AUROC depends on the lungs: scores perturbed images, and fits simple linear models.

    scripts/run experiments/audit.py --workdir=runs/resnet
    scripts/run experiments/audit.py --workdir=runs/resnet --split=test

The network is scored on images without the centre, with only the centre, at 8 x 8 pixels and with shuffled pixels. If
the AUROC stays high on images without the lungs, the network uses more than the lungs. Linear models are fitted to
features of the training images that contain little or no anatomy: image size, brightness, histogram, 8 x 8 pixels and
oriented gradients. Writes audit.html, audit.json and the folder audit with figures to
`<workdir>/evaluation/<split>/`. The page also shows the results of `explain.py --measure`, if they exist: the share of
the explanations outside of the lungs. It takes half a minute on 2 CPU cores.
"""

import shlex

from absl import flags

from experiments.cli import run
from experiments.flags import format_flags

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run")
SPLIT = flags.DEFINE_enum("split", "validation", ("train", "validation", "test"), "split to score")
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets (default: where the run found them)")


def main() -> int:
    # These import JAX, so they come after the flag checks.
    from pneumojax.evaluation.audit import audit, make_tables
    from pneumojax.evaluation.run import open_run
    from pneumojax.reporting.caveats import describe_synthetic
    from pneumojax.sharding import initialize

    initialize(multihost=False)
    opened = open_run(WORKDIR.value, data_dir=DATA_DIR.value)
    results = audit(opened, SPLIT.value)
    counts = results["counts"]
    classes = ", ".join(f"{number} {name}" for name, number in counts["classes"].items())
    print(f"{SPLIT.value}: {counts['images']} images of {counts['patients']} patients ({classes})")
    if warning := describe_synthetic(results["run"]["data"]):
        print(warning)
    for table in make_tables(results):
        print("", table.format_text(), sep="\n")
    print("", *results["reading"], sep="\n")
    data = opened.config.data
    words = format_flags({"dataset": data.dataset, "data_dir": data.data_dir})
    explore = shlex.join(["experiments/explore.py", *words])
    print(f"Written to {opened.workdir / 'evaluation' / SPLIT.value}: audit.html, audit.json, audit/")
    print(f"Next, to see how the classes differ: scripts/run {explore}")
    return 0


if __name__ == "__main__":
    run(main)
