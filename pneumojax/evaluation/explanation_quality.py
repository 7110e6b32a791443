"""Measures whether the maps of `explain.py` describe the network: randomisation, deletion, insertion, and location."""

import datetime
import json
import logging
from collections.abc import Callable

import jax
import numpy as np
from scipy import stats

from pneumojax.attribution import FRACTIONS, make_removal_curves
from pneumojax.data.dataset import Split, load_split
from pneumojax.errors import UserError
from pneumojax.evaluation import point_metrics
from pneumojax.evaluation.bootstrap import PatientBootstrap, summarise
from pneumojax.evaluation.explain import choose_random, make_batches, make_explainer
from pneumojax.evaluation.operating_point import load_or_choose_threshold
from pneumojax.evaluation.perturbations import LUNGS_AREA, keep_centre
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.randomisation import randomise_in_steps
from pneumojax.evaluation.run import Run
from pneumojax.files import write_json
from pneumojax.reporting.figures.explanation import TITLES
from pneumojax.reporting.format import format_interval
from pneumojax.reporting.tables import Table

logger = logging.getLogger(__name__)

# Name of the control: random blobs, which have no relation to the image. CONTROL_POSITIONS is their number in a row.
CONTROL, CONTROL_POSITIONS = "random", 7

# The file of the results, next to those of the audit.
FILE = "explanations.json"

EMPTY = "All maps are 0 everywhere."

COLUMNS = {
    "deletion": "deletion AUC",
    "insertion": "insertion AUC",
    "outside": "share outside",
}

CAPTION = (
    "Deletion AUC: mean probability of the decided class while the most important pixels are removed; small is good. "
    "Insertion AUC: the same while only they are kept; large is good. "
    f"Share outside: share of the absolute map outside of the central {100 * LUNGS_AREA:.0f} % of the area, which "
    "contains the lungs of the average training image."
)

CASCADE_CAPTION = (
    "Rank correlation of the absolute maps with those of the same network after its layers, from the named one to the "
    "output, were initialised again. Without random layers it is 1. It should fall to about 0, or the maps do not "
    "depend on what was learned."
)


def measure_explanations(run: Run, split_name: str, count: int, seed: int = 0) -> dict:
    """Measures the methods on random images of a split.

    Writes explanations.json to `<workdir>/evaluation/<split>/`.

    Args:
      run: the run.
      split_name: train, validation or test.
      count: number of images; at most all.
      seed: seed of the random images, weights and control.

    Returns:
      {"methods": {method: {name of COLUMNS: {"value", "ci95"}, "cascade": {stage: {"value", "ci95"}}, "empty": number
      of maps that are 0 everywhere}}, "counts", "run"}. "cascade" has the rank correlations with the maps of the steps
      of `randomise_in_steps`. The methods include CONTROL, which has none. Means are over the images, and intervals are
      bootstrapped by patient. Empty maps are left out of the share and the correlations.

    Raises:
      UserError: the split or the run is missing or damaged.
    """
    split = load_split(run.config.data, split_name)
    split = split.select(choose_random(len(split), count, seed))
    images, bootstrap = np.asarray(split.images), PatientBootstrap(split.patient_ids)
    threshold = load_or_choose_threshold(run, run.config.threshold)["value"]
    scores = point_metrics.compute_binary_scores(compute_probabilities(run.predict(images)))
    positive = scores >= threshold
    explainer, compute_curves = make_explainer(run), make_removal_curves(run.config)
    steps = randomise_in_steps(run, seed)
    methods = {}
    for method in (*explainer.methods, CONTROL):
        logger.info("Measuring %s on %d %s images", method, len(images), split_name)
        is_control = method == CONTROL
        maps = _make_control(images.shape, seed) if is_control else explainer.explain(method, images, positive)
        numbers = dict(
            zip(("deletion", "insertion"), _compute_areas(run, compute_curves, images, positive, maps), strict=True)
        )
        numbers["outside"] = compute_share_outside(maps)
        row: dict = {name: _summarise(values, bootstrap) for name, values in numbers.items()}
        row["cascade"] = {}
        for stage, variables in () if is_control else steps.items():
            others = explainer.explain(method, images, positive, variables)
            row["cascade"][stage] = _summarise(correlate_ranks(maps, others), bootstrap)
        methods[method] = row | {"empty": int((np.abs(maps).max((1, 2)) == 0).sum())}
    results = {
        "methods": methods,
        "counts": {
            "images": len(split),
            "patients": len(np.unique(split.patient_ids)),
            "positive": int(positive.sum()),
        },
        "run": {
            "workdir": str(run.workdir),
            "checkpoint": {"which": run.checkpoint, "step": run.step},
            "split": {"name": split.name, "fingerprint": split.fingerprint},
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    }
    path = run.workdir / "evaluation" / split_name / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)
    return results


def read_explanations(run: Run, split: Split) -> dict | None:
    """Reads the result of `measure_explanations`.

    Returns:
      The result. None if nothing was measured, or only for another checkpoint or data set.

    Raises:
      UserError: explanations.json is damaged.
    """
    path = run.workdir / "evaluation" / split.name / FILE
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text())
        measured = results["run"]["checkpoint"]["step"], results["run"]["split"]["fingerprint"]
        # An older version measured no cascade.
        is_complete = all("cascade" in row for row in results["methods"].values())
        return results if is_complete and measured == (run.step, split.fingerprint) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}). Delete it, and run experiments/explain.py --measure=200 again."
        ) from error


def compute_share_outside(maps: np.ndarray) -> np.ndarray:
    """Computes the share of the absolute map outside of the lungs' average region, [N, H, W] -> [N], NaN if it is 0."""
    sizes = np.abs(maps).astype(np.float64)
    inside = keep_centre(np.ones((1, *maps.shape[1:]), np.uint8), LUNGS_AREA)
    total = sizes.sum((1, 2))
    return np.divide((sizes * (1 - inside)).sum((1, 2)), total, out=np.full(len(maps), np.nan), where=total > 0)


def correlate_ranks(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes Spearman's correlation of absolute maps, [N, H, W] each -> [N]. It is NaN if a map is constant."""
    ranks = [stats.rankdata(np.abs(one).reshape(len(one), -1), axis=1) for one in (maps, others)]
    centred = [one - one.mean(axis=1, keepdims=True) for one in ranks]
    spread = np.sqrt(np.prod([(one**2).sum(axis=1) for one in centred], axis=0))
    return np.divide((centred[0] * centred[1]).sum(axis=1), spread, out=np.full(len(maps), np.nan), where=spread > 0)


def make_tables(results: dict) -> tuple[Table, Table]:
    """Makes the tables of the methods and of the randomisation; results from `measure_explanations`."""
    methods = results["methods"]
    rows = [
        (TITLES.get(method, "Random blobs"), *(format_interval(row[name]) for name in COLUMNS))
        for method, row in methods.items()
    ]
    cascades = [row["cascade"] for method, row in methods.items() if method != CONTROL]
    *partial, last = cascades[0]
    names = {stage: stage if i == 0 else f"{stage} to output" for i, stage in enumerate(partial)} | {last: "all layers"}
    steps = [(name, *(format_interval(cascade[stage]) for cascade in cascades)) for stage, name in names.items()]
    columns = ("random layers", *(TITLES[method] for method in methods if method != CONTROL))
    return Table(("method", *COLUMNS.values()), rows, CAPTION), Table(columns, steps, CASCADE_CAPTION)


def _compute_areas(
    run: Run, compute_curves: Callable, images: np.ndarray, positive: np.ndarray, maps: np.ndarray
) -> np.ndarray:
    """Computes the areas under the curves of deletion and insertion, [2, N] float64."""
    areas = []
    for i, (batch, sign, kept) in enumerate(make_batches(images, positive)):
        ours = np.resize(maps[i * len(batch) :], batch.shape)  # The last batch is filled up.
        curves = np.asarray(compute_curves(run.variables, batch, sign, ours), np.float64)
        areas.append(np.trapezoid(curves[:, :kept], FRACTIONS, axis=-1))
    return np.concatenate(areas, axis=1)


def _make_control(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random blobs, [N, H, W] float32, 0..1."""
    coarse = np.random.default_rng(seed).random((shape[0], CONTROL_POSITIONS, CONTROL_POSITIONS), np.float32)
    return np.asarray(jax.image.resize(coarse, shape, "linear"))


def _summarise(values: np.ndarray, bootstrap: PatientBootstrap) -> dict:
    """Summarises the mean of values [N], without those that are NaN."""
    exists = ~np.isnan(values)
    weights = bootstrap.weights[:, exists]
    total = weights.sum(axis=1)
    means = np.divide(weights @ values[exists], total, out=np.full(len(weights), np.nan), where=total > 0)
    return summarise(means, EMPTY)
