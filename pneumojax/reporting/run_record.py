"""What is known about a run, as plain data, and the sentences about it that cards and checklists use."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pneumojax.reporting.caveats import NOT_A_DEVICE
from pneumojax.reporting.format import format_calibration, format_interval, format_score

SCRIPT = "scripts/run experiments/"
AUTHORS = "unknown: to be filled by the authors"

CITATION = (
    "Kermany, Zhang and Goldbaum, Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for "
    "Classification, Mendeley Data, version 2, 2018, doi:10.17632/rscbjbr9sj.2; described in Kermany et al., Cell 172 "
    "(2018), doi:10.1016/j.cell.2018.02.010"
)

SHORT_CITATION = "Kermany et al. 2018, doi:10.17632/rscbjbr9sj.2"

# Names of the metrics that the cards show. The keys are those of metrics.json.
METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "specificity_at_sensitivity_0.95": "specificity at sensitivity 0.95",
    "precision": "positive predictive value",
    "npv": "negative predictive value",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "accuracy_three_class": "accuracy of three classes",
    "f1_macro": "macro F1 of three classes",
}


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """All that is stored about a run.

    Attributes:
      workdir: folder of the run, as text for commands.
      info: content of config.json.
      step: training step of the checkpoint.
      parameters: number of trained parameters.
      weights_sha256: hash of the weights of the checkpoint.
      threshold: content of threshold.json; None without the file.
      calibration: content of calibration.json; None without the file.
      evaluations: {name of the split or collection: content of metrics.json}.
      robustness: {name of the split: content of robustness.json}.
      audits: {name of the split: content of audit.json}.
      explanations: {name of the split: content of explanations.json}.
      patients: {name of the split: {"NORMAL": patients, ..., "all": patients}}. A patient can have images of several
        classes. None if the data set of the training is not on this machine.
      metadata: content of metadata.json of the data set; None if it is not on this machine.
      files: {file of the run: sha256}.
    """

    workdir: str
    info: Mapping[str, Any]
    step: int
    parameters: int
    weights_sha256: str
    threshold: Mapping[str, Any] | None
    calibration: Mapping[str, Any] | None
    evaluations: Mapping[str, Mapping[str, Any]]
    robustness: Mapping[str, Mapping[str, Any]]
    audits: Mapping[str, Mapping[str, Any]]
    explanations: Mapping[str, Mapping[str, Any]]
    patients: Mapping[str, Mapping[str, int]] | None
    metadata: Mapping[str, Any] | None
    files: Mapping[str, str | None]

    @property
    def config(self) -> Mapping[str, Any]:
        """The config of the run: {name of the flag: value}."""
        return self.info["config"]

    @property
    def synthetic(self) -> bool:
        """Whether the run was trained on synthetic radiographs."""
        return self.info["data"]["synthetic"]

    @property
    def name(self) -> str:
        """The name of the folder of the run."""
        return self.workdir.rstrip("/").rpartition("/")[2]

    @property
    def evaluate_command(self) -> str:
        """The command that evaluates the run on test, or on validation if its data set has no test split."""
        return self.command("evaluate.py", split="test" if "test" in self.info["data"]["counts"] else "validation")

    def command(self, script: str, **flags: str) -> str:
        """Returns the command that writes a missing part of the record."""
        words = [f"--workdir={self.workdir}", *(f"--{name}={value}" for name, value in flags.items())]
        return f"{SCRIPT}{script} {' '.join(words)}"


@dataclasses.dataclass(frozen=True)
class Fact:
    """A statement about a run.

    Attributes:
      text: the statement; None if the record lacks it.
      command: the command that adds it to the record, if it is missing.
    """

    text: str | None
    command: str = ""

    def format(self) -> str:
        """Formats the statement, or says that it is missing and which command writes it."""
        if self.text is not None:
            return self.text
        return f"missing: run `{self.command}` first" if self.command else AUTHORS


def choose_evaluation(record: RunRecord) -> Mapping[str, Any] | None:
    """Returns the evaluation that the checklists show: that of test, else of validation; None without both."""
    for name in ("test", "validation"):
        if name in record.evaluations:
            return record.evaluations[name]
    return None


def make_facts(record: RunRecord) -> dict[str, Fact]:
    """Makes the statements about a run that cards and checklists use.

    Returns:
      {name: statement}. checklists.toml uses these names.
    """
    return _describe_data(record) | _describe_training(record) | _describe_results(record)


def _describe_data(record: RunRecord) -> dict[str, Fact]:
    data, c = record.info["data"], record.config
    if record.synthetic:
        source = "synthetic radiographs, which the data set builder of pneumojax generates; they show no patient"
        design = reference = source
    else:
        source = f"chest X-rays of children, {SHORT_CITATION}, read from {data['source']}; licence CC BY 4.0"
        design = "retrospective: published images are used, and none was acquired for this study"
        reference = (
            "the labels of the publisher: NORMAL, bacterial or viral pneumonia, by two physicians, of the official "
            "test images also by a third (Kermany et al., Cell 2018)"
        )
    counts = "; ".join(
        f"{name}: {sum(one.values()):,} images ({', '.join(f'{n:,} {kind}' for kind, n in one.items())})"
        + (f" of {record.patients[name]['all']:,} patients" if record.patients and name in record.patients else "")
        for name, one in data["counts"].items()
    )
    shares = ", ".join(
        f"{100 * (1 - one['NORMAL'] / max(1, sum(one.values()))):.1f} % of {name}"
        for name, one in data["counts"].items()
    )
    weights = "no class weights" if c["class_weights"] == "none" else f"class weights: {c['class_weights']}"
    left_out = None
    if record.metadata:
        duplicates, skipped = record.metadata["duplicates"], record.metadata["skipped"]
        left_out = (
            f"left out of the training images: {duplicates['left_out_redundant']} byte-identical copies, "
            f"{duplicates['left_out_in_test']} that are in test too, {duplicates['left_out_contradictory']} with two "
            f"labels; unreadable images: {len(record.metadata['bad_images'])}; other skipped files: "
            f"{sum(skipped.values()) if isinstance(skipped, dict) else skipped}"
        )
    prepare = "scripts/run scripts/prepare_data.py --source=PATH, then scripts/run experiments/card.py"
    return {
        "data_source": Fact(source),
        "study_design": Fact(design),
        "reference_standard": Fact(reference),
        "splits": Fact(counts),
        "class_balance": Fact(f"pneumonia is {shares}; {weights}"),
        "left_out": Fact(left_out, prepare),
        "disjoint": Fact(
            "no patient is in two splits; a patient is identified by the series and the number in the file name, which "
            "is imperfect (see data_card.md)"
        ),
        "limits": Fact(
            source
            if record.synthetic
            else "one hospital; patients are identified by file names only; the classes differ in more than the lungs "
            "(see Limits in model_card.md)"
        ),
        "preprocessing": Fact(
            f"grey, EXIF orientation applied, resized to {c['image_px']} x {c['image_px']} pixels ({c['resize']}), "
            f"uint8; pixel scaling inside the network: {c['pixel_scaling']}"
        ),
        "data_availability": Fact(source if record.synthetic else f"public: {SHORT_CITATION}, licence CC BY 4.0"),
    }


# What --select_by chooses.
SELECTIONS = {
    "last": "the last checkpoint, which needs no choice",
    "auroc": "the checkpoint with the best AUROC on the selection split",
    "shift": "the checkpoint with the best AUROC with swapped aspects on the selection split",
}

# The flags of the augmentation, in the order of the text.
AUGMENTATION = (
    "rotate_degrees",
    "shift",
    "zoom",
    "crop_min_area",
    "crop_max_aspect",
    "stretch",
    "brightness",
    "contrast",
    "gamma",
    "tone",
    "noise",
    "flip",
    "erase_probability",
    "mixup_alpha",
)


def _describe_training(record: RunRecord) -> dict[str, Fact]:
    c, info = record.config, record.info
    augmentation = ", ".join(f"{name} {c[name]}" for name in AUGMENTATION if name in c)
    start = f"random, seed {c['seed']}"
    if c["pretrained"]:
        start = f"pretrained weights {c['pretrained']} (sha256 {info.get('pretrained_sha256')}), seed {c['seed']}"
    device = info["device"]
    return {
        "technology": Fact(
            f"deep learning: a {'multilayer perceptron' if c['model'] == 'mlp' else 'convolutional network'} "
            f"({c['model']}), trained with JAX and Flax"
        ),
        "intended_use": Fact(f"research on classifiers of children's chest X-rays. {NOT_A_DEVICE}"),
        "model": Fact(
            f"{c['model']}: {c['image_px']} x {c['image_px']} grey pixels in, "
            f"{len(info['class_names'])} classes out ({', '.join(info['class_names'])}), {record.parameters:,} trained "
            f"parameters, {c['dtype']}; the config in model_card.md has the sizes of the layers"
        ),
        "software": Fact(", ".join(f"{name} {version}" for name, version in info["versions"].items())),
        "device": Fact(f"{device['count']} x {device['kind']}"),
        "initialisation": Fact(start),
        "training": Fact(
            f"{c['optimizer']}, learning rate {c['learning_rate']:g}, weight decay {c['weight_decay']:g}, "
            f"{c['epochs']} epochs, batch size {c['batch_size']}, label smoothing {c['label_smoothing']:g}, "
            f"dropout {c['dropout']:g}; augmentation: {augmentation}"
        ),
        "selection": Fact(f"{SELECTIONS[c['select_by']]}, step {record.step:,}"),
        "output": Fact(
            "probabilities of the classes; the score is the probability of pneumonia; the decision is at the threshold"
        ),
        "availability": Fact(
            f"code: pneumojax {info['versions'].get('pneumojax', '')}, Apache-2.0; weights: sha256 "
            f"{record.weights_sha256[:16]}..., `experiments/export.py` writes them as one folder"
        ),
        "stored_outputs": Fact(
            "predictions.csv has the scores of each evaluated image; each row of predict.py has the fingerprint of the "
            "model"
        ),
    }


def _describe_results(record: RunRecord) -> dict[str, Fact]:
    results, evaluate = choose_evaluation(record), record.evaluate_command
    facts = {
        name: Fact(None, evaluate) for name in ("performance", "confusion", "subgroups", "uncertainty", "measures")
    }
    facts["calibration_results"] = Fact(None, evaluate)
    if results:
        split, metrics = results["run"]["split"]["name"], results["metrics"]
        shown = ", ".join(
            f"{METRICS[name]} {format_interval(metrics[name])}"
            for name in ("auroc", "sensitivity", "specificity", "accuracy")
        )
        (tn, fp), (fn, tp) = results["counts"]["confusion_matrix"]["at_threshold"]
        groups = "; ".join(
            f"{name.replace('_', ' ')}: AUROC {format_interval(one['metrics']['auroc'])}"
            for name, one in results["subgroups"].items()
            if one.get("metrics", {}).get("auroc")
        )
        bootstrap, after = results["run"]["bootstrap"], results["calibration"]["after"]
        facts |= {
            "performance": Fact(f"{split}: {shown}"),
            "confusion": Fact(
                f"{split}: {tp} true positives, {fp} false positives, {fn} false negatives, {tn} true negatives; "
                f"evaluation/{split}/report.html shows the worst errors"
            ),
            "subgroups": Fact(f"{split}: {groups}" if groups else f"{split}: no subgroup in the record"),
            "uncertainty": Fact(
                f"95 % intervals by bootstrap over {bootstrap['unit']}s, {bootstrap['resamples']:,} resamples"
            ),
            "measures": Fact(
                "AUROC, AUPRC, sensitivity, specificity, predictive values, Brier score, calibration error, slope and "
                "intercept, decision curve"
            ),
            "calibration_results": Fact(
                f"{split}, after recalibration: Brier score {format_interval(after['brier'])}, calibration error "
                f"{format_interval(after['ece'])}"
            ),
        }
    return facts | _describe_decisions(record) | _describe_tests(record)


def _describe_decisions(record: RunRecord) -> dict[str, Fact]:
    evaluate = record.command("evaluate.py", split="validation")
    threshold, calibration = record.threshold, record.calibration
    chosen = fitted = None
    if threshold:
        chosen = (
            f"{format_score(threshold['value'])}, by the rule {threshold['rule']}, chosen on "
            f"{threshold['split'] or 'no split (it was given)'}"
        )
    if calibration:
        fitted = f"{format_calibration(calibration)}, fitted on {calibration['split']}"
    return {"threshold": Fact(chosen, evaluate), "calibration": Fact(fitted, evaluate)}


def _describe_tests(record: RunRecord) -> dict[str, Fact]:
    robust, audit, external = None, None, None
    for split, content in record.robustness.items():
        worst = content["nuisances"].get(content["worst"])
        if worst:
            robust = (
                f"{split}: with the nuisance {content['worst']} swapped between the classes, the AUROC changes by "
                f"{format_interval(worst['change'], '+.4f')}, the worst of {len(content['nuisances'])}"
            )
    for split, content in record.audits.items():
        rows = [
            f"{one['title']} {format_interval(one['metrics']['auroc'])}"
            for one in content["altered"].values()
            if one.get("without_lungs")
        ]
        audit = f"{split}: AUROC without the lungs: {', '.join(rows)}"
    outside = [name for name, results in record.evaluations.items() if "collection" in results]
    if outside:
        external = ", ".join(
            f"{name}: AUROC {format_interval(record.evaluations[name]['metrics']['auroc'])}" for name in outside
        )
    explained = ", ".join(record.explanations)
    return {
        "robustness": Fact(robust, record.command("robustness.py")),
        "audit": Fact(audit, record.command("audit.py")),
        "external": Fact(external, record.command("evaluate.py", images="FOLDER", labels="CSV")),
        "explanations": Fact(
            f"Grad-CAM, occlusion and integrated gradients, tested on {explained} (explanations.json)"
            if explained
            else None,
            f"{SCRIPT}explain.py --workdir={record.workdir} --out=pictures --split=validation --measure=200",
        ),
    }
