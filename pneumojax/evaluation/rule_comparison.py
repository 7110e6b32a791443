"""Compares rules for the threshold and images for the calibration, on the held-out folds of a cross-validation.

A rule chooses on the validation split of a fold, and is judged on the images of that fold. With folds by series these
come from another series, so a good rule is one that survives a shift of the data.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from pneumojax.data.dataset import Split, load_split
from pneumojax.evaluation.aspect import add_swapped
from pneumojax.evaluation.calibration import compute_ece
from pneumojax.evaluation.point_metrics import compute_binary_scores, compute_decisions
from pneumojax.evaluation.predict import compute_probabilities
from pneumojax.evaluation.recalibration import apply_calibration, fit_calibration
from pneumojax.evaluation.run import Run
from pneumojax.evaluation.thresholds import choose_threshold
from pneumojax.reporting.tables import Table

# Title: the arguments of `choose_threshold`. Scores are recalibrated first, so 0.5 is the most probable class.
RULES: Mapping[str, Mapping] = {
    "sensitivity 0.95": {"rule": "target_sensitivity", "target_sensitivity": 0.95},
    "sensitivity 0.975": {"rule": "target_sensitivity", "target_sensitivity": 0.975},
    "sensitivity 0.99": {"rule": "target_sensitivity", "target_sensitivity": 0.99},
    "Youden": {"rule": "youden"},
    "fixed at 0.5": {"rule": "fixed", "fixed": 0.5},
}

# Title of the images on which a rule chooses: whether copies with swapped aspects are among them.
CHOSEN_ON = {"validation": False, "validation and swapped": True}

MEASURES = ("sensitivity", "specificity", "accuracy")


def compare_rules(runs: Sequence[Run]) -> dict:
    """Applies each rule to each run, and scores it on the run's own fold, as it is and with aspects swapped.

    Args:
      runs: from `open_run`, one for each fold of a config.

    Returns:
      {"rules": [{"rule", "chosen_on", "images", "sensitivity", "specificity", "accuracy": mean over the folds, "worst":
      the lowest accuracy of a fold}], "calibration": [{"chosen_on", "images", "ece": mean over the folds}]}. images is
      held out, or held out and swapped. chosen_on is a key of CHOSEN_ON, or for a calibration "as trained".

    Raises:
      UserError: the data set is not prepared or damaged.
    """
    folds = [_score_fold(run) for run in runs]
    rules, calibration = [], []
    for images in ("held out", "held out, swapped"):
        for chosen_on in ("as trained", *CHOSEN_ON):
            errors = [compute_ece(fold["labels"], fold[images][chosen_on]) for fold in folds]
            calibration.append({"chosen_on": chosen_on, "images": images, "ece": float(np.mean(errors))})
        for title, arguments in RULES.items():
            for chosen_on in CHOSEN_ON:
                measured = [_measure(fold, images, chosen_on, arguments) for fold in folds]
                means = {name: float(np.mean([one[name] for one in measured])) for name in MEASURES}
                worst = min(one["accuracy"] for one in measured)
                rules.append({"rule": title, "chosen_on": chosen_on, "images": images, **means, "worst": worst})
    return {"rules": rules, "calibration": calibration}


def _score_fold(run: Run) -> dict:
    """Scores the validation split and the fold of a run, recalibrated on both kinds of images.

    Returns:
      {"labels": [N] of the fold, "held out" and "held out, swapped": {"as trained" or key of CHOSEN_ON: [N] scores},
      "selection": {key of CHOSEN_ON: (labels, scores)}}.
    """
    task = run.config.model.task
    validation = add_swapped(load_split(run.config.data, "validation"))
    held_out = load_split(run.config.data, "test")
    both = add_swapped(held_out)

    def predict(split: Split) -> np.ndarray:
        return compute_probabilities(run.predict(split.images))

    of_validation, of_fold = predict(validation), predict(both)
    swapped = np.arange(len(both)) >= len(held_out)
    parts = {"held out": of_fold[~swapped], "held out, swapped": of_fold[swapped]}
    fold: dict = {"labels": held_out.labels("binary"), "selection": {}}
    fold |= {name: {"as trained": compute_binary_scores(part)} for name, part in parts.items()}
    for chosen_on, with_swapped in CHOSEN_ON.items():
        chosen = slice(None) if with_swapped else slice(len(validation) // 2)
        fitted = fit_calibration(validation.labels(task)[chosen], of_validation[chosen])
        temperature, biases = fitted or (1.0, np.zeros(of_validation.shape[1]))
        scores = compute_binary_scores(apply_calibration(of_validation[chosen], temperature, biases))
        fold["selection"][chosen_on] = (validation.labels("binary")[chosen], scores)
        for name, part in parts.items():
            fold[name][chosen_on] = compute_binary_scores(apply_calibration(part, temperature, biases))
    return fold


def _measure(fold: dict, images: str, chosen_on: str, arguments: Mapping) -> dict[str, float]:
    threshold = choose_threshold(*fold["selection"][chosen_on], **arguments)
    decided, positive = compute_decisions(fold[images][chosen_on], threshold), fold["labels"] > 0
    return {
        "sensitivity": float(decided[positive].mean()),
        "specificity": float(1 - decided[~positive].mean()),
        "accuracy": float((decided == positive).mean()),
    }


def make_tables(results: dict) -> list[Table]:
    """Makes the tables of `compare_rules`: of the rules, and of the calibrations."""
    rules = [
        (one["images"], one["rule"], one["chosen_on"], *(f"{one[name]:.3f}" for name in (*MEASURES, "worst")))
        for one in results["rules"]
    ]
    calibration = [(one["images"], one["chosen_on"], f"{one['ece']:.3f}") for one in results["calibration"]]
    return [
        Table(("images", "threshold rule", "chosen on", *MEASURES, "accuracy of the worst fold"), rules),
        Table(("images", "recalibrated on", "ECE"), calibration),
    ]
