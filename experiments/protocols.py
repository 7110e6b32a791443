"""Lists published results on these X-rays with their protocols, and checks whether their figures are consistent.

    scripts/run experiments/protocols.py                          # prints the page
    scripts/run experiments/protocols.py --out=experiments/results/protocols.md

The official test split has 390 images of pneumonia and 234 of NORMAL. All figures of a classifier at one threshold
follow from two counts: its true positives and its true negatives. The command tries all pairs of counts, and lists
those whose figures round to the published ones. If there are none, the published figures cannot all be of one
classifier on this split.
"""

import pathlib

import numpy as np
from absl import flags

from experiments.benchmarks.published import PUBLISHED, Published
from experiments.cli import run
from pneumojax.files import write_text
from pneumojax.reporting.tables import Table

PNEUMONIA, NORMAL = 390, 234

COLUMNS = (
    "system",
    "weights at the start",
    "epoch and threshold chosen on",
    "seeds",
    "figures on test",
    "counts that give them",
)

INTRODUCTION = """# Protocols

Published results on the official test split (390 images of pneumonia, 234 of NORMAL), and how they were obtained. A
figure is comparable only if neither the epoch nor the threshold was chosen on the test split. The last column lists the
true positives and true negatives whose figures round to the published ones. *none* means that no single decision on
these 624 images has these figures: they are means over several trainings, or one of them is of other images or a
misprint. Written by

```
scripts/run experiments/protocols.py --out=experiments/results/protocols.md
```
"""

OUT = flags.DEFINE_string("out", None, "Markdown file to write (default: only print)")


def main() -> int:
    page = f"{INTRODUCTION}\n{make_table().format_markdown()}\n"
    if OUT.value:
        write_text(pathlib.Path(OUT.value).expanduser(), page)
    print(page)
    return 0


def make_table() -> Table:
    """Makes the table of all published systems."""
    rows = []
    for one in PUBLISHED:
        figures = ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in one.figures.items())
        rows.append([one.system, one.weights, one.chosen_on, one.seeds, figures, format_counts(one)])
    return Table(COLUMNS, rows)


def format_counts(one: Published) -> str:
    """Formats the counts that have the published figures, as text such as "TP 363, TN 211". Without any, says why."""
    known = {name: text for name, text in one.figures.items() if name in compute_figures(np.array(1), np.array(1))}
    if not known:
        return "not a binary decision"
    counts = find_counts(known)
    if not counts:
        alone = [name.replace("_", " ") for name, text in known.items() if not find_counts({name: text})]
        return "none" + (f" ({', '.join(alone)} cannot be reached by any count)" if alone else "")
    first, last = counts[0], counts[-1]
    if len(counts) == 1:
        return f"TP {first[0]}, TN {first[1]}"
    return f"{len(counts)}, from TP {first[0]}, TN {first[1]} to TP {last[0]}, TN {last[1]}"


def find_counts(figures: dict[str, str]) -> list[tuple[int, int]]:
    """Finds all counts whose figures round to the given ones.

    Args:
      figures: {name: text}, such as {"sensitivity": "0.932"}, with names from `compute_figures`. A figure with three
        decimal places is compared to three decimal places.

    Returns:
      A list of (true positives, true negatives), in increasing order.
    """
    positives, negatives = np.meshgrid(np.arange(PNEUMONIA + 1), np.arange(NORMAL + 1), indexing="ij")
    values, agrees = compute_figures(positives, negatives), np.ones(positives.shape, bool)
    for name, text in figures.items():
        half = 0.5 * 10.0 ** -len(text.partition(".")[2])
        agrees &= np.abs(values[name] - float(text)) <= half + 1e-9
    return [(int(tp), int(tn)) for tp, tn in np.argwhere(agrees)]


def compute_figures(true_positives: np.ndarray, true_negatives: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the figures that follow from the counts of a classifier on the official test split.

    Args:
      true_positives: array of numbers of images, 0..390.
      true_negatives: array of numbers of images, 0..234, with the same shape.

    Returns:
      {name: array of the same shape}, 0..1; NaN where a figure does not exist.
    """
    false_positives, false_negatives = NORMAL - true_negatives, PNEUMONIA - true_positives
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = true_positives / (true_positives + false_positives)
        negative_value = true_negatives / (true_negatives + false_negatives)
        f1 = 2 * true_positives / (2 * true_positives + false_positives + false_negatives)
        f1_normal = 2 * true_negatives / (2 * true_negatives + false_positives + false_negatives)
    sensitivity, specificity = true_positives / PNEUMONIA, true_negatives / NORMAL
    return {
        "accuracy": (true_positives + true_negatives) / (PNEUMONIA + NORMAL),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": f1,
        "precision_macro": (precision + negative_value) / 2,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "f1_macro": (f1 + f1_normal) / 2,
    }


if __name__ == "__main__":
    run(main)
