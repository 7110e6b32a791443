"""Makes records of runs for the tests of cards and checklists."""

import dataclasses

from pneumojax.config import Config, config_to_dict
from pneumojax.reporting.run_record import RunRecord

COUNTS = {
    "train": {"NORMAL": 10, "BACTERIA": 20, "VIRUS": 10},
    "test": {"NORMAL": 5, "BACTERIA": 3, "VIRUS": 2},
}


def make_metric(value=0.9):
    return {"value": value, "ci95": [value - 0.05, value + 0.05]}


def make_evaluation(split="test", step=60, **more):
    """Makes the parts of metrics.json that cards read."""
    names = ("auroc", "auprc", "sensitivity", "specificity", "precision", "npv", "accuracy", "balanced_accuracy", "f1")
    return {
        "metrics": {name: make_metric() for name in names},
        "counts": {"images": 10, "patients": 8, "confusion_matrix": {"at_threshold": [[4, 1], [0, 5]]}},
        "threshold": {"split": "validation"},
        "calibration": {"split": "validation", "after": {"brier": make_metric(0.1), "ece": make_metric(0.2)}},
        "subgroups": {"viral": {"images": 7, "metrics": {"auroc": make_metric(0.7)}}},
        "label_noise": {"share": 0.125, "confident": 8},
        "run": {
            "split": {"name": split},
            "checkpoint": {"which": "best", "step": step},
            "bootstrap": {"resamples": 1000, "seed": 0, "unit": "patient"},
            "trained_on_this_data": True,
            "data": {"synthetic": False},
        },
    } | more


def make_record(synthetic=False, config=None, **changes):
    """Makes the record of a run of the Kermany data that has no results, except for `changes`."""
    data = {"synthetic": synthetic, "source": "archive.zip", "counts": COUNTS, "fingerprint": "f" * 64}
    data["fingerprints"] = {name: name[0] * 64 for name in COUNTS}
    config = config_to_dict(Config()) | (config or {})
    info = {"config": config, "class_names": ["NORMAL", "PNEUMONIA"], "data": data}
    info |= {"versions": {"pneumojax": "0.1.0", "jax": "0.10.2"}, "device": {"kind": "cpu", "count": 1}}
    record = RunRecord(
        workdir="runs/a",
        info=info,
        step=60,
        parameters=1234,
        weights_sha256="a" * 64,
        threshold=None,
        calibration=None,
        evaluations={},
        robustness={},
        audits={},
        explanations={},
        patients=None,
        metadata=None,
        files={"config.json": "c" * 64, "threshold.json": None},
    )
    return dataclasses.replace(record, **changes)
