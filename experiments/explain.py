"""Shows which pixels support a decision of a trained run: Grad-CAM, occlusion and integrated gradients as pictures.

    scripts/run experiments/explain.py --workdir=runs/resnet --out=pictures child.jpeg folder archive.zip
    scripts/run experiments/explain.py --workdir=runs/resnet --out=pictures --split=validation --count=8
    scripts/run experiments/explain.py --workdir=runs/resnet --out=pictures --split=validation --choose=certain
    scripts/run experiments/explain.py --workdir=runs/resnet --out=pictures --split=validation --measure=200

PATH is as in predict.py. For each image, --out gets a PNG file with the image, its maps, the decision at the stored
threshold and the calibrated probability of pneumonia. explanations.csv has a row for each file.

--measure tests the maps on random images of the split: the share outside of the lungs, deletion, insertion, and whether
the maps change when more and more layers become random, from the output to the input. A map that hardly changes when
all layers are random shows the image more than the network, and cannot explain a decision. The results are also in
explanations.json in `<workdir>/evaluation/<split>/`. The next audit.py shows them on its page.
"""

import pathlib
import warnings

from absl import flags

from experiments.cli import fail, run

WORKDIR = flags.DEFINE_string("workdir", "runs/latest", "folder of the run")
OUT = flags.DEFINE_string("out", None, "folder of the pictures", required=True)
SPLIT = flags.DEFINE_enum(
    "split", None, ("train", "validation", "test"), "split whose images are explained, instead of PATH"
)
COUNT = flags.DEFINE_integer("count", 8, "number of images of the split", lower_bound=1)
CHOOSE = flags.DEFINE_enum(
    "choose", "random", ("random", "certain"), "random images, or the most certain decisions, half of them wrong ones"
)
MEASURE = flags.DEFINE_integer(
    "measure", 0, "number of images of the split on which the maps are tested; 0: no test", lower_bound=0
)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "which checkpoint to explain")
DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared data sets (default: where the run found them)")


def main(*paths: str) -> int:
    if bool(paths) == (SPLIT.value is not None):
        return fail("give either files or --split.")
    if MEASURE.value and SPLIT.value is None:
        return fail("--measure needs --split.")
    # These import JAX, so they come after the flag checks.
    from pneumojax.data.image_sources import find_images
    from pneumojax.evaluation.explain import explain_files, explain_split
    from pneumojax.evaluation.explanation_quality import make_tables, measure_explanations
    from pneumojax.evaluation.run import open_run
    from pneumojax.reporting.caveats import NOT_A_DEVICE, describe_synthetic
    from pneumojax.sharding import initialize

    warnings.simplefilter("ignore")  # Pillow warns about damage that it tolerates.
    initialize(multihost=False)
    opened, out = open_run(WORKDIR.value, CHECKPOINT.value, DATA_DIR.value), pathlib.Path(OUT.value).expanduser()
    if SPLIT.value is None:
        rows = explain_files(opened, find_images(paths), out)
    else:
        rows = explain_split(opened, SPLIT.value, COUNT.value, CHOOSE.value, out)
    if not rows:
        return fail(f"{', '.join(paths)}: there is no file to explain.")
    if MEASURE.value and SPLIT.value is not None:
        results = measure_explanations(opened, SPLIT.value, MEASURE.value)
        print(f"{results['counts']['images']} {SPLIT.value} images\n")
        for table in make_tables(results):
            print(f"{table.format_text()}\n\n{table.caption}\n")
    if warning := describe_synthetic(opened.info["data"]):
        print(warning)
    failed = sum(row["error"] is not None for row in rows)
    print(f"{out}: {len(rows) - failed:,} pictures, {failed:,} files that could not be read. {NOT_A_DEVICE}")
    return 0


if __name__ == "__main__":
    run(main, ("[PATH...]",))
