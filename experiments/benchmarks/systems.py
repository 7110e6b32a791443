"""The reference systems: public projects that use the same X-rays, and the metrics that they report on test.

The projects measured these metrics on the official test split. experiments/presets/<name>.flags describes how each
system is rebuilt here.
"""

import dataclasses

# {metric: its name in the results}.
FIGURES = {
    "accuracy": "accuracy",
    "sensitivity": "recall of pneumonia",
    "f1": "F1 of pneumonia",
    "accuracy_three_class": "accuracy, three classes",
    "auroc_macro": "AUROC, mean of three classes",
    "precision_macro": "precision, mean of both classes",
    "balanced_accuracy": "recall, mean of both classes = AUC of the decision",
    "f1_macro": "F1, mean of both classes",
}


@dataclasses.dataclass(frozen=True)
class System:
    """A published system.

    Attributes:
      project: name of the project.
      network: a short description of the network.
      reported: {metric of `metrics.compute_metrics`: value on the official test split}.
    """

    project: str
    network: str
    reported: dict[str, float]


def _macro(accuracy: float, precision: float, recall: float, f1: float) -> dict[str, float]:
    """Returns the metrics of project e, which are means over both classes.

    The project computes its AUC from decisions instead of scores. Such an AUC equals the mean recall.
    """
    return {"accuracy": accuracy, "precision_macro": precision, "balanced_accuracy": recall, "f1_macro": f1}


_A, _B, _C = "Pediatric_Pneumonia_CXR_CNN", "flatiron_phase4_project", "X-Ray Pneumonia Classification"
_D, _E = "X-Ray Images Analysis for Pneumonia", "X-ray Pneumonia Image Classification with Deep Learning"

SYSTEMS = {
    "a1": System(_A, "CNN", {"accuracy": 0.93}),
    "a2": System(_A, "CNN, few missed", {"sensitivity": 0.98}),
    "a3": System(_A, "CNN, three classes", {"accuracy_three_class": 0.84, "auroc_macro": 0.94}),
    "b1": System(_B, "CNN, published layers", {"sensitivity": 0.98, "f1": 0.83}),
    "c1": System(_C, "CNN, augmentation inside", {"accuracy": 0.91}),
    "d1": System(_D, "baseline, part of the data", {"accuracy": 0.73}),
    "d2": System(_D, "shallow CNN", {"accuracy": 0.73}),
    "d3": System(_D, "ResNet50", {"accuracy": 0.73}),
    "e1": System(_E, "multilayer perceptron", _macro(0.74, 0.83, 0.66, 0.66)),
    "e2": System(_E, "CNN", _macro(0.88, 0.89, 0.86, 0.87)),
    "e3": System(_E, "VGG16", _macro(0.92, 0.92, 0.90, 0.91)),
}

# Not a system but a protocol of project e: epoch and threshold of each model are chosen on test.
LEAKY = "e4"
